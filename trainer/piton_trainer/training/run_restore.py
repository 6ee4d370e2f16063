"""Restores a run from its newest good checkpoint, on the volume or in the mirror; the opposite of `run_checkpoint`."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from piton.contract import InputError, names, startup_phases
from piton.contract.manifest import is_left_by_break
from piton_trainer.checkpoint.format import codec, layout
from piton_trainer.checkpoint.format.retry import Retry
from piton_trainer.checkpoint.load.loader import Loaded, Wanted, load_newest, newest_step
from piton_trainer.checkpoint.load.rank_loader import Document, Targets
from piton_trainer.errors import BadConfig, VolumeLost
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state import rng
from piton_trainer.state.data_position import Resume
from piton_trainer.state.data_shape import DataShape
from piton_trainer.state.tracked_objects import LOADER, TrackedObjects
from piton_trainer.state.train_state import TrainState
from piton_trainer.telemetry.telemetry import Telemetry
from piton_trainer.termination import print_status
from piton_trainer.training.startup import Startup

logger = logging.getLogger(__name__)

T = TypeVar("T")

OBJECTS = "objects"
"""Key of the objects of which each rank has a state of its own, in the JSON of a rank."""
BUFFERS = "buffers"
"""Key of the buffers of modules of which each rank has its own, in the JSON of a rank."""
FROZEN = "frozen"
"""Key of the names of parameters that are not trained, in the JSON of rank 0, or of each rank that has all its own."""

_FRESH_START = (
    "to train from step 0 all the same, annotate the TrainingRun with "
    f"{names.ANNOTATION_ALLOW_FRESH_START}=true, say `piton run --fresh`, or set {names.ENV_ALLOW_FRESH_START}=true"
)


@dataclass(frozen=True, kw_only=True)
class RestoredRun:
    """The checkpoint that a resumed attempt starts from."""

    step: int
    attempt: int
    """The attempt that made the checkpoint."""
    folder: Path
    training_seconds: float
    metrics: Mapping[str, float]


class RunRestorer:
    """Restores a run. All ranks call each method together."""

    def __init__(
        self,
        directory: Path,
        *,
        ranks: Ranks,
        fetch: Callable[[int | None], int | None] | None = None,
        retry: Retry | None = None,
        reported_step: int | None = None,
        allow_fresh_start: bool = False,
        goes_on: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Restore from this directory, and from the mirror if `fetch` is given.

        `reported_step` is the newest step that an earlier attempt has reported as durable. Where there were checkpoints
        and none can be restored, training starts from step 0 only if `allow_fresh_start` says so. `goes_on` says of an
        attempt that has left its loop by `break` whether training goes on.
        """
        self._directory = directory
        self._ranks = ranks
        self._fetch = fetch
        self._retry = retry or Retry()
        self._reported_step = reported_step
        self._allow_fresh_start = allow_fresh_start
        self._goes_on = goes_on

    def peek(self, name: str, *, spare: Tensor | None) -> Any:
        """Return the state that one object has in the checkpoint that `restore` will take; None if there is none."""

        def wanted(document: Document) -> Targets:
            own, keys = prefix_of(document, self._ranks), codec.keys(self._state_of(document, name))
            return Targets(fresh=_with(own, dict.fromkeys(keys)))

        loaded = self._newest(wanted, spare)
        if loaded is None:
            return None
        tensors = _without(prefix_of(loaded.document, self._ranks), loaded.settle())
        return codec.join(self._state_of(loaded.document, name), tensors.__getitem__)

    def restore(
        self, objects: TrackedObjects, *, spare: Tensor | None
    ) -> tuple[RestoredRun, TrainState, Resume] | None:
        """Put the newest good checkpoint into the objects; None if there never was any, and they are untouched.

        `spare` is memory that the load may use.

        Raises:
            BadConfig: the checkpoint is good, but it is not one of these objects.
            VolumeLost: the checkpoints cannot be read, or none that there was is whole any more.
        """
        loaded = self._newest(partial(self._wanted, objects), spare)
        if loaded is None:
            self._ranks.on_main(self._expect_no_checkpoint)
            return None
        state, resume = self._ranks.together(partial(self._settle, loaded, objects))[self._ranks.rank]
        checkpoint = loaded.checkpoint
        self._forget_break(state, checkpoint.manifest.attempt)
        restored = RestoredRun(
            step=state.step,
            attempt=checkpoint.manifest.attempt,
            folder=checkpoint.folder,
            training_seconds=state.training_seconds,
            metrics=checkpoint.manifest.metrics,
        )
        return restored, state, resume

    def _state_of(self, document: Document, name: str) -> Any:
        """Return the state of one object: this rank's, where each has all objects of its own."""
        return (states_of(document, self._ranks) if prefix_of(document, self._ranks) else document["objects"]).get(name)

    def _forget_break(self, state: TrainState, attempt: int) -> None:
        """Forget that the loop was left by `break`, if the user starts the training again."""
        if not is_left_by_break(state.ended) or not self._goes_on(attempt):
            return
        state.ended = None
        if self._ranks.is_main:
            print_status(
                f"the loop was left by break at step {state.step}, and goes on from there; where the end is meant, the "
                "script says so with session.finish()"
            )

    def _expect_no_checkpoint(self) -> None:
        """Make sure that nothing is lost by a start from step 0, unless the user allows it.

        A fence, or a save that was never finished, is no checkpoint.
        """
        folders = self._retry(partial(layout.step_folders, self._directory), self._directory)
        if folders:
            lost = f"none of the {len(folders)} checkpoints in {self._directory} is whole"
        elif self._reported_step is not None:
            lost = f"step {self._reported_step} was saved, and there is no checkpoint in {self._directory} any more"
        else:
            return
        if not self._allow_fresh_start:
            raise VolumeLost(f"{lost}; {_FRESH_START}")
        logger.warning("%s; training starts from step 0, as %s allows", lost, names.ENV_ALLOW_FRESH_START)

    def _newest(self, wanted: Wanted, spare: Tensor | None) -> Loaded | None:
        """Read the newest good checkpoint of the volume, or of the mirror if that has a newer one."""
        load = partial(load_newest, self._directory, self._ranks, wanted, spare=spare, retry=self._retry)
        if self._fetch is None:
            return load()
        there = self._ranks.on_main(partial(newest_step, self._directory, self._retry))
        fetched = self._ranks.await_main(partial(self._fetch, there))
        loaded = load()
        good = None if loaded is None else loaded.checkpoint.manifest.step
        if good != (fetched or there) and self._ranks.await_main(partial(self._fetch, good)) is not None:
            # What looked like the newest is damaged, and the mirror had something better than what was left.
            loaded = load()
        return loaded

    def _wanted(self, objects: TrackedObjects, document: Document) -> Targets:
        part, states = _part_of(document, self._ranks), states_of(document, self._ranks)
        _refuse_weights_of_other_ranks(document, self._ranks)
        _refuse_a_rank_s_own_position(document, objects, self._ranks)
        try:
            targets = objects.wanted(states)
        except ValueError:
            objects.explain(states)
            raise
        own = dict.fromkeys(codec.keys([part["rng"], part["epoch_rng"]]))
        prefix = prefix_of(document, self._ranks)
        live, fresh = _with(prefix, targets.live), _with(prefix, {**targets.fresh, **own})
        return Targets(live=live, fresh=fresh, explain=partial(objects.explain, states))

    def _settle(self, loaded: Loaded, objects: TrackedObjects) -> tuple[TrainState, Resume]:
        document = loaded.document
        state = TrainState.from_document(document["train"])
        part = _part_of(document, self._ranks)
        try:
            prefix = prefix_of(document, self._ranks)
            tensors, dtypes = _without(prefix, loaded.settle()), _without(prefix, loaded.dtypes)
            told = objects.restore(states_of(document, self._ranks), tensors, dtypes)
        except ValueError as error:
            raise BadConfig(f"{loaded.checkpoint.folder} cannot be resumed from: {error}") from error
        told += _strangers(document, self._ranks)
        for line in told if self._ranks.is_main else ():
            logger.warning("%s", line)
        is_own = self._ranks.rank < len(document["ranks"])
        return state, Resume(
            rng=codec.join(part["rng"], tensors.__getitem__) if is_own else None,
            epoch_rng=codec.join(part["epoch_rng"], tensors.__getitem__) if is_own else None,
            derive=partial(rng.derive, seed=document["seed"], step=state.step, rank=self._ranks.rank),
            shapes=_shapes(document, self._ranks),
            draws_late=part.get("data", {}).get("draws_late"),
            is_of_other_ranks=len(document["ranks"]) != self._ranks.world_size,
            has_loader=part[LOADER] is not None,
            frozen=part.get(FROZEN, document["ranks"][0].get(FROZEN, {})),
        )


