"""Whose bucket it is. Pure.

The same words as on the volume: the higher attempt wins. One thing more: a bucket outlives volumes, runs and their
numbers, so a run that only has the same name must not take an older one's checkpoints for its own.

    nothing in the bucket               ours
    the volume knows this lineage       ours, unless a higher attempt is there
    it does not, but has checkpoints    somebody else's
    an empty volume                     ours, if this attempt's number is higher: the volume was lost
"""

import uuid
from dataclasses import replace

from piton_trainer.mirror.keys import BucketPrefix, Latest


class NotOurs(Exception):  # noqa: N818 - it is no error, it is a fact
    """The bucket is somebody else's; the sentence says whose, and what to do."""


def claim(
    found: Latest | None, *, attempt: int | None, owner: str, lineage: str | None, is_empty: bool, place: BucketPrefix
) -> Latest:
    """What to write over what was found.

    Args:
        found: the record that is there.
        attempt: our number; None outside Piton, where it is one more than that of whoever was there last.
        owner: the name of our process.
        lineage: the word on our volume, if there is one.
        is_empty: whether our volume had no checkpoint when we began.
        place: where, for the sentence.

    Raises:
        NotOurs: hands off.
    """
    if found is None:
        return Latest(attempt=attempt or 1, owner=owner, lineage=lineage or uuid.uuid4().hex)
    number = found.attempt + 1 if attempt is None else attempt
    if found.owner == owner:
        return found
    if found.lineage == lineage:
        if found.attempt > number:
            raise NotOurs(f"attempt {found.attempt} has claimed {place}; attempt {number} may not mirror any more")
    elif not is_empty or found.attempt >= number:
        raise NotOurs(
            f"{place} holds the checkpoints of another run, which was at attempt {found.attempt}; "
            "delete them, or name another place in checkpoint.mirror.uri"
        )
    return replace(found, attempt=number, owner=owner)
