"""Between the session and the checkpoints: what a checkpoint of this run consists of.

state.json   {"train": TrainState, "seed": rank 0's seed, "objects": {name: JSON}, "ranks": [JSON per rank]}
shards       the tensors that this JSON refers to; those of one rank only are called `rank<n>/…`
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from piton.contract import names
from piton.contract.manifest import Complete
from piton_trainer import codec, rng
from piton_trainer.checkpoint import Checkpointer, Saved, Snapshot, layout
from piton_trainer.checkpoint.fence import Fence
from piton_trainer.checkpoint.layout import Checkpoint, read_document
from piton_trainer.checkpoint.load import load_tensors, newest_good
from piton_trainer.distributed import Ranks
from piton_trainer.errors import BadConfig
from piton_trainer.feed import Randomness, Resume
from piton_trainer.objects import LOADER, Objects
from piton_trainer.state import TrainState


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Where a resumed attempt starts from."""

    step: int
    attempt: int
    """The attempt that made the checkpoint."""
    folder: Path
    training_seconds: float
    metrics: Mapping[str, float]


class Store:
    """Saves and restores the whole of a run. All ranks call each method together."""

    def __init__(
        self,
        directory: Path,
        *,
        ranks: Ranks,
        fence: Fence,
        checkpointer: Checkpointer,
        disk: layout.Disk,
        fetch: Callable[[int | None], int | None] | None = None,
        overlaps: bool = False,
    ) -> None:
        self._directory = directory
        self._ranks = ranks
        self._fence = fence
        self._checkpointer = checkpointer
        self._disk = disk
        self._fetch = fetch
        self._overlaps = overlaps
        self._hooks: list[RemovableHandle] = []
        self._restored_step: int | None = None
        self._taken_step: int | None = None
        self._has_looked = False
        self._found: Checkpoint | None = None

    @property
    def durable_step(self) -> int | None:
        """The newest step that a next attempt could resume from."""
        saved = self._checkpointer.durable
        return self._restored_step if saved is None else saved.step

    @property
    def saved(self) -> Saved | None:
        """The newest checkpoint that this process has made durable."""
        return self._checkpointer.durable

    @property
    def taken_step(self) -> int | None:
        """The newest step that needs no further save: it is durable, or on its way."""
        return self._restored_step if self._taken_step is None else self._taken_step

    @property
    def in_flight(self) -> bool:
        """Whether a save is on its way."""
        return self._checkpointer.in_flight

    @property
    def attempt(self) -> int:
        """The number that this run's process saves under."""
        return self._fence.attempt

    def prepare(self, objects: Objects, feed: Randomness) -> None:
        """Get ready for saves of these objects."""
        self._checkpointer.prepare(lambda: self._gather(objects, feed)[1])

    def poll(self) -> None:
        """See how the save on its way is doing."""
        self._noting(self._checkpointer.poll)

    def wait(self) -> None:
        """Until nothing is in flight."""
        self._noting(self._checkpointer.wait)

    def release(self) -> None:
        """Give back what saving holds. Each rank on its own."""
        for hook in self._hooks:
            hook.remove()
        self._checkpointer.close()

    def reopen(self) -> None:
        """The run goes on, even if it was finished before: rank 0 takes COMPLETE.json back."""
        self._fence.check()
        (self._directory / names.COMPLETE_FILE).unlink(missing_ok=True)

    def close(self, complete: Complete) -> None:
        """The run is finished: rank 0 writes the proof of it."""
        with layout.trouble_is_an_end(self._directory):
            self._fence.check()
            self._disk.write(self._directory / names.COMPLETE_FILE, complete.to_json())

    def save(self, state: TrainState, objects: Objects, feed: Randomness, metrics: Mapping[str, float]) -> None:
        """Save everything as of now."""
        own, tensors = self._gather(objects, feed)
        document = {"train": state.to_document(), "seed": torch.initial_seed(), **own}
        steady = self._steady(objects, tensors)
        snapshot = Snapshot(step=state.step, tensors=tensors, document=document, metrics=metrics, steady=steady)
        self._noting(partial(self._checkpointer.save, snapshot))
        self._taken_step = state.step

    def _noting(self, action: Callable[[], None]) -> None:
        """Do it; when it fails, nothing is on its way any more."""
        try:
            action()
        except BaseException:
            self._taken_step = self.durable_step
            raise

    def _steady(self, objects: Objects, tensors: Mapping[str, Tensor]) -> frozenset[str]:
        """What nothing changes before an optimizer steps; the first time, be there when it does."""
        if not self._overlaps:
            return frozenset()
        if not self._hooks:
            self._hooks = [
                optimizer.register_step_pre_hook(lambda *_: self._checkpointer.settle())
                for optimizer in objects.optimizers
            ]
        return frozenset(objects.steady(tensors)) if self._hooks else frozenset()

    def _gather(self, objects: Objects, feed: Randomness) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The JSON of all ranks' objects, and the tensors of this one's."""
        tensors: dict[str, Tensor] = {}
        documents: dict[str, Any] = {}
        parts = self._ranks.together(partial(self._capture, objects, feed, documents, tensors))
        return {"objects": documents, "ranks": parts}, tensors

    def _capture(
        self, objects: Objects, feed: Randomness, documents: dict[str, Any], tensors: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Add this rank's state to `documents` and `tensors`. What only this rank has is returned, for rank 0."""
        shared, shared_tensors = objects.capture()
        own = {"rng": feed.rng(), "epoch_rng": feed.epoch_rng, LOADER: objects.capture_loader()}
        part, part_tensors = codec.split(own, f"rank{self._ranks.rank}")
        documents.update(shared)
        tensors.update(shared_tensors | part_tensors)
        return part  # type: ignore[no-any-return]

    def peek(self, name: str) -> Any:
        """The state that one object has in the checkpoint that `restore` will take; None when there is none."""
        checkpoint = self._find()
        if checkpoint is None:
            return None
        states: list[Any] = []
        self._ranks.together(lambda: states.append(_state_of(checkpoint, name)))
        return states[0]

    def _find(self) -> Checkpoint | None:
        """The newest good checkpoint, here or in the mirror. It is looked for once."""
        if not self._has_looked:
            self._found = newest_good(self._directory, self._ranks)
            if self._fetch is not None:
                there = None if self._found is None else self._found.manifest.step
                if self._ranks.on_main(partial(self._fetch, there)) is not None:
                    self._found = newest_good(self._directory, self._ranks)
            self._has_looked = True
        return self._found

    def restore(self, objects: Objects) -> tuple[Restored, TrainState, Resume] | None:
        """Put the newest good checkpoint into the objects; None when there is none.

        Raises:
            BadConfig: the checkpoint is good, but it is not one of these objects.
        """
        checkpoint = self._find()
        if checkpoint is None:
            return None
        state, resume = self._ranks.together(partial(self._load, checkpoint, objects))[self._ranks.rank]
        self._restored_step = state.step
        restored = Restored(
            step=state.step,
            attempt=checkpoint.manifest.attempt,
            folder=checkpoint.folder,
            training_seconds=state.training_seconds,
            metrics=checkpoint.manifest.metrics,
        )
        return restored, state, resume

    def _load(self, checkpoint: Checkpoint, objects: Objects) -> tuple[TrainState, Resume]:
        load = partial(load_tensors, checkpoint)
        document = read_document(checkpoint.folder)
        state = TrainState.from_document(document["train"])
        part = self._part_of_this_rank(document["ranks"])
        try:
            objects.restore(document["objects"] | {LOADER: part[LOADER]}, load)
        except ValueError as error:
            raise BadConfig(f"{checkpoint.folder} cannot be resumed from: {error}") from error
        is_own = self._ranks.rank < len(document["ranks"])
        tensors = load(dict.fromkeys(codec.keys([part["rng"], part["epoch_rng"]])))
        return state, Resume(
            rng=codec.join(part["rng"], tensors.__getitem__) if is_own else None,
            epoch_rng=codec.join(part["epoch_rng"], tensors.__getitem__) if is_own else None,
            derive=partial(rng.derive, seed=document["seed"], step=state.step, rank=self._ranks.rank),
        )

    def _part_of_this_rank(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """What this rank had to itself. In a world of another size, rank 0's loader speaks for all of them."""
        part = parts[min(self._ranks.rank, len(parts) - 1)]
        return part if len(parts) == self._ranks.world_size else part | {LOADER: parts[0][LOADER]}


def _state_of(checkpoint: Checkpoint, name: str) -> Any:
    document = read_document(checkpoint.folder)["objects"].get(name)
    return codec.join(document, load_tensors(checkpoint, dict.fromkeys(codec.keys(document))).__getitem__)