def fetch_from_mirror(telemetry: Telemetry, startup: Startup, newest: int | None) -> int | None:
    """Restore a checkpoint to the volume that is newer than its step `newest`; return its step, or None.

    From now on the mirror follows the volume. Rank 0 calls it.
    """
    mirror = telemetry.mirror
    assert mirror is not None
    startup.lap(startup_phases.CHECKPOINT)
    fetched = mirror.restore(newest)
    startup.lap(startup_phases.MIRROR)
    if fetched is not None:
        print_status(f"step {fetched} is restored from {mirror.place}")
    present = fetched or newest
    if present is not None:
        mirror.committed(present)
    return fetched


def states_of(document: Document, ranks: Ranks) -> dict[str, Any]:
    """The state of every object as this rank has to restore it.

    Each rank has a loader of its own, and those objects and buffers that differed between ranks. A rank that was not
    there has rank 0's of these, and with another number of ranks all have rank 0's buffers.
    """
    states, parts = document["objects"], document["ranks"]
    part = parts[ranks.rank] if ranks.rank < len(parts) else {}
    buffers = part.get(BUFFERS, {}) if len(parts) == ranks.world_size else {}
    modules = {name: {**states[name], **own} for name, own in buffers.items()}
    return {**states, **modules, **part.get(OBJECTS, {}), LOADER: _part_of(document, ranks)[LOADER]}


