"""Messages between the trainer and its writer process. This module needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from piton.contract.assignment import Objective, SavePolicy
from piton.contract.manifest import FileEntry
from piton.contract.termination import Outcome
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.save.commit import ManifestDraft
from piton_trainer.checkpoint.save.direct_io import FilePart
from piton_trainer.errors import BY_OUTCOME, Ended, Fenced


@dataclass(frozen=True, kw_only=True)
class WriterSettings:
    """Settings of a writer process: the first message that it receives."""

    directory: Path
    attempt: int
    owner: str
    is_main: bool
    policy: SavePolicy
    objective: Objective | None
    threads: int = 1
    """Number of threads that write while the trainer trains."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """Request to make these files of a step durable; they are in the shared memory. Answered by `Sealed`."""

    step: int
    parts: Sequence[FilePart]
    small: Sequence[FilePart] = ()
    """Files that are not tensors, of any size. Sent over the socket, they would make the trainer wait."""
    size: int = 0
    """Approximate size of the files of all ranks, in bytes. The writer of rank 0 makes sure that they fit."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Request to make the folder in flight a checkpoint. Answered by `Saved`."""

    draft: ManifestDraft
    files: Mapping[str, FileEntry] | None
    """Files of all ranks; None: those of this writer, which is the only one."""


@dataclass(frozen=True, kw_only=True)
class Expedite:
    """Notification that the trainer waits for this step from now on: use all cores. Not answered."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """Answer that the files are durable."""

    files: Mapping[str, FileEntry]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Answer that a request failed."""

    detail: str
    outcome: Outcome | None = None
    """Outcome of the attempt that it causes; None for any other error."""
    holder: int | None = None

    @classmethod
    def by(cls, error: BaseException) -> "Failed":
        """Convert an error to an answer."""
        if isinstance(error, Ended):
            return cls(detail=error.detail, outcome=error.outcome, holder=getattr(error, "holder", None))
        return cls(detail=f"{type(error).__name__}: {error}")

    def error(self, what: str) -> BaseException:
        """Return the error for the trainer to raise; `what` describes the failed operation, for generic errors."""
        if self.outcome is Outcome.FENCED:
            return Fenced(self.detail, holder=self.holder)
        if self.outcome is not None:
            kind: type[Ended] = BY_OUTCOME[self.outcome]
            return kind(self.detail)
        return RuntimeError(f"{what}: {self.detail}")


Order = Write | Commit
Answer = Sealed | Saved | Failed
