"""Saves of a run: the objects, the position and the metrics that its checkpoints consist of.

state.json   {"train": TrainState, "seed": rank 0's seed, "objects": {name: JSON}, "ranks": [JSON per rank],
              "recipe": {"name", "config"}, where it is one's}
shards       the tensors that this JSON refers to; those of one rank only are called `rank<n>/…`

`run_state` gathers the last two.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from piton.contract import names
from piton.contract.manifest import Complete
from piton.contract.termination import Outcome, PreviousEnd
from piton_trainer.checkpoint import Checkpointer, Saved, SaveStatus, Snapshot
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.format.retry import Retry
from piton_trainer.checkpoint.load.loader import share_of_newest
from piton_trainer.checkpoint.retention import room_lacks, with_overhead
from piton_trainer.checkpoint.save.blocking_save import size_of
from piton_trainer.checkpoint.save.factory import make_checkpointer
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.errors import Ended, OutOfSpace
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state.data_position import Randomness, Resume
from piton_trainer.state.tracked_objects import TrackedObjects
from piton_trainer.state.train_state import TrainState
from piton_trainer.training.run_restore import RestoredRun, RunRestorer
from piton_trainer.training.run_state import RunState

logger = logging.getLogger(__name__)

_LEAVES_NO_END = frozenset({Outcome.FINISHED, Outcome.FENCED, Outcome.VOLUME_LOST})
"""COMPLETE.json says the first, the volume is another attempt's after the second, and gone after the third."""


def make_run_checkpointer(
    config: Config,
    *,
    ranks: Ranks,
    fence: Fence,
    disk: layout.Disk,
    clock: Clock,
    retry: Retry,
    fetch: Callable[[int | None], int | None] | None,
    overlaps: bool,
    background: bool,
) -> "RunCheckpointer":
    """Return the checkpointer of a run by its configuration. All ranks call it together.

    Args:
        config: the configuration of this process.
        ranks: all processes of the attempt.
        fence: the right to commit.
        disk: the file system; tests replace it.
        clock: source of the time.
        retry: patience with reads of the volume.
        fetch: restores a checkpoint from the mirror that is newer than a step; None: there is no mirror.
        overlaps: True if a save may copy weights beside the forward and backward pass.
        background: True if saves may be written by a process beside the trainer.
    """
    assignment = config.assignment
    checkpointer = make_checkpointer(
        config.checkpoint_dir,
        ranks=ranks,
        fence=fence,
        policy=assignment.save,
        objective=assignment.objective,
        disk=disk,
        clock=clock,
        background=background,
    )
    restorer = RunRestorer(
        config.checkpoint_dir,
        ranks=ranks,
        fetch=fetch,
        retry=retry,
        reported_step=config.durable_step,
        allow_fresh_start=config.allow_fresh_start,
        goes_on=config.goes_on,
    )
    recipe = None if assignment.recipe is None else {"name": assignment.recipe, "config": dict(assignment.config)}
    return RunCheckpointer(
        config.checkpoint_dir,
        ranks=ranks,
        fence=fence,
        checkpointer=checkpointer,
        restorer=restorer,
        disk=disk,
        recipe=recipe,
        overlaps=overlaps,
    )


