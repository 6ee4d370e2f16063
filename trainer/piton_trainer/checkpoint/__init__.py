"""Checkpoints that are whole or not there at all.

    layout      folders and files: what is committed, what is in flight, writing so that it lasts
    fence       which attempt may commit
    save        one checkpoint: shards, digests, manifest, rename
    load        the newest checkpoint that is good
    retention   which checkpoints may go (pure)
    survey      what is there, for people; it needs no torch
    export      formats that others read

Nothing here knows models or loops: a checkpoint is tensors by name and one JSON document.
"""

from collections.abc import Mapping
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
    document: Mapping[str, Any] = field(default_factory=dict)
    """Everything that is not a tensor, as JSON. Rank 0's is saved."""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that is durable."""

    step: int
    folder: Path
    size: int
    """Bytes."""


class Checkpointer(Protocol):
    """Saves snapshots. All ranks call each method together.

    `save` may return before the checkpoint is durable, but not before the tensors may change again; at most one save is
    in flight. `wait` returns when none is. Both raise what went wrong, on every rank: OutOfSpace, Fenced, or the error
    as it came. What failed leaves nothing behind, and the older checkpoints as they were.
    """

    def save(self, snapshot: Snapshot) -> None:
        """Begin to save, after waiting for the save before."""
        ...

    def wait(self) -> None:
        """Until nothing is in flight."""
        ...

    @property
    def durable(self) -> Saved | None:
        """The newest checkpoint that this object has made durable."""
        ...
