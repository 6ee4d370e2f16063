"""Checkpoints that are whole or not there at all.

    layout      folders and files: what is committed, what is in flight, writing so that it lasts
    fence       which attempt may commit
    commit      around the shards of a save: room for it, then manifest and rename
    save        a checkpoint while training waits
    background  a checkpoint while training goes on: blueprint, image, arena, copying and scribe on our side, writer and
                direct on the other
    load        the newest checkpoint that is good, in one pass: intake for one process, index and landing for what goes
                where, sharing for who verifies what, reading for the bytes
    readahead   a head start for the disk, before there is torch
    retention   which checkpoints may go (pure);  keep does it;  thin leaves the weights
    survey      what is there, for people; it needs no torch
    export      formats that others read

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
