"""The session around a training loop: restores, saves, reports and stops, on all ranks together.

    enter     signals, process group, fence
    restore   the newest good checkpoint, into the user's objects
    steps     batches; between two of them the boundary: agree, save, report, end or stop
    exit      last save, in the bucket too, COMPLETE.json, termination message

The session knows nothing of models and losses, and it owns no loop: the recipes' loop is its user like anybody's.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from torch import Generator, Tensor

from piton.contract import InputError
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.load import readahead
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig
from piton_trainer.hangs.heartbeats import RankPhase
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state.data_position import Randomness
from piton_trainer.state.data_shape import allowed
from piton_trainer.state.schedules import refuse_unfit_schedules
from piton_trainer.telemetry.callbacks import Callback
from piton_trainer.termination import config_of_environment, print_status
from piton_trainer.training.attempt_services import AttemptServices
from piton_trainer.training.context import RankContext
from piton_trainer.training.data_rules import Feeding
from piton_trainer.training.earlier_sessions import SessionFolder, trained
from piton_trainer.training.run_restore import RestoredRun
from piton_trainer.training.steps import Steps
from piton_trainer.training.unnamed import telling_of_unnamed


def session(
    config: Config | None = None,
    *,
    overlap_saves: bool = False,
    callbacks: Sequence[Callback] = (),
    clock: Clock | None = None,
    disk: layout.Disk | None = None,
    name: str | None = None,
) -> "Session":
    """A session as the environment describes it, or as `config` does.

    Outside Piton it keeps its checkpoints in `./checkpoints`, or where PITON_CHECKPOINT_DIR says. With a `disk` that is
    given, training waits for each save.

    `overlap_saves` is a promise: from one batch to the next, weights and momenta change only when an optimizer steps,
    and an average of the weights (`ema`) after that. Then a save copies them beside the forward and backward pass
    instead of before it. A promise that is not kept fails the save.

    `name` tells several trainings of one script apart, folds say: each has a folder, and a place in the mirror, of its
    own. The end of one is not the end of the run, which ends with the script.

    `callbacks` receive the events of the training on rank 0, beside Piton's own.

    Raises:
        BadConfig: a variable of the environment makes no sense.
    """
    is_chosen = config is not None and name is None
    config = config or config_of_environment()
    try:
        config = config if name is None else config.named(name)
    except InputError as error:
        raise BadConfig(str(error)) from error
    folder = SessionFolder(config.checkpoint_dir, is_chosen=is_chosen, is_named=name is not None)
    return Session(config, overlap_saves=overlap_saves, callbacks=callbacks, clock=clock, disk=disk, folder=folder)


class Session(RankContext):
    """One process of one attempt. Use it as a context manager, once; `session()` makes it."""

    def __init__(
        self,
        config: Config,
        *,
        overlap_saves: bool,
        callbacks: Sequence[Callback],
        clock: Clock | None,
        disk: layout.Disk | None,
        folder: SessionFolder,
    ) -> None:
        super().__init__(config, Ranks())
        self._folder = folder
        self._objects: dict[str, Any] = {}
        self._resumes_at: int | None = None
        self._trainer: object = None
        self._per_rank = False
        self._services = AttemptServices(
            config, overlap_saves=overlap_saves, callbacks=callbacks, clock=clock or Clock(), disk=disk
        )

    @property
    def attempt(self) -> int:
        """The number of this attempt; outside Piton they are counted in the checkpoint directory."""
        return self._services.attempt

    @property
    def step(self) -> int:
        """Completed steps, over all attempts."""
        return self._opened.state.step

    @property
    def last_step(self) -> int | None:
        """The step that a rehearsal ends with; None in earnest."""
        return self._opened.stops.last_step

    @property
    def training_seconds(self) -> float:
        """Time that went into the current state, over all attempts; saving and what was lost do not count."""
        return self._opened.state.training_seconds

    @property
    def fraction(self) -> float:
        """The fraction of the training that is done, 0 to 1; the same on every rank."""
        return self._opened.fraction

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the best objective so far."""
        step, metric = self._opened.state.best_step, self._opened.state.best_metric
        return None if step is None or metric is None else (step, metric)

    def __enter__(self) -> Self:
        try:
            self._services.open()
        except BaseException as error:
            self._services.close(error)
            raise
        finally:
            self._ranks = self._services.ranks
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None and self._opened.has_begun:
                self._opened.conclude()
                objects = trained(self._objects, has_own_loop=self._trainer is None)
                self._folder.finish(objects, self._trainer, has_trained=self.step > (self._resumes_at or 0))
        except BaseException as failure:
            self._services.close(failure)
            raise
        self._services.close(error)

    def restore(self, *, per_rank: bool = False, **objects: Any) -> RestoredRun | None:
        """Name the objects that a checkpoint consists of, and put the newest good one into them.

        Call it when everything is built and before `steps`. `model`, `optimizer` (one or a list), `ema` and `loader`
        are known by name; anything else needs `state_dict` and `load_state_dict`. An argument that is None is left out.
        `rng` names random number generators, one or several, that lie too deep in other objects to be seen. A further
        call adds objects, and restores all of them again.

        Args:
            per_rank: True if each rank trains weights of its own, such as a stage of a pipeline or experts: each gets
                its own again, and the number of ranks stays the same. Else ranks have the same weights, or shards.
            objects: what a checkpoint consists of.

        Returns:
            Where the run resumes from, or None when it starts afresh.

        Raises:
            BadConfig: the checkpoint is of other objects.
            ValueError: an object cannot be saved.
        """
        if self._opened.has_begun and objects.keys() - self._objects.keys():
            raise InputError("session.restore: training has begun; name all objects before the first step")
        self._per_rank |= per_rank
        objects = self._objects | objects
        try:
            with self._folder.explaining():
                restored = self._opened.restore(objects, per_rank=self._per_rank)
        finally:
            readahead.stop()
        self._objects, self._resumes_at = objects, None if restored is None else restored.step
        if restored is None:
            self._opened.state.tells_sessions_apart = self._opened.state.compares_data = True
        if restored is not None and self.is_main:
            print_status(f"resumed from step {restored.step} in {restored.folder}")
        return restored

    def report(self, **metrics: float | Tensor) -> None:
        """Say how the step under way went. A tensor on a GPU is read only when a report or a save is due.

        A metric named `loss` is the loss of one batch: as the objective it is judged only where a save is due. Any
        other objective counts as an evaluation whenever it is reported.
        """
        self._opened.measured.report(metrics)

    def steps(
        self,
        loader: Iterable[Any],
        *,
        epochs: int = 1,
        total: int | None = None,
        accumulate: int | None = None,
        on_resume: str | None = None,
        allow: str | Collection[str] = (),
    ) -> Iterator[Any]:
        """The batches that are left to train on. Saves, reports and stops happen between two of them.

        A checkpoint holds no gradients: while some wait for an optimizer's step, saves and stops wait as well.

        Args:
            loader: batches, the same number on every rank; if nobody knows how many, an epoch ends with the first rank
                that has no more.
            epochs: how often to go through them.
            total: steps overall instead, through as many epochs as that takes.
            accumulate: how many batches make a step of the optimizers, counted as `step` is. None: it is seen from
                their gradients. 1: every boundary is fit for a save, whatever gradients are there.
            on_resume: `restart_epoch` begins the epoch under way anew at each resume, with a loader whose place in it
                nobody can know. Without it such a loader is refused on Piton.
            allow: what may differ from the data of the checkpoint, `batch_size` or `data_length`.

        Raises:
            BadConfig: the run is in the middle of an epoch that this loader can only go through from its start; the
                data is not that of the checkpoint; or gradients wait for a step that does not come.
            Stopped: told to stop; everything is saved.
            Diverged: 20 losses in a row, the objective or the weights are not finite numbers.
            OutOfSpace: a checkpoint does not fit.
            Fenced: another attempt has taken over.
        """
        self._refuse_another()
        feeding = Feeding(epochs=epochs, total=total, on_resume=on_resume, allow=allowed(allow))
        return self._run(loader, feeding, accumulate)

    def _run(self, loader: Iterable[Any], feeding: Feeding, accumulate: int | None) -> Iterator[Any]:
        with self._folder.explaining(), telling_of_unnamed(self._objects, tells=self.is_main):
            yield from self._opened.run(loader, feeding, accumulate=accumulate)

    def finish(self) -> None:
        """Say that the loop is left for good, before or after its `break`, also on a single rank.

        A loop that is left by `break` ends the run as well. But a start by hand, or `piton.dev/retry`, then goes on
        with the training, since nothing says that the end is meant.
        """
        self._opened.leaves_on_purpose = True

    def peek(self, name: str) -> Any:
        """The state of the object of this name in the checkpoint that `restore` will take; None when there is none.

        For those who have to know how far a run is before they can build what is restored. All ranks call it together.
        """
        self._opened  # noqa: B018 - raises if the session is not open
        assert self._services.store is not None
        return self._services.store.peek(name)

    def begin(
        self,
        *,
        total: int | None = None,
        step: int = 0,
        generators: Sequence[Generator] = (),
        loaders: Sequence[object] = (),
        allow: str | Collection[str] = (),
        is_between: bool = False,
        trainer: object = None,
    ) -> Randomness | None:
        """For a loop that is somebody else's, instead of `steps`; call `boundary` after each of its steps.

        Args:
            total: the step at which the loop ends; None when nobody knows.
            step: steps that the loop has behind it, if it comes from a checkpoint that is not ours.
            generators: random number generators besides Python's, numpy's and torch's.
            loaders: where the loop has its data from: their generators are found, and their data is compared with that
                of the checkpoint.
            allow: what of it may differ, see `steps`.
            is_between: True if an epoch begins, which may have other data than the one before.
            trainer: the object whose loop it is; it tells two trainings of one model apart.

        Returns:
            The random numbers, which the loop is to take through its epochs; None when nothing is left to train.

        Raises:
            Stopped: told to stop before the first step.
            BadConfig: the data is not that of the checkpoint.
        """
        self._trainer = trainer
        self._refuse_another()
        with self._folder.explaining():
            feeding = Feeding(total=total, allow=allowed(allow), is_between=is_between)
            return self._opened.begin(generators, loaders, feeding, step=step)

    def begin_step(self) -> None:
        """A step of somebody else's loop begins, with its batch in hand: from here to its boundary it is timed."""
        self._services.beats.begin_step()

    def end_step(self) -> None:
        """All of the step is computed. What comes before its boundary, an evaluation say, is not timed."""
        self._services.beats.end_step()

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """For what may take long inside a step, such as an evaluation: until it ends, no step is missed.

        On all ranks a training that ends no step for too long is ended as one that hangs, see `limits.hangTimeout`.
        """
        with self._services.beats.during(RankPhase.UNTIMED), self._ranks.excused():
            yield

    def listen(self) -> None:
        """Take the signals over again from a framework that has taken them since."""
        self._services.signals.listen()

    @property
    def is_resumed(self) -> bool:
        """True if `restore` has found a checkpoint."""
        return self._resumes_at is not None

    def is_asked_to_stop(self) -> bool:
        """True if this rank knows of a request to stop, which the next boundary grants."""
        return self._opened.is_asked_to_stop()

    def boundary(self, *, ended: str | None = None, total: int | None = None) -> bool:
        """A step of somebody else's loop is done, with all that belongs to it: save, report, stop, as is due.

        Args:
            ended: why the loop ends here by itself.
            total: the step at which it ends by now, if that has changed.

        Returns:
            Whether the training is over. The rest is done when the session ends.

        Raises:
            Stopped, Diverged, OutOfSpace, Fenced: as `steps` does. Who catches one hears it again at the session's end.
        """
        return self._opened.boundary(ended=ended, total=total)

    def _refuse_another(self) -> None:
        """Refuse to go on with what another training of this script has finished in this folder."""
        if self._resumes_at is not None:
            objects, apart = trained(self._objects, has_own_loop=self._trainer is None), self._opened.state
            self._folder.refuse_another(
                objects, self._trainer, step=self._resumes_at, tells_apart=apart.tells_sessions_apart
            )
            with self._folder.explaining():
                refuse_unfit_schedules(self._objects)

    @property
    def _opened(self) -> Steps:
        if self._services.steps is None:
            raise RuntimeError("a session is used as a context manager: with piton_trainer.session() as session")
        return self._services.steps
