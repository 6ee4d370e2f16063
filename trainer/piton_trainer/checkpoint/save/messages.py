"""Messages between the trainer and its writer process. This module needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from piton.contract.assignment import Objective, SavePolicy
from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.save.commit import ManifestDraft
from piton_trainer.checkpoint.save.direct_io import FilePart
from piton_trainer.runtime.child_process import Failed


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


Request = Write | Commit
Answer = Sealed | Saved | Failed
