"""Checkpoints that are whole or not there at all.

    format/      files and folders: layout, fence, the archive that holds the tensors, torch's index, digests
    save/        async_save saves while training goes on: plan, shared_buffer and overlapped_copy in the trainer,
                 writer and direct_io in a process of its own, writer_client and messages between the two;
                 blocking_save saves while training waits; commit writes the manifest and renames
    load/        loader reads the newest good checkpoint in one pass: rank_loader is one process's part, read_plan says
                 which bytes become which tensor, sharing which rank verifies which file, reader reads;
                 readahead warms the page cache before torch is imported
    retention/   policy says which checkpoints may go (pure), manager deletes, weights_only keeps their weights
    save_interval, volume_health
                 when a save is due; how long training goes on while the volume takes none
    inspect      what a directory holds, for `piton checkpoint`; without torch
    export       formats that other libraries read

Nothing here knows models or loops: a checkpoint is tensors by name and one JSON document.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the process that writes checkpoints does without torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What one rank hands over to be saved."""

    step: int
    tensors: "Mapping[str, Tensor]"
    """Parameters may be among them as they are: not detached."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """Everything that is not a tensor, as JSON. Rank 0's is saved."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    steady: frozenset[str] = frozenset()
    """Tensors that nobody changes before the next `settle`, so that they may be copied until then."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that is durable."""

    step: int
    folder: Path
    size: int
    """Bytes."""
    free: int | None = None
    """Bytes that were free on the volume before, beside what the rules keep."""


class Checkpointer(Protocol):
    """Saves snapshots. All ranks call each method together, but for `close`.

    `save` may return before the checkpoint is durable, but not before the tensors may change again, unless they are
    steady; at most one save is in flight. `save`, `poll` and `wait` raise what went wrong, on every rank: OutOfSpace,
    VolumeLost, Fenced, or the error as it came. What failed leaves nothing behind, and the older checkpoints as they
    were. OutOfSpace and VolumeLost are about the volume: a later save may succeed.
    """

    def expect(self, size: int) -> None:
        """Snapshots of about so many bytes will come. Each rank on its own."""
        ...

    @property
    def spare(self) -> "Tensor | None":
        """Bytes that are not in use before `prepare` or `save`; None when there are none."""
        ...

    def prepare(self, tensors: "Callable[[], Mapping[str, Tensor]]") -> None:
        """Get ready for snapshots of tensors like these, so that the first save is not the slowest."""
        ...

    def save(self, snapshot: Snapshot) -> None:
        """Begin to save, after waiting for the save before."""
        ...

    def settle(self) -> None:
        """Let the steady tensors change from now on. Each rank on its own."""
        ...

    def poll(self) -> None:
        """See how the save in flight is doing, without waiting for it."""
        ...

    def wait(self) -> None:
        """Until nothing is in flight."""
        ...

    def close(self) -> None:
        """Give everything back. Each rank on its own; what it can finish without the others, it does."""
        ...

    @property
    def in_flight(self) -> bool:
        """Whether a save has begun and is not durable yet, as far as `poll` and `wait` have seen."""
        ...

    @property
    def durable(self) -> Saved | None:
        """The newest checkpoint that this object has made durable."""
        ...