def prefix_of(document: Document, ranks: Ranks) -> str:
    """Return what the keys of this rank's tensors begin with, which its states do not say, where it has all its own."""
    parts = document["ranks"]
    is_per_rank = ranks.rank < len(parts) and parts[ranks.rank].get(layout.PER_RANK, False)
    return f"rank{ranks.rank}/{OBJECTS}/" if is_per_rank else ""


def _with(prefix: str, found: Mapping[str, T]) -> dict[str, T]:
    """Return what is found by key with the prefix, except what is the rank's own in any case, such as its loader."""
    rank = prefix.partition("/")[0] + "/"
    return {key if key.startswith(rank) else prefix + key: value for key, value in found.items()}


def _without(prefix: str, found: Mapping[str, T]) -> dict[str, T]:
    """Return what was found by key, with keys that do not begin with the prefix any more."""
    return {key.removeprefix(prefix): value for key, value in found.items()}


def _refuse_weights_of_other_ranks(document: Document, ranks: Ranks) -> None:
    """Say no to weights of another number of ranks, each of which has its own.

    Raises:
        ValueError: the world has another size.
    """
    parts = document["ranks"]
    if len(parts) != ranks.world_size and any(part.get(layout.PER_RANK) for part in parts):
        raise InputError(
            f"it was saved by {len(parts)} ranks, each with weights of its own (per_rank=True), and there are "
            f"{ranks.world_size} now: go on with {len(parts)} ranks"
        )


def _refuse_a_rank_s_own_position(document: Document, objects: TrackedObjects, ranks: Ranks) -> None:
    """Say no to a loader's state that other ranks would repeat or skip data with.

    Raises:
        ValueError: the world has another size, and the loader does not say that this is the same to it.
    """
    parts = document["ranks"]
    if len(parts) == ranks.world_size or parts[0][LOADER] is None or not objects.has_local_position:
        return
    raise InputError(
        f"it was saved by {len(parts)} ranks, there are {ranks.world_size} now, and each rank's loader has a state of "
        f"its own: go on with {len(parts)} ranks, or give the loader a state that counts the data of all ranks "
        "together, and say so with position_is_global = True"
    )


def _strangers(document: Document, ranks: Ranks) -> list[str]:
    """Return what goes on with rank 0's state because the number of ranks is another one."""
    parts = document["ranks"]
    there, here = len(parts), ranks.world_size
    told = []
    if (names := ", ".join(sorted({name for part in parts for name in part.get(OBJECTS, {})}))) and there < here:
        each = f"each of {there} ranks has a state of its own in the checkpoint"
        told += [f"{names}: {each}, and there are {here} ranks now; the new ones go on with rank 0's"]
    if (names := ", ".join(sorted({name for part in parts for name in part.get(BUFFERS, {})}))) and there != here:
        each = f"each of {there} ranks has buffers of its own in the checkpoint"
        told += [f"{names}: {each}, and there are {here} ranks now; all go on with rank 0's"]
    return told


def _shapes(document: Document, ranks: Ranks) -> list[DataShape] | None:
    """Return the shapes of this rank's data at the save; None if other ranks share it, or nobody has written them."""
    parts = document["ranks"]
    if len(parts) != ranks.world_size or "data" not in parts[ranks.rank]:
        return None
    return [DataShape.from_document(shape) for shape in parts[ranks.rank]["data"]["shapes"]]


def _part_of(document: Document, ranks: Ranks) -> dict[str, Any]:
    """Return this rank's own part of the document. With another world size, all ranks use rank 0's loader state."""
    parts: list[dict[str, Any]] = document["ranks"]
    part = parts[min(ranks.rank, len(parts) - 1)]
    return part if len(parts) == ranks.world_size else part | {LOADER: parts[0][LOADER]}
