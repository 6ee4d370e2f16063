"""Which attempt may commit to a checkpoint directory.

Two attempts can be alive at once: a node that is unreachable is not dead. FENCE holds the number of the attempt that
may commit and the name of its process; it is written by rename, so that nobody ever reads half of it.

Why a zombie cannot commit. A save is: make `.saving-…`, fill it, look at FENCE, rename it to `step-…`. A claim is:
write FENCE, then rename every `.saving-…` of others away. Take a zombie's folder and the moment at which the claim
lists the directory:

    the folder was made before   the claim renames it away, so the zombie's rename finds nothing and fails; unless the
                                 zombie renamed first, and then it committed before the claim was done, as it might
    the folder was made after    FENCE was written earlier still, so the zombie's look at it comes after and refuses

A rename that finds nothing may also be one that was done and whose answer was lost. It counts as done only if the
target holds this very manifest, which has the attempt's number and the time of the save in it.

Two processes that claim at the same moment can overwrite each other's FENCE. The higher attempt then finds a lower
number where its own should be, and claims again; the lower one finds the higher and gives up.
"""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from piton.contract import names
from piton_trainer.checkpoint.format import layout
from piton_trainer.errors import Fenced


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who FENCE names."""

    attempt: int
    owner: str


class Fence:
    """The right of one process to commit. Rank 0 holds it for its attempt; its writer acts in the same name.

    The folder in flight may be made by the writer of any rank, and again when a writer had to be replaced. That is
    always before the last look at FENCE, which comes when all shards are written, so the above holds for it.
    """

    def __init__(
        self, directory: Path, *, disk: layout.Disk, attempt: int | None = None, owner: str | None = None
    ) -> None:
        self._directory = directory
        self._disk = disk
        self.attempt = attempt if attempt is not None else _next_attempt(directory)
        self.owner = owner or uuid.uuid4().hex

    def claim(self) -> None:
        """Become the one who may commit; whoever claimed before with this number or a lower one no longer may.

        Raises:
            Fenced: a higher attempt is there already.
            OSError: the directory cannot be written to.
        """
        self._refuse_if_passed(read(self._directory))
        text = json.dumps({"attempt": self.attempt, "owner": self.owner})
        self._disk.write(self._directory / names.FENCE_FILE, text)
        self._sweep()
        self._refuse_if_passed(read(self._directory))

    def check(self) -> None:
        """Make sure that this process may commit now.

        Raises:
            Fenced: it may not.
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
        # FENCE was written just before, so that no cache of this machine's answers for the folder.
        layout.sweep(self._directory, keep=lambda name: name.endswith(f"-{self.attempt}-{self.owner[:8]}"))


def read(directory: Path) -> Holder | None:
    """Who may commit; None when nobody ever claimed.

    Raises:
        ValueError: FENCE is not one of ours.
    """
    path = directory / names.FENCE_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Holder(attempt=int(fields["attempt"]), owner=str(fields["owner"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it if no other trainer is running") from error


def _next_attempt(directory: Path) -> int:
    holder = read(directory)
    return 1 if holder is None else holder.attempt + 1
