"""Fence of a checkpoint directory: it determines the attempt that may commit.

Two attempts can be alive at once: a node that is unreachable is not dead. FENCE holds the number of the attempt that
may commit and the name of its process. It is written by rename, so that no process ever reads a partial file.

A stale attempt cannot commit, for this reason. A save creates `.saving-…`, fills it, reads FENCE, and renames it to
`step-…`. A claim writes FENCE, then renames every `.saving-…` of other processes away. Consider the folder of a stale
attempt and the moment at which the claim lists the directory:

    folder created before   the claim renames it away, so the rename of the stale attempt fails; if the stale attempt
                            renames first, it commits before the claim is complete, which is allowed
    folder created after    FENCE was written even earlier, so the stale attempt reads the new FENCE and stops

A rename that does not find its source may also have succeeded with its response lost. It counts as done only if the
target holds the same manifest, which contains the number of the attempt and the time of the save.

Two processes that claim at the same moment can overwrite each other's FENCE. The higher attempt then finds a lower
number in it, and claims again; the lower one finds the higher number and gives up.
"""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from piton.contract import InputError, names
from piton_trainer.checkpoint.format import layout
from piton_trainer.errors import Fenced


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The attempt and process that FENCE names."""

    attempt: int
    owner: str


class Fence:
    """The right of one process to commit. Rank 0 holds it for its attempt; its writer uses the same name.

    The folder in flight may be created by the writer of any rank, and again when a writer was replaced. That is always
    before the last read of FENCE, which follows the last shard, so the argument above holds.
    """

    def __init__(
        self, directory: Path, *, disk: layout.Disk, attempt: int | None = None, owner: str | None = None
    ) -> None:
        self._directory = directory
        self._disk = disk
        self.attempt = attempt if attempt is not None else _next_attempt(directory)
        self.owner = owner or uuid.uuid4().hex

    def claim(self) -> None:
        """Claim the right to commit; earlier claims with this number or a lower one become void.

        Raises:
            Fenced: a higher attempt has already claimed the directory.
            OSError: the directory cannot be written to.
        """
        self._refuse_if_passed(read(self._directory))
        text = json.dumps({"attempt": self.attempt, "owner": self.owner})
        self._disk.write(self._directory / names.FENCE_FILE, text)
        self._sweep()
        self._refuse_if_passed(read(self._directory))

    def check(self) -> None:
        """Check that this process may commit now.

        Raises:
            Fenced: it may not commit.
        """
        holder = read(self._directory)
        self._refuse_if_passed(holder)
        if holder is None or holder.attempt < self.attempt:
            self.claim()
        elif holder.owner != self.owner:
            raise Fenced(f"another process of attempt {self.attempt} has taken over {self._directory}")

    def _refuse_if_passed(self, holder: Holder | None) -> None:
        if holder is not None and holder.attempt > self.attempt:
            raise Fenced(
                f"attempt {holder.attempt} has claimed {self._directory}; attempt {self.attempt} may not save any more",
                holder=holder.attempt,
            )

    def _sweep(self) -> None:
        # FENCE was written just before, so that the listing does not come from a cache of this machine.
        layout.sweep(self._directory, keep=lambda name: name.endswith(f"-{self.attempt}-{self.owner[:8]}"))


def read(directory: Path) -> Holder | None:
    """Return the holder of the right to commit; None if FENCE does not exist.

    Raises:
        ValueError: FENCE is not valid.
    """
    path = directory / names.FENCE_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Holder(attempt=int(fields["attempt"]), owner=str(fields["owner"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it if no other trainer is running") from error


def _next_attempt(directory: Path) -> int:
    holder = read(directory)
    return 1 if holder is None else holder.attempt + 1
