"""What the trainer tells its writer, and what it hears back. Neither has to import torch for it."""

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
    """Whom a writer works for. The first thing that it is told."""

    directory: Path
    attempt: int
    owner: str
    is_main: bool
    policy: SavePolicy
    objective: Objective | None
    threads: int = 1
    """How many may write while the trainer trains."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """Make these files of a step durable; they lie in the shared memory. Answered by `Sealed`."""

    step: int
    parts: Sequence[FilePart]
    small: Sequence[FilePart] = ()
    """Files that are not tensors, of any size. Over the socket they would make the trainer wait for its writer."""
    size: int = 0
    """About as many bytes have all ranks' files together. Rank 0's writer makes sure that they fit."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Make the folder in flight a checkpoint. Answered by `Saved`."""

    draft: ManifestDraft
    files: Mapping[str, FileEntry] | None
    """Of all ranks; None: those of the writer itself, which is alone."""


@dataclass(frozen=True, kw_only=True)
class Expedite:
    """From now on the trainer waits for this step: use all cores. Not answered."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """The files are durable."""

    files: Mapping[str, FileEntry]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An order could not be carried out."""

    detail: str
    outcome: Outcome | None = None
    """The end that it means; None: an error like any other."""
    holder: int | None = None

    @classmethod
    def by(cls, error: BaseException) -> "Failed":
        """What an error says."""
        if isinstance(error, Ended):
            return cls(detail=error.detail, outcome=error.outcome, holder=getattr(error, "holder", None))
        return cls(detail=f"{type(error).__name__}: {error}")

    def error(self, what: str) -> BaseException:
        """The error again, for the trainer to raise; `what` says what could not be done, if nothing else does."""
        if self.outcome is Outcome.FENCED:
            return Fenced(self.detail, holder=self.holder)
        if self.outcome is not None:
            kind: type[Ended] = BY_OUTCOME[self.outcome]
            return kind(self.detail)
        return RuntimeError(f"{what}: {self.detail}")


Order = Write | Commit
Answer = Sealed | Saved | Failed
