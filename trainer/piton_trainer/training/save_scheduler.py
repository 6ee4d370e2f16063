"""The saves of one attempt: when one is due, who hears of it, and what becomes of one that the volume does not take.

    status, is_due -> advance -> save_if_due …… durable: announced to the callbacks
                           |
                           the volume fails: put off, as long as patience lasts; what the end needs is insisted on

It must not know loops, batches and why a training ends: `steps` says when a boundary is, and when the last one.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from piton.contract.assignment import SavePolicy
from piton.contract.manifest import Complete
from piton.contract.progress import CHECKPOINT_INTERVAL_SECONDS, CHECKPOINT_STALL_SECONDS
from piton_trainer.checkpoint import Saved, SaveStatus
from piton_trainer.checkpoint.save_interval import Choice, Interval
from piton_trainer.checkpoint.volume_health import BACKOFF_SECONDS, Trouble, Troubles, VolumeHealth
from piton_trainer.clock import Clock
from piton_trainer.errors import Diverged, VolumeLost
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state.data_position import Randomness
from piton_trainer.state.tracked_objects import EMA, MODEL, TrackedObjects
from piton_trainer.state.train_state import TrainState
from piton_trainer.telemetry.metrics import ObjectiveMetrics
from piton_trainer.telemetry.telemetry import Telemetry
from piton_trainer.training.run_checkpoint import RunCheckpointer
from piton_trainer.training.signals import StopFlag

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SaveInputs:
    """The state to save."""

    state: TrainState
    objects: TrackedObjects
    feed: Randomness
    measured: ObjectiveMetrics


class SaveScheduler:
    """All ranks call each method together, except `status`, and `is_due`, which is rank 0's to decide."""

    def __init__(
        self,
        policy: SavePolicy,
        *,
        ranks: Ranks,
        store: RunCheckpointer,
        telemetry: Telemetry,
        signals: StopFlag,
        clock: Clock,
    ) -> None:
        self._ranks = ranks
        self._store = store
        self._telemetry = telemetry
        self._signals = signals
        self._clock = clock
        self._watch = VolumeHealth(clock, patience_seconds=policy.patience_seconds)
        telemetry.set_up(self._watch)
        self._interval = Interval(policy)
        self._reported_choice: Choice | None = None
        self._stall: float | None = None
        """Seconds for which training stood still for the newest save."""
        self._is_prepared = self._is_postponed = False
        self._has_failed = False
        """True if the save in flight has failed since the ranks agreed on a save: the back-off counts from then."""
        self._announced: Saved | None = None

    def begin(self, state: TrainState, *, interruptions: int, now: float) -> None:
        """The steps begin; so many attempts have ended since the checkpoint was made that this one resumes from."""
        self._interval.begin(state.evidence.interrupted(interruptions), now=now)

    def status(self) -> SaveStatus:
        """Return this rank's status of the save in flight. Each rank calls it on its own."""
        return self._store.status()

    def advance(self, status: SaveStatus) -> None:
        """Go on with the save in flight, by the status that the ranks have agreed on."""
        self._has_failed = not self._tolerate(partial(self._store.advance, status))
        if self._ranks.is_main:
            self._watch.look(in_flight=self._store.in_flight)

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self._interval.stepped(seconds)
        self._announce()

    def is_due(self, step: int, *, is_last: bool) -> bool:
        """True if this step should be saved."""
        by_interval = self._interval.is_due(step, now=self._clock.monotonic())
        if self._watch.is_stuck:
            return not self._watch.holds_back
        return by_interval or self._telemetry.checkpoint_requested or self._is_postponed or is_last

    def save_if_due(self, trained: SaveInputs, *, is_due: bool, is_best: bool) -> None:
        """Save, or get ready for it. One save at a time: a periodic one begins once the one before is durable."""
        is_due = is_due and not self._has_failed
        self._is_postponed = is_due and self._store.in_flight and not is_best
        if is_best or (is_due and not self._is_postponed):
            self._tolerate(partial(self._save, trained))
        elif not self._is_prepared:
            # After the first step there is all that will be saved: an optimizer has no momenta before.
            self._is_prepared = True
            self._store.prepare(trained.objects, trained.feed)

    def postpone(self, step: int, *, is_due: bool, is_best: bool) -> None:
        """Leave a save that is due to the next boundary: gradients wait for an optimizer's step."""
        self._is_postponed = self._is_postponed or (is_due and not self._has_failed)
        if is_best and self._ranks.is_main:
            logger.warning(
                "the objective is best at step %d, but gradients wait for an optimizer's step there, so these weights "
                "are not saved; evaluate after a step",
                step,
            )

    def save_final(self, trained: SaveInputs, *, is_stopping: bool = False) -> None:
        """Save this step, durably, or end."""
        if not is_stopping:
            trained.measured.warn_without_objective()
        # What befell the save before is no reason not to try.
        self._tolerate(self._settle)
        self._retry(partial(self._save_durably, trained, is_finished=not is_stopping), is_stopping=is_stopping)

    def close(self, complete: Complete) -> None:
        """Write the proof that the run is finished."""
        self._retry(partial(self._ranks.on_main, partial(self._store.close, complete)))

    def diverged(self, trained: SaveInputs) -> Diverged:
        """The end of a training that has nothing worth saving any more."""
        self._tolerate(self._settle)
        cause = trained.measured.divergence(on_device=True) or "the loss of a rank, or a weight, is not a finite number"
        return Diverged(
            f"{cause}, at step {trained.state.step}; the newest checkpoint is of step {self._store.durable_step}"
        )

    def metrics(self) -> dict[str, float]:
        """Return metrics on the chosen interval, the cost of a save, and the state of the volume."""
        choice = self._interval.choice
        interval = {} if choice is None else {CHECKPOINT_INTERVAL_SECONDS: round(choice.seconds, 1)}
        stall = {} if self._stall is None else {CHECKPOINT_STALL_SECONDS: round(self._stall, 4)}
        return interval | stall | self._watch.metrics()

    def report_interval(self) -> None:
        """Tell whoever listens how often saves are made, when that has changed."""
        choice = self._interval.choice
        if choice is None or choice is self._reported_choice:
            return
        self._reported_choice = choice
        self._telemetry.interval_changed(choice)

    def _save(self, trained: SaveInputs, *, is_finished: bool = False) -> None:
        """Save this step, unless that is done already. A diverged state is never saved.

        One loss that is not finite is no divergence, if the weights are: then the step was left out.
        """
        state = trained.state
        if self._store.taken_step == state.step:
            return
        measured = trained.measured
        words = [measured.has_diverged(on_device=True), measured.losses_not_finite(on_device=True) > 0]
        diverged, doubtful = self._ranks.agree([float(word) for word in words])
        if not diverged and doubtful:
            weights = trained.objects.modules(MODEL, EMA).values()
            diverged = self._ranks.agree([float(not all(map(_is_finite, weights)))])[0]
        if diverged:
            raise self.diverged(trained)
        began, waited = self._clock.monotonic(), self._store.in_flight
        state.evidence = self._interval.evidence(now=began)
        metrics = trained.measured.to_save()
        self._store.save(state, trained.objects, trained.feed, metrics, is_finished=is_finished)
        ended = self._clock.monotonic()
        self._interval.saved(state.step, began=began, ended=ended, waited=waited)
        self._is_prepared = True
        self._stall = ended - began
        self._telemetry.save_began(stall_seconds=self._stall)
        self._announce()

    def _save_durably(self, trained: SaveInputs, *, is_finished: bool) -> None:
        self._save(trained, is_finished=is_finished)
        self._settle()

    def _settle(self) -> None:
        """Wait for the save on its way."""
        self._store.wait()
        self._announce()

    def _announce(self) -> None:
        """Tell whoever listens of a checkpoint that has become durable."""
        saved = self._store.saved
        if saved is None or saved is self._announced:
            return
        self._announced = saved
        self._interval.durable(saved.step, now=self._clock.monotonic())
        if self._ranks.is_main:
            self._watch.saved(saved)
        self._telemetry.saved(saved, timestamp=self._clock.now().timestamp())

    def _tolerate(self, action: Callable[[], None]) -> bool:
        """Do what may fail because of the volume; training goes on without, for a while. Return False if it failed."""
        try:
            action()
        except Troubles as trouble:
            self._defer(trouble)
            return False
        return True

    def _retry(self, action: Callable[[], None], *, is_stopping: bool = False) -> None:
        """Do what the end needs; while the volume is away, again and again as long as there is time."""
        while True:
            try:
                return action()
            except VolumeLost as trouble:
                stop = self._ranks.agree([is_stopping or self._signals.received is not None])[0] > 0
                self._defer(trouble, is_stopping=stop)
                self._clock.sleep(BACKOFF_SECONDS)

    def _defer(self, trouble: Trouble, *, is_stopping: bool = False) -> None:
        """Training goes on without a save; or it does not, on all ranks alike."""
        step = self._store.durable_step
        self._ranks.on_main(partial(self._watch.failed, trouble, durable_step=step, is_stopping=is_stopping))


@torch.no_grad()
def _is_finite(module: nn.Module) -> bool:
    """True if everything that is trained is finite on this rank, and no statistic is NaN; a mask may be infinite."""
    trained = (torch.isfinite(_local(weight)).all() for weight in module.parameters() if weight.requires_grad)
    statistics = (~torch.isnan(_local(buffer)).any() for buffer in module.buffers() if buffer.is_floating_point())
    return all(bool(is_good) for is_good in (*trained, *statistics))


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part, in a type that can be asked."""
    part = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part if part.element_size() > 1 else part.float()
