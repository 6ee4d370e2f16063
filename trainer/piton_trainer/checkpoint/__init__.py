"""Checkpoints that are either complete or absent.

    format/      files and folders: layout, fence, the archive that holds the tensors, torch's index, digests
    save/        async_save saves while training continues: plan, shared_buffer and overlapped_copy in the trainer,
                 writer and direct_io in a separate process, writer_client and messages between the two;
                 blocking_save saves while training waits; commit writes the manifest and renames the folder
    load/        loader reads the newest good checkpoint in one pass: rank_loader is the part of one process, read_plan
                 maps bytes to tensors, sharing assigns files to ranks for verification, reader reads;
                 readahead warms the page cache before torch is imported
    retention    selection of the checkpoints to delete (pure), deletion, reduction to weights
    save_interval, volume_health
                 schedule of periodic saves; how long training continues while saves fail
    inspect      contents of a checkpoint directory, for `piton checkpoint`; without torch
    export       formats that other libraries read

This package does not depend on models or loops: a checkpoint is tensors by name and one JSON document.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the writer process does not import torch
    from torch import Tensor

# torch says so whenever a single process saves or loads. For good: `catch_warnings` is not for several threads.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """State of one rank, to be saved."""

    step: int
    tensors: "Mapping[str, Tensor]"
    """Parameters need not be detached."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """Everything that is not a tensor, as JSON. The one of rank 0 is saved."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    steady: frozenset[str] = frozenset()
    """Tensors that do not change before the next `settle`, so that they may be copied until then."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A durable checkpoint."""

    step: int
    folder: Path
    size: int
    """Bytes."""
    free: int | None = None
    """Free bytes on the volume before the save, in addition to what the retention rules keep."""


@dataclass(frozen=True, kw_only=True)
class SaveStatus:
    """State of the save in flight: of one rank, or of all ranks if each field is the largest of theirs."""

    waits: bool = False
    """True if the next stage has to wait for a writer."""
    fails: bool = False
    """True if a writer has failed."""
    ends: bool = False
    """Rank 0 only: True if the next stage is the last one, after which no save is in flight."""


class Checkpointer(Protocol):
    """Saves snapshots. All ranks call each method together, except where noted.

    `save` may return before the checkpoint is durable, but not before the tensors may change again, unless they are
    steady. At most one save is in flight. `save`, `advance` and `wait` raise the error on every rank: OutOfSpace,
    VolumeLost, Fenced, or the original error. A failed save leaves no files and does not change older checkpoints.
    OutOfSpace and VolumeLost concern the volume: a later save may succeed.
    """

    def expect(self, size: int) -> None:
        """Announce snapshots of about this many bytes. Each rank calls it on its own."""
        ...

    @property
    def spare(self) -> "Tensor | None":
        """Memory that is not in use before `prepare` or `save`; None if there is none."""
        ...

    def prepare(self, tensors: "Callable[[], Mapping[str, Tensor]]") -> None:
        """Prepare for snapshots of tensors like these, so that the first save is not the slowest."""
        ...

    def save(self, snapshot: Snapshot) -> None:
        """Start a save, after waiting for the previous one."""
        ...

    def settle(self) -> None:
        """Allow the steady tensors to change from now on. Each rank calls it on its own."""
        ...

    def status(self) -> SaveStatus:
        """Return this rank's status of the save in flight, without waiting. Each rank calls it on its own."""
        ...

    def advance(self, status: SaveStatus) -> None:
        """Complete the next stage of the save in flight, if the status of all ranks allows it without waiting."""
        ...

    def wait(self) -> None:
        """Wait until no save is in flight."""
        ...

    def close(self) -> None:
        """Release all resources. Each rank calls it on its own, and finishes the work that needs no other rank."""
        ...

    @property
    def in_flight(self) -> bool:
        """True if a save has started and is not durable yet, as of the last `advance` or `wait`."""
        ...

    @property
    def durable(self) -> Saved | None:
        """Newest checkpoint that this object has made durable."""
        ...
