"""Ownership of a bucket. Pure.

The rule is that of the volume: the higher attempt wins. In addition, a bucket outlives volumes, runs and their numbers,
so a run must not use the checkpoints of an older run with the same name.

    empty bucket                                    ours
    the record has the uid of this run              ours, also of a volume that is empty
    the volume has the lineage of the record        ours: it is the same volume, or it was restored by hand
    the record has no uid, and the volume nothing   ours, if it is not beyond what this run has reported as durable
    anything else                                   belongs to another run

A number of an attempt proves nothing, because every run counts its own. A record without a uid is one of an older
version: nothing else tells whose it is, and the training of a run whose volume is lost must not be lost with it.
"""

import uuid
from dataclasses import dataclass, replace
from typing import Self

from piton_trainer.mirror.keys import BucketPrefix, Latest


class NotOurs(Exception):  # noqa: N818 - a fact, not an error
    """The bucket belongs to another run or process; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The bucket that a volume knows as its own: the text of its file MIRROR."""

    id: str
    base: int = 0
    """Attempt of the bucket at which the volume was restored by hand: attempts of this volume count from there."""

    def text(self) -> str:
        """Return the text of the file."""
        return self.id if self.base == 0 else f"{self.id}\n{self.base}\n"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse the text of the file; None if there is nothing in it."""
        words = text.split()
        base = words[1] if len(words) > 1 else ""
        return cls(id=words[0], base=int(base) if base.isascii() and base.isdigit() else 0) if words else None


@dataclass(frozen=True, kw_only=True)
class Claimant:
    """A process that wants to own a bucket."""

    run: str | None
    """Uid of its run; None if an older operator started it, or nobody."""
    attempt: int | None
    """Number of its attempt; None if not run by Piton: then one more than that of the last owner."""
    owner: str
    durable_step: int | None
    """Newest step that earlier attempts of its run have reported as durable, if any."""
    is_empty: bool
    """True if its volume had no checkpoint when the attempt began."""


def claim(found: Latest | None, by: Claimant, volume: Lineage | None, place: BucketPrefix) -> Latest:
    """Return the record that replaces the one in the bucket.

    Args:
        found: the record in the bucket.
        by: the process that claims it.
        volume: the lineage on its volume, if there is one.
        place: the bucket and prefix, for the message.

    Raises:
        NotOurs: the bucket belongs to another run or process.
    """
    if found is None:
        lineage = volume.id if volume else by.run or uuid.uuid4().hex
        return Latest(attempt=by.attempt or 1, owner=by.owner, lineage=lineage, run=by.run)
    if found.owner == by.owner:
        return found
    base = _base(found, by, volume)
    if base is None:
        raise NotOurs(
            f"{place} holds the checkpoints of another run, which was at attempt {found.attempt}; to begin anew, name "
            "another place in checkpoint.mirror.uri; to go on from them, `piton checkpoint restore` them into the "
            "checkpoints folder before the run begins"
        )
    number = found.attempt + 1 if by.attempt is None else base + by.attempt
    if found.attempt > number:
        raise NotOurs(f"attempt {found.attempt} has claimed {place}; attempt {number} may not mirror any more")
    return replace(found, attempt=number, owner=by.owner, run=by.run or found.run, base=base)


def _base(found: Latest, by: Claimant, volume: Lineage | None) -> int | None:
    """Return the number from which attempts of this run count in the bucket; None if it is another run's."""
    if by.run is not None and found.run == by.run:
        return found.base
    if volume is not None:
        return volume.base if volume.id == found.lineage else None
    return 0 if _may_be_ours(found, by) else None


def _may_be_ours(found: Latest, by: Claimant) -> bool:
    """True if nothing speaks against a record of an older version, or for a process of an older operator."""
    is_known = found.run is not None and by.run is not None
    if is_known or not by.is_empty or by.attempt is None or by.durable_step is None:
        return False
    is_earlier = found.attempt < by.attempt
    return is_earlier and (found.newest is None or found.newest.step <= by.durable_step)
