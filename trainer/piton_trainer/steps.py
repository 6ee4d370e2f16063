"""The steps of one attempt, and the boundary between two of them.

    begin -> [ batch -> the user's step -> boundary ]* -> finish
                                           |
                                           agree -> judge -> save if due -> report -> end, stop, or go on

Everything that this process has done so far is known here; the session around it opens and closes the doors.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

from torch import Generator, Tensor

from piton.contract import start
from piton.contract.ends import Outcome, Termination
from piton.contract.manifest import Complete
from piton.contract.progress import CHECKPOINT_INTERVAL_SECONDS, Progress
from piton_trainer.audience import Audience
from piton_trainer.boundary import Rehearsal, Word, fraction_done, reason_to_end
from piton_trainer.checkpoint import Saved
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.digest import weights_digest
from piton_trainer.distributed import Ranks
from piton_trainer.errors import Diverged, Ended, Stopped, VolumeLost
from piton_trainer.feed import Feed, Randomness, Resume, length_of
from piton_trainer.interval import Choice, Interval
from piton_trainer.metrics import LOSS, Metrics
from piton_trainer.objects import EMA, MODEL, Objects, Stateful
from piton_trainer.progress import progress_of
from piton_trainer.signals import StopFlag
from piton_trainer.startup import Startup
from piton_trainer.state import TrainState
from piton_trainer.store import Restored, Store
from piton_trainer.trouble import BACKOFF_SECONDS, Trouble, Troubles, Watch
from piton_trainer.usage import Usage


class Steps:
    """What is trained, and how far."""

    def __init__(
        self,
        config: Config,
        *,
        ranks: Ranks,
        store: Store,
        audience: Audience,
        signals: StopFlag,
        clock: Clock,
        startup: Startup,
    ) -> None:
        self.state = TrainState()
        self.complete: Complete | None = None
        self.has_begun = False
        self._config = config
        self._assignment = config.assignment
        self._rehearsal = None if config.rehearsal is None else Rehearsal(steps=config.rehearsal)
        self._ranks = ranks
        self._store = store
        self._audience = audience
        self._signals = signals
        self._clock = clock
        self._startup = startup
        self._watch = Watch(clock, patience_seconds=config.assignment.save.patience_seconds)
        audience.watch(self._watch)
        self._metrics = Metrics()
        self._usage = Usage(ranks.device)
        self._objects: Objects | None = None
        self._feed: Randomness | None = None
        self._resume: Resume | None = None
        self._restored: Restored | None = None
        self._total: int | None = None
        self._started = (0, 0.0)
        self._inside_step = False
        self._has_diverged = False
        self._end: Ended | None = None
        self._interval = Interval(config.assignment.save)
        self._told: Choice | None = None
        self._lap = self._waited = 0.0
        self._is_prepared = self._is_postponed = False
        self._announced: Saved | None = None

    @property
    def fraction(self) -> float:
        """How much of the training is done, from 0 to 1."""
        return fraction_done(self.state, self._assignment, self._total)

    @property
    def last_step(self) -> int | None:
        """The step that a rehearsal ends with; None in earnest."""
        return None if self._rehearsal is None else self._rehearsal.last

    def restore(self, objects: Mapping[str, Any]) -> Restored | None:
        """Take the user's objects, and put the newest good checkpoint into them."""
        self._objects = Objects(objects)
        self._startup.lap(start.MODEL)
        found = self._store.restore(self._objects)
        self._startup.lap(start.CHECKPOINT)
        if found is not None:
            self._restored, self.state, self._resume = found
        return self._restored

    def report(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Take the metrics of the step under way."""
        self._metrics.report(metrics)

    def peek(self, name: str) -> Any:
        """The state of one object in the checkpoint that `restore` will take."""
        return self._store.peek(name)

    def run(self, loader: Iterable[Any], *, epochs: int, total: int | None) -> Iterator[Any]:
        """The batches that are left, with a boundary after each."""
        with self._remembering_the_end():
            yield from self._batches(loader, epochs, total)

    def begin(self, randomness: Randomness, *, total: int | None, step: int) -> bool:
        """Somebody else's loop begins; whether there is anything left for it to do."""
        self._refuse_misuse()
        if self._restored is None:
            self.state.step = step
        with self._remembering_the_end():
            return self._begin(randomness, total)

    def boundary(self, *, ended: str | None) -> bool:
        """A step of somebody else's loop is done; whether the training is."""
        self.state.ended = ended
        with self._remembering_the_end():
            return self._is_over()

    def randomness(self, generators: Sequence[Generator]) -> Randomness:
        """The random numbers for somebody else's loop."""
        return Randomness(generators, self._resume)

    @contextmanager
    def _remembering_the_end(self) -> Iterator[None]:
        try:
            yield
        except Ended as end:
            self._end = end
            raise

    def _batches(self, loader: Iterable[Any], epochs: int, total: int | None) -> Iterator[Any]:
        self._refuse_misuse()
        feed = self._feed_of(loader)
        if not self._begin(feed, self._steps_left(length_of(loader), epochs) if total is None else total):
            return
        for _ in range(self.state.position.epoch, epochs) if total is None else count():
            for batch in feed.epoch():
                self._waited = self._clock.monotonic() - self._lap
                self._inside_step = True
                yield batch
                self._inside_step = False
                if self._is_over():
                    return
        self._finish("all steps are done")

    def conclude(self) -> None:
        """The user's block is done, and so is the training, whether or not all steps were taken: write the proof."""
        if self._end is not None:
            # The script has caught what was meant to end it; that does not make the run a finished one.
            raise self._end
        if self.complete is None:
            # The loop was left by `break`; as far as anybody can tell, its body had done its work by then.
            self.state.step += self._inside_step
            self.state.ended = "the script ended its loop"
            self._finish(self.state.ended)
        assert self.complete is not None
        self._insist(partial(self._ranks.on_main, partial(self._store.close, self.complete)))

    def progress(self, *, finished: bool = False) -> Progress:
        """A report of this moment."""
        return progress_of(
            self.state,
            assignment=self._assignment,
            total=self._total,
            started=self._started,
            durable_step=self._store.durable_step,
            resumed_from=None if self._restored is None else self._restored.step,
            metrics=self._metrics.read_all()
            | self._audience.lag
            | self._interval_metrics()
            | self._watch.metrics()
            | self._usage.metrics()
            | start.to_metrics(self._startup.seconds),
            now=self._clock.now(),
            finished=finished,
        )

    def _interval_metrics(self) -> dict[str, float]:
        """How often saves are made, where nobody has said it."""
        choice = self._interval.choice
        return {} if choice is None else {CHECKPOINT_INTERVAL_SECONDS: round(choice.seconds, 1)}

    def termination(self, outcome: Outcome, detail: str) -> Termination:
        """The last message, for an end of this kind."""
        finished = self.complete if outcome is Outcome.FINISHED else None
        return Termination(
            outcome=outcome,
            step=self.state.step,
            checkpoint_step=self._store.durable_step,
            resumed_from=None if self._restored is None else self._restored.step,
            weights_digest=finished.weights_digest if finished else None,
            best_step=self.state.best_step,
            best_metric=self.state.best_metric,
            detail=finished.reason if finished else detail,
        )

    def _begin(self, feed: Randomness, total: int | None) -> bool:
        """Get ready for the first step; whether there is anything left to train."""
        self._startup.lap(start.MODEL)
        self._feed, self._total = feed, total
        if len(set(self._ranks.gather(self._total))) > 1:
            raise ValueError("the ranks have loaders of different lengths; give each the same number of batches")
        self.has_begun = True
        self._started = (self.state.step, self.state.training_seconds)
        self._lap = self._clock.monotonic()
        # Whichever attempt made the checkpoint, it and those after it have ended since.
        ended = self._store.attempt - (1 if self._restored is None else self._restored.attempt)
        self._interval.begin(self.state.evidence.interrupted(ended), now=self._lap)
        if ending := self._reason_to_end():
            self._finish(ending)
            return False
        if self._agree().stop:
            raise self._stopped()
        self._ranks.on_main(self._store.reopen)
        return True

    def _refuse_misuse(self) -> None:
        if self.has_begun:
            raise ValueError("session.steps() is called once; for more epochs say session.steps(loader, epochs=3)")
        if self._objects is None:
            raise ValueError("call session.restore(model=..., optimizer=...) first, so that there is something to save")

    def _feed_of(self, loader: Iterable[Any]) -> Feed:
        assert self._objects is not None
        is_given = self._objects.is_given(loader)
        if isinstance(loader, Stateful) and not is_given:
            raise ValueError("this loader has state; name it in session.restore(loader=...) too")
        return Feed(loader, self.state.position, replay=not is_given, resume=self._resume)

    def _steps_left(self, length: int | None, epochs: int) -> int | None:
        """The step at which the epochs are done."""
        if length is None:
            return None
        position = self.state.position
        return self.state.step + max(0, (epochs - position.epoch) * length - position.batch)

    def _is_over(self) -> bool:
        """The boundary after a step: agree, judge, save if due; then end, stop, or report and go on."""
        self.state.step += 1
        if self._startup.end():
            self._audience.started(self._startup.seconds)
        self._bear(self._store.poll)
        if self._ranks.is_main:
            self._watch.look(in_flight=self._store.in_flight)
        word = self._agree()
        lap, self.state.training_seconds = word.training_seconds - self.state.training_seconds, word.training_seconds
        self._interval.stepped(lap)
        self._announce()
        self._audience.stepped(seconds=lap, waited_seconds=self._waited)
        if word.diverged:
            raise self._diverged()
        is_best = word.value is not None and self._judge(word.value)
        ending = self._reason_to_end()
        # One save at a time. A periodic one begins at the first boundary that finds the one before durable.
        if ending:
            self._finish(ending)
            return True
        if word.stop:
            self._save_at_last(told_to_stop=True)
            raise self._stopped()
        self._is_postponed = word.save and self._store.in_flight and not is_best
        if is_best or (word.save and not self._is_postponed):
            self._bear(self._save)
        elif not self._is_prepared:
            self._prepare()
        self._report()
        self._metrics.next_step()
        self._lap = self._clock.monotonic()
        return False

    def _agree(self) -> Word:
        """Say what this rank has to say, and hear what holds for all."""
        save = self._ranks.is_main and self._save_is_due()
        value = self._evaluation(save and not self._store.in_flight) if self._ranks.is_main else None
        lap = self._clock.monotonic() - self._lap
        word = Word(
            stop=self._signals.received is not None or (self._ranks.is_main and self._stop_is_wished()),
            save=save,
            diverged=self._has_diverged or self._metrics.not_finite(self._watched, on_device=False) is not None,
            value=value,
            training_seconds=self.state.training_seconds + lap if self._ranks.is_main else 0.0,
        )
        return Word.from_vector(self._ranks.agree(word.to_vector()))

    def _save_is_due(self) -> bool:
        by_interval = self._interval.is_due(self.state.step, now=self._clock.monotonic())
        if self._watch.is_stuck:
            return not self._watch.holds_back
        wished = self._audience.wishes_checkpoint
        return by_interval or wished or self._is_postponed or self.state.step == self._total

    def _reason_to_end(self) -> str | None:
        if self.last_step is not None and self.state.step >= self.last_step:
            return "the rehearsal is over"
        return reason_to_end(self.state, self._assignment, self._total)

    def _stop_is_wished(self) -> bool:
        if self._rehearsal and self._rehearsal.stops(self.state.step, is_resumed=self._restored is not None):
            return True
        too_late = self._config.stop_at is not None and self._clock.now() >= self._config.stop_at
        return too_late or self._audience.wishes_stop

    def _evaluation(self, save: bool) -> float | None:
        """The objective's value, if it was evaluated in this step. The loss of a batch is not, unless a save is due."""
        objective = self._assignment.objective
        if objective is None or not self._metrics.is_fresh(objective.metric):
            return None
        if objective.metric == LOSS and not save:
            return None
        value = self._metrics.read(objective.metric)
        return value if value is not None and math.isfinite(value) else None

    def _judge(self, value: float) -> bool:
        objective = self._assignment.objective
        return objective is not None and self.state.judge(value, objective)

    @property
    def _watched(self) -> tuple[str, ...]:
        """Metrics without which there is nothing worth saving."""
        objective = self._assignment.objective
        return (LOSS,) if objective is None else (LOSS, objective.metric)

    def _save(self) -> None:
        """Save this step, unless that is done already. A diverged state is never saved."""
        if self._store.taken_step == self.state.step or self._objects is None or self._feed is None:
            return
        bad = self._metrics.not_finite(self._watched, on_device=True) is not None
        if self._ranks.agree([float(bad)])[0]:
            raise self._diverged()
        began, waited = self._clock.monotonic(), self._store.in_flight
        self.state.evidence = self._interval.evidence(now=began)
        self._store.save(self.state, self._objects, self._feed, self._metrics_to_save())
        ended = self._clock.monotonic()
        self._interval.saved(self.state.step, began=began, ended=ended, waited=waited)
        self._is_prepared = True
        self._audience.stood_still(seconds=ended - began)
        self._usage.stood_still(ended - began)
        self._announce()

    def _bear(self, action: Callable[[], None]) -> None:
        """Do what may fail because of the volume; training goes on without, for a while."""
        try:
            action()
        except Troubles as trouble:
            self._put_off(trouble)

    def _put_off(self, trouble: Trouble, *, told_to_stop: bool = False) -> None:
        """Training goes on without a save; or it does not, on all ranks alike."""
        step = self._store.durable_step
        self._ranks.on_main(partial(self._watch.failed, trouble, durable_step=step, told_to_stop=told_to_stop))

    def _save_at_last(self, *, told_to_stop: bool = False) -> None:
        """Save this step, durably, or end."""
        # What befell the save before is no reason not to try.
        self._bear(self._settle)
        self._insist(self._save_durably, told_to_stop=told_to_stop)

    def _save_durably(self) -> None:
        self._save()
        self._settle()

    def _insist(self, action: Callable[[], None], *, told_to_stop: bool = False) -> None:
        """Do what the end needs; while the volume is away, again and again as long as there is time."""
        while True:
            try:
                return action()
            except VolumeLost as trouble:
                stop = self._ranks.agree([told_to_stop or self._signals.received is not None])[0] > 0
                self._put_off(trouble, told_to_stop=stop)
                self._clock.sleep(BACKOFF_SECONDS)

    def _prepare(self) -> None:
        """After the first step there is all that will be saved: an optimizer has no momenta before."""
        self._is_prepared = True
        if self._objects is not None and self._feed is not None:
            self._store.prepare(self._objects, self._feed)

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
        self._audience.saved(saved, timestamp=self._clock.now().timestamp())

    def _metrics_to_save(self) -> dict[str, float]:
        """The metrics that belong to this state: an objective from an earlier step does not."""
        objective = self._assignment.objective
        metrics = self._metrics.read_all()
        if objective is not None and not self._metrics.is_fresh(objective.metric):
            metrics.pop(objective.metric, None)
        return metrics

    def _finish(self, reason: str) -> None:
        self._save_at_last()
        assert self._objects is not None
        self.complete = Complete(
            attempt=self._store.attempt,
            step=self.state.step,
            weights_digest=weights_digest(self._objects.modules(MODEL, EMA)),
            best_step=self.state.best_step,
            best_metric=self.state.best_metric,
            reason=reason,
        )

    def _report(self) -> None:
        self._tell_interval()
        now = self._clock.monotonic()
        if due := self._audience.due(now):
            progress = self.progress()
            for listener in due:
                listener.post(progress, now)
            # The report has read what was still on the device; only this rank knows it, so it says so at the next step.
            self._has_diverged = self._metrics.not_finite(self._watched, on_device=True) is not None

    def _tell_interval(self) -> None:
        choice = self._interval.choice
        if choice is None or choice is self._told:
            return
        self._told = choice
        self._audience.chosen(choice)

    def _stopped(self) -> Stopped:
        received, step = self._signals.received, self._store.durable_step
        cause = "the server, the clock or another rank" if received is None else received.name
        return Stopped(
            f"told to stop by {cause}; " + ("nothing was trained yet" if step is None else f"step {step} is saved")
        )

    def _diverged(self) -> Diverged:
        self._bear(self._settle)
        names = " or ".join(self._watched)
        return Diverged(
            f"{names} is not a finite number at step {self.state.step}; "
            f"the newest checkpoint is of step {self._store.durable_step}"
        )
