"""The steps of one attempt, and the boundary between two of them.

    begin -> [ batch -> the user's step -> boundary ]* -> finish
                                           |
                                           agree -> judge -> save if due -> report -> end, stop, or go on

This class holds the progress of this process. The session around it opens and closes everything; `save_scheduler`
follows the saves. While gradients are accumulated, nothing is saved and nothing stops: both wait for the next boundary
after an optimizer step.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

from torch import Generator

from piton.contract import InputError, startup_phases
from piton.contract.manifest import LEFT_BY_BREAK, LEFT_ON_PURPOSE, Complete
from piton.contract.progress import Progress
from piton.contract.termination import Outcome, Termination
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.errors import Ended, Stopped
from piton_trainer.hangs.heartbeats import Heartbeats, RankPhase
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state.data_position import Randomness, Resume
from piton_trainer.state.tracked_objects import EMA, MODEL, TrackedObjects
from piton_trainer.state.train_state import TrainState
from piton_trainer.state.weights_digest import weights_digest
from piton_trainer.telemetry.memory_usage import peaks_of
from piton_trainer.telemetry.metrics import ObjectiveMetrics
from piton_trainer.telemetry.progress import progress_of
from piton_trainer.telemetry.telemetry import Telemetry
from piton_trainer.training.boundary import BoundaryVote, reason_to_end
from piton_trainer.training.data_rules import DataRules, Feeding
from piton_trainer.training.gradient_accumulation import Gradients
from piton_trainer.training.run_checkpoint import RunCheckpointer
from piton_trainer.training.run_restore import RestoredRun
from piton_trainer.training.save_scheduler import SaveInputs, SaveScheduler
from piton_trainer.training.signals import StopFlag
from piton_trainer.training.startup import Startup
from piton_trainer.training.stop_requests import StopRequests


class Steps:
    """The steps of an attempt: what is trained, and how far."""

    def __init__(
        self,
        config: Config,
        *,
        ranks: Ranks,
        store: RunCheckpointer,
        telemetry: Telemetry,
        signals: StopFlag,
        clock: Clock,
        startup: Startup,
        beats: Heartbeats,
    ) -> None:
        self.state = TrainState()
        self.complete: Complete | None = None
        self.has_begun = self.leaves_on_purpose = False
        self._config = config
        self._ranks = ranks
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self._startup = startup
        self._beats = beats
        self.stops = StopRequests(config, ranks=ranks, telemetry=telemetry, signals=signals, clock=clock)
        self._saves = SaveScheduler(
            config.assignment.save, ranks=ranks, store=store, telemetry=telemetry, signals=signals, clock=clock
        )
        self.measured = ObjectiveMetrics(config.assignment.objective, warns=ranks.is_main)
        self._data = DataRules(config, ranks)
        self._objects: TrackedObjects | None = None
        self._trained: SaveInputs | None = None
        self._resume: Resume | None = None
        self._restored: RestoredRun | None = None
        self._gradients: Gradients | None = None
        self._total: int | None = None
        self._started = (0, 0.0)
        self._inside_step = self._has_diverged = False
        self._end: Ended | None = None
        self._lap = self._waited = 0.0

    @property
    def fraction(self) -> float:
        """The fraction of the training that is done, 0 to 1."""
        return self.state.fraction_done(self._config.assignment, self._total)

    def restore(self, objects: Mapping[str, Any], *, per_rank: bool = False) -> RestoredRun | None:
        """Take the user's objects, and put the newest good checkpoint into them."""
        self._objects = TrackedObjects(self._data.take(objects), per_rank=per_rank)
        self._startup.lap(startup_phases.MODEL)
        found = self._store.restore(self._objects)
        self._startup.lap(startup_phases.CHECKPOINT)
        if found is not None:
            self._restored, self.state, self._resume = found
        return self._restored

    def run(self, loader: Iterable[Any], feeding: Feeding, *, accumulate: int | None) -> Iterator[Any]:
        """The batches that are left, with a boundary after each."""
        self._refuse_misuse()
        assert self._objects is not None
        if accumulate is not None and accumulate < 1:
            raise InputError(f"accumulate={accumulate}: the number of batches that make a step is at least 1")
        watched = Gradients.watched(self._objects.optimizers, self._objects.wrapped_optimizers, accumulate=accumulate)
        with self._recording_end(), watched as self._gradients:
            yield from self._batches(loader, feeding, self._gradients)

    def begin(
        self, generators: Sequence[Generator], loaders: Sequence[object], feeding: Feeding, *, step: int
    ) -> Randomness | None:
        """Begin the steps of a loop that is not ours; return its random numbers, or None if no step is left."""
        self._refuse_misuse()
        if self._restored is None:
            self.state.step = step
        randomness = self._data.randomness(generators, loaders, feeding, state=self.state, resume=self._resume)
        with self._recording_end():
            return randomness if self._begin(randomness, feeding.total) else None

    def boundary(self, *, ended: str | None, total: int | None) -> bool:
        """A step of somebody else's loop is done; whether the training is."""
        self.state.ended, self._total = ended, self._total if total is None else total
        with self._recording_end():
            return self._finish_step()

    @contextmanager
    def _recording_end(self) -> Iterator[None]:
        try:
            yield
        except GeneratorExit:  # the loop is left by `break`
            if self._objects is not None:
                self._objects.leave_loop()
            raise
        except Ended as end:
            self._end = end
            raise

    def _batches(self, loader: Iterable[Any], feeding: Feeding, gradients: Gradients) -> Iterator[Any]:
        assert self._objects is not None
        is_given = self._objects.is_given(loader)
        feed = self._data.feed(loader, feeding, is_given=is_given, state=self.state, resume=self._resume)
        epochs, total, left = feeding.epochs, feeding.total, feed.steps_left(feeding.epochs)
        end = total if total is not None or left is None else self.state.step + left
        if not self._begin(feed, end):
            return
        for _ in range(self.state.position.epoch, epochs) if total is None else count():
            for batch in feed.epoch():
                self._waited = self._clock.monotonic() - self._lap
                self._beats.begin_step()
                self._inside_step = True
                gradients.next_batch()
                left = feed.steps_left(epochs)
                if total is None and self._total is not None and left is not None:
                    self._total = max(self._total, self.state.step + 1 + left)
                yield batch
                self._inside_step = False
                if self._finish_step():
                    return
        self._finish("all steps are done")

    def conclude(self) -> None:
        """The user's block is done, and so is the training, whether or not all steps were taken: write the proof."""
        if self._end is not None:
            # The script has caught what was meant to end it; that does not make the run a finished one.
            raise self._end
        if self.complete is None:
            # As far as anybody can tell, the body of the loop had done its work when it was left by `break`.
            self.state.step += self._inside_step
            self.state.ended = LEFT_ON_PURPOSE if self._ranks.agree([self.leaves_on_purpose])[0] else LEFT_BY_BREAK
            self._finish(self.state.ended)
        assert self.complete is not None
        self._await_mirror()
        self._saves.close(self.complete)

    def _await_mirror(self) -> None:
        """A run whose last checkpoint is not in its bucket is not finished."""
        if self._config.assignment.mirror is None:
            return
        if not self._ranks.await_main(partial(self._telemetry.finish_mirror, self.is_asked_to_stop)):
            raise self._stopped()

    def progress(self, *, finished: bool = False) -> Progress:
        """A report of this moment."""
        return progress_of(
            self.state,
            assignment=self._config.assignment,
            total=self._total,
            started=self._started,
            durable_step=self._store.durable_step,
            resumed_from=None if self._restored is None else self._restored.step,
            previous=self._store.previous_end,
            mirror_refusal=self._telemetry.mirror_refusal,
            resume_warning=self._store.warning,
            metrics=self.measured.read_all()
            | self._telemetry.mirror_metrics
            | self._saves.metrics()
            | peaks_of(self._ranks.device)
            | startup_phases.to_metrics(self._startup.seconds),
            now=self._clock.now(),
            complete=self.complete if finished else None,
            session=self._config.session,
        )

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
        assert self._objects is not None
        self._startup.lap(startup_phases.MODEL)
        self._trained = SaveInputs(state=self.state, objects=self._objects, feed=feed, measured=self.measured)
        self._total = total
        if len(set(self._ranks.gather(self._total))) > 1:
            raise InputError("the ranks have loaders of different lengths; give each the same number of batches")
        self.has_begun = True
        # Not before: a script that freezes a network in each step wraps it in DDP as it makes it.
        for line in self._objects.freeze_as(self._resume.frozen) if self._resume else ():
            self._data.tell(line)
        self._started = (self.state.step, self.state.training_seconds)
        self._lap = self._clock.monotonic()
        # Whichever attempt made the checkpoint, it and those after it have ended since.
        ended = self._store.attempt - (1 if self._restored is None else self._restored.attempt)
        self._saves.begin(self.state, interruptions=ended, now=self._lap)
        if ending := self._reason_to_end():
            self._finish(ending)
            return False
        if self._agree().stop:
            raise self._stopped()
        self._ranks.on_main(self._store.reopen)
        return True

    def _refuse_misuse(self) -> None:
        if self.has_begun:
            raise InputError("session.steps() is called once; for more epochs say session.steps(loader, epochs=3)")
        if self._objects is None:
            raise InputError("call session.restore(model=..., optimizer=...) first, so that there is something to save")

    def _finish_step(self) -> bool:
        """The boundary after a step: agree, judge, save if due; then end, stop, or report and go on."""
        self.state.step += 1
        if self._startup.end():
            self._telemetry.started(self._startup.seconds)
            self._beats.watch_compiles()
        vote = self._agree()
        with self._beats.during(RankPhase.SAVING):
            self._saves.advance(vote.in_flight)
        self._beats.stepped(self.state.step, durable_step=self._store.durable_step)
        self._total = vote.total
        lap, self.state.training_seconds = vote.training_seconds - self.state.training_seconds, vote.training_seconds
        self._saves.stepped(lap)
        self._telemetry.stepped(seconds=lap, waited_seconds=self._waited)
        if vote.diverged:
            raise self._saves.diverged(self._begun)
        objective = self._config.assignment.objective
        is_best = vote.value is not None and objective is not None and self.state.judge(vote.value, objective)
        if ending := self._reason_to_end():
            self._finish(ending)
            return True
        if vote.accumulating:
            assert self._gradients is not None
            self._gradients.postpone()
            self._saves.postpone(self.state.step, is_due=vote.save, is_best=is_best)
        elif vote.stop:
            self._telemetry.noticed(step=self.state.step)
            self._saves.save_final(self._begun, is_stopping=True)
            raise self._stopped()
        else:
            if self._gradients is not None:
                self._gradients.stepped()
            self._saves.save_if_due(self._begun, is_due=vote.save, is_best=is_best)
        self._report()
        self.measured.next_step()
        self._lap = self._clock.monotonic()
        self._beats.enter(RankPhase.BETWEEN)
        return False

    def _agree(self) -> BoundaryVote:
        """Say what this rank has to say, and hear what holds for all."""
        is_main, step = self._ranks.is_main, self.state.step
        accumulating = self._gradients is not None and self._gradients.wait(step)
        save = is_main and self._saves.is_due(step, is_last=step == self._total)
        in_flight = self._saves.status()
        will_save = save and not accumulating and (in_flight.ends or not self._store.in_flight)
        value = self.measured.evaluation(save=will_save) if is_main else None
        lap = self._clock.monotonic() - self._lap
        vote = BoundaryVote(
            stop=self.is_asked_to_stop(),
            save=save,
            diverged=self._has_diverged or self.measured.has_diverged(on_device=False),
            value=value,
            training_seconds=self.state.training_seconds + lap if is_main else 0.0,
            accumulating=accumulating,
            in_flight=in_flight,
            total=self._total,
        )
        return BoundaryVote.from_vector(self._ranks.agree(vote.to_vector()))

    def _reason_to_end(self) -> str | None:
        if self.stops.last_step is not None and self.state.step >= self.stops.last_step:
            return "the rehearsal is over"
        return reason_to_end(self.state, self._config.assignment, self._total)

    def is_asked_to_stop(self) -> bool:
        """True if this rank knows of a request to stop, which the next boundary grants."""
        self.stops.renew()
        return self.stops.has_any(self.state.step, is_resumed=self._restored is not None)

    @property
    def _begun(self) -> SaveInputs:
        """The inputs of a save, once the steps have begun."""
        assert self._trained is not None
        return self._trained

    def _finish(self, reason: str) -> None:
        trained = self._begun
        self._saves.save_final(trained)
        self.complete = Complete(
            attempt=self._store.attempt,
            step=self.state.step,
            weights_digest=weights_digest(trained.objects.modules(MODEL, EMA)),
            best_step=self.state.best_step,
            best_metric=self.state.best_metric,
            reason=reason,
        )

    def _report(self) -> None:
        self._saves.report_interval()
        if self._telemetry.report_if_due(self._clock.monotonic(), self.progress):
            # The report has read what was still on the device; only this rank knows it, so it says so at the next step.
            self._has_diverged = self.measured.has_diverged(on_device=True)

    def _stopped(self) -> Stopped:
        return self.stops.error(self._store.durable_step)
