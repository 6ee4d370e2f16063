"""Ownership of a bucket. Pure.

The rule is that of the volume: the higher attempt wins. In addition, a bucket outlives volumes, runs and their numbers,
so a run must not use the checkpoints of an older run with the same name.

    empty bucket                                    ours
    the volume has the same lineage                 ours, unless the bucket has a higher attempt
    the volume has another one, and checkpoints     belongs to another run
    the volume is empty                             ours, if the number of this attempt is higher: the volume was lost
"""

import uuid
from dataclasses import replace

from piton_trainer.mirror.keys import BucketPrefix, Latest


class NotOurs(Exception):  # noqa: N818 - a fact, not an error
    """The bucket belongs to another run or process; the message names it."""


def claim(
    found: Latest | None, *, attempt: int | None, owner: str, lineage: str | None, is_empty: bool, place: BucketPrefix
) -> Latest:
    """Return the record that replaces the one in the bucket.

    Args:
        found: the record in the bucket.
        attempt: the number of this attempt; None if not run by Piton: then one more than that of the last owner.
        owner: the name of this process.
        lineage: the lineage on this volume, if there is one.
        is_empty: True if this volume had no checkpoint when the attempt began.
        place: the bucket and prefix, for the message.

    Raises:
        NotOurs: the bucket belongs to another run or process.
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