class RunCheckpointer:
    """Saves and restores the whole of a run. All ranks call each method together."""

    def __init__(
        self,
        directory: Path,
        *,
        ranks: Ranks,
        fence: Fence,
        checkpointer: Checkpointer,
        restorer: RunRestorer,
        disk: layout.Disk,
        recipe: Mapping[str, Any] | None = None,
        overlaps: bool = False,
    ) -> None:
        """Keep a run of this recipe, its `name` and `config`; None: of the user's own program."""
        self._directory = directory
        self._ranks = ranks
        self._fence = fence
        self._checkpointer = checkpointer
        self._disk = disk
        self._origin = {} if recipe is None else {layout.RECIPE: recipe}
        self._restorer = restorer
        self._overlaps = overlaps
        self._hooks: list[RemovableHandle] = []
        self._state = RunState(ranks)
        self._restored_step: int | None = None
        self._taken_step: int | None = None
        self.previous_end = self._read_end() if ranks.is_main else None
        """Rank 0's: how the attempt before ended, if it could still write it."""

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
    def warning(self) -> str | None:
        """A part of the state that would not come back, although the run goes on; None without any."""
        return self._state.warning

    @property
    def in_flight(self) -> bool:
        """True if a save is on its way."""
        return self._checkpointer.in_flight

    @property
    def attempt(self) -> int:
        """The number that this run's process saves under."""
        return self._fence.attempt

    def expect(self) -> None:
        """Get memory for saves like the newest checkpoint, which this attempt will resume from in all likelihood."""
        with suppress(OSError, ValueError):  # whoever loads it will say what is wrong
            self._checkpointer.expect(share_of_newest(self._directory, self._ranks))

    def prepare(self, objects: TrackedObjects, feed: Randomness) -> None:
        """Get ready for saves of these objects.

        Raises:
            OutOfSpace: not even the first of them will fit: better heard now than after hours.
        """
        if self._restored_step is None:
            size = size_of(self._state.gather(objects, feed)[1])
            self._ranks.on_main(partial(self._expect_room, size))
        self._checkpointer.prepare(lambda: self._state.gather(objects, feed)[1])

    def _expect_room(self, size: int) -> None:
        with suppress(OSError):  # a volume in trouble: the first save will say it
            free = self._disk.free_bytes(self._directory)
            if free is None or free >= with_overhead(size) or layout.step_folders(self._directory):
                return
            raise OutOfSpace(
                f"the disk of {self._directory} is too small: {room_lacks('a checkpoint', size, free)}; "
                "nothing of this training could be saved"
            )

    def status(self) -> SaveStatus:
        """Return this rank's status of the save in flight. Each rank on its own."""
        return self._checkpointer.status()

    def advance(self, status: SaveStatus) -> None:
        """Complete the next stage of the save in flight, if the status of all ranks allows it without waiting."""
        self._noting(partial(self._checkpointer.advance, status))
        self._state.look_back(self._checkpointer.durable)

    def wait(self) -> None:
        """Until nothing is in flight."""
        self._noting(self._checkpointer.wait)

    def release(self) -> None:
        """Give back what saving holds. Each rank on its own."""
        self._state.close()
        for hook in self._hooks:
            hook.remove()
        self._checkpointer.close()

    def reopen(self) -> None:
        """The run goes on, even if it was finished before: rank 0 takes COMPLETE.json back."""
        self._fence.check()
        (self._directory / names.COMPLETE_FILE).unlink(missing_ok=True)

    def close(self, complete: Complete) -> None:
        """The run is finished: rank 0 writes the proof of it."""
        with layout.translate_os_errors(self._directory):
            self._fence.check()
            self._disk.write(self._directory / names.COMPLETE_FILE, complete.to_json())

    def leave_end(self, outcome: Outcome) -> None:
        """Let the next attempt know how this one ends: a rank that fails, else rank 0. Each rank on its own.

        A rank that fails is why torchrun stops the others, so its word stays. Where it cannot be written, nothing is
        lost but this.
        """
        failed = outcome in (Outcome.FAILED, Outcome.DEVICE_LOST)
        if outcome in _LEAVES_NO_END or not (failed or self._ranks.is_main):
            return
        end, before = PreviousEnd(attempt=self._fence.attempt, outcome=outcome), self._read_end()
        if before is not None and before.attempt == end.attempt:
            return
        try:
            self._fence.check()
            self._disk.write(self._directory / names.END_FILE, end.to_json())
        except (OSError, ValueError, Ended) as error:
            logger.warning("%s is not written: %s", names.END_FILE, error)

    def _read_end(self) -> PreviousEnd | None:
        with suppress(OSError, UnicodeDecodeError):
            return PreviousEnd.from_json((self._directory / names.END_FILE).read_text(encoding="utf-8"))
        return None

    def save(
        self,
        state: TrainState,
        objects: TrackedObjects,
        feed: Randomness,
        metrics: Mapping[str, float],
        *,
        is_finished: bool = False,
    ) -> None:
        """Save everything as of now.

        Raises:
            BadConfig: nothing could resume from what is saved. A training that is finished is only warned of it.
        """
        own, tensors = self._state.gather(objects, feed, step=state.step, is_finished=is_finished)
        document = {"train": state.to_document(), "seed": torch.initial_seed(), **self._origin, **own}
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

    def _steady(self, objects: TrackedObjects, tensors: Mapping[str, Tensor]) -> frozenset[str]:
        """Return the tensors that do not change before an optimizer steps; the first time, register hooks for it."""
        if not self._overlaps:
            return frozenset()
        if not self._hooks:
            self._hooks = [
                optimizer.register_step_pre_hook(lambda *_: self._checkpointer.settle())
                for optimizer in objects.optimizers
            ]
        return objects.steady(tensors) if self._hooks else frozenset()

    def peek(self, name: str) -> Any:
        """Return the state that one object has in the checkpoint that `restore` will take; None if there is none."""
        return self._restorer.peek(name, spare=self._checkpointer.spare)

    def restore(self, objects: TrackedObjects) -> tuple[RestoredRun, TrainState, Resume] | None:
        """Put the newest good checkpoint into the objects; None if there never was any, and they are untouched.

        Raises:
            BadConfig: the checkpoint is good, but it is not one of these objects.
            VolumeLost: the checkpoints cannot be read, or none that there was is whole any more.
        """
        found = self._restorer.restore(objects, spare=self._checkpointer.spare)
        if found is not None:
            self._restored_step = found[0].step
            self._state.has_resumed = True
        return found
