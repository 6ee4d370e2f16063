"""A session for `lightning.Trainer`, in one line: `Trainer(..., callbacks=[PitonCallback()])`.

    fit()               enter the session; where a checkpoint is, name it to Lightning
    load_checkpoint     Lightning asks for it: restore, and hand over what it restores by itself
    on_train_start      the data and the random numbers, which Lightning does not restore
    batch, epoch        when nothing of a step is left to do, in no hook either: the boundary
    end of fit()        leave the session: last save, COMPLETE.json, or exit code 143

Lightning's own account of the training goes through a CheckpointIO for that; the module's weights go straight from our
checkpoint into the module. A step is one or more batches, as `accumulate_grad_batches` says; of a module that steps by
hand, as many as gather gradients for the step of an optimizer. What Lightning keeps to itself is used in
`lightning_loops` and `lightning_results` only.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import Strategy
from torch import Tensor

import piton_trainer
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig
from piton_trainer.integrations.lightning_checkpoint import PATH, WEIGHTS, Made, Part, passed_through
from piton_trainer.integrations.lightning_data import Makings, Wraps
from piton_trainer.integrations.lightning_loops import Finders, Loops
from piton_trainer.integrations.lightning_memory import OwnAttributes
from piton_trainer.integrations.lightning_results import EpochMetrics
from piton_trainer.state.data_position import Randomness
from piton_trainer.telemetry.metrics import LOSS
from piton_trainer.training.gradient_accumulation import Gradients
from piton_trainer.training.step_patience import StepPatience

logger = logging.getLogger(__name__)

TRAINER, MADE_BY = "trainer", "lightning"
"""Objects of a checkpoint besides the model."""


class PitonCallback(Checkpoint):  # type: ignore[misc]
    """Checkpoints, resuming, reports and an orderly stop.

    To Lightning it is a `Checkpoint`: it comes after all other callbacks, and no ModelCheckpoint is added by default.
    """

    def __init__(
        self, config: Config | None = None, *, name: str | None = None, allow: str | Collection[str] = ()
    ) -> None:
        """Take the session's orders from `config`, or as everybody does from the environment.

        `name` tells several trainings of one script apart, see `piton_trainer.session`. `allow` names what may differ
        from the data of the checkpoint, see `Session.steps`.
        """
        self._config = config
        self._allow = allow
        self._name = name
        self._session: piton_trainer.Session | None = None
        self._randomness: Randomness | None = None
        self._gradients: Gradients | None = None
        self._patience = StepPatience(Clock())
        self._loaded_in: int | None = None
        self._results: EpochMetrics | None = None
        self._until_left = ExitStack()
        self._known: dict[str, Any] = {}
        self._is_restored = self._is_computed = self._is_pending = self._is_over = False
        _take_over_fit()

    @property
    def is_training(self) -> bool:
        """True if `fit` is under way."""
        return self._session is not None

    def fit(self, trainer: Any, go: Callable[[Any], None], ckpt_path: Any) -> None:
        """`trainer.fit()` inside a session. A `ckpt_path` of the user's counts until we have a better one."""
        with ExitStack() as until_saved, piton_trainer.session(self._config, name=self._name) as session:
            _refuse(trainer)
            # A session saves once more when it ends.
            until_saved.enter_context(passed_through(trainer, partial(self.load, trainer)))
            self._session, self._randomness, self._known = session, None, {}
            self._patience, self._loaded_in, self._results = StepPatience(Clock()), None, EpochMetrics(trainer)
            self._is_restored = self._is_computed = self._is_pending = self._is_over = False
            self._memory, self._wraps, self._batches = OwnAttributes(trainer), Wraps(), 0
            self._makings = Makings(trainer, self._memory)
            marker = session.peek(MADE_BY)
            if marker is not None:
                until_saved.enter_context(Finders(trainer).at_rest())
            done = {"batch": partial(self._batch_done, trainer), "epoch": partial(self._epoch_done, trainer)}
            try:
                with Loops(trainer).followed(
                    **done,
                    begun=self._begun,
                    make=self._makings.make,
                    is_whole=Made.is_whole(marker),
                    has_metrics=Made.has_metrics(marker),
                ):
                    go(ckpt_path if marker is None else PATH)
                session.finish()  # wherever Lightning ends, it means to
                if self._is_restored and self._randomness is None:
                    session.begin(total=session.step, trainer=trainer)  # Lightning saw by itself that nothing is left
            except _NothingLeftError:
                pass
            finally:
                self._session = self._gradients = None
                self._until_left.close()

    def load(self, trainer: Any) -> dict[str, Any]:
        """Our checkpoint as Lightning expects one."""
        part = Part(trainer, self._patience)
        self._restore(trainer, part)
        self._loaded_in = part.loaded_in
        return {WEIGHTS: trainer.lightning_module.state_dict(), **part.loaded}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is built and restored, but for the place in the data."""
        if self._session is None:
            return
        assert self._results is not None
        if not self._is_restored:
            self._restore(trainer, Part(trainer, self._patience))
        if trainer.world_size != self._session.world_size:
            raise BadConfig(
                f"Lightning has {trainer.world_size} ranks where the session has {self._session.world_size}; "
                "start the script with torchrun"
            )
        # Lightning's handler talks to the other ranks in the middle of whatever they do; ours only remembers.
        self._session.listen()
        loops = Loops(trainer)
        will_reload = self._session.is_resumed and loops.will_reload(self._loaded_in)
        self._randomness = self._session.begin(
            total=loops.total,
            step=loops.step,
            loaders=loops.loaders,
            allow=self._allow,
            is_between=will_reload,
            trainer=trainer,
        )
        if self._randomness is None:
            raise _NothingLeftError
        if not pl_module.automatic_optimization:
            watched = Gradients.watched((), trainer.optimizers, accumulate=None)
            self._gradients = self._until_left.enter_context(watched)
        is_mid_epoch = loops.is_mid_epoch
        if is_mid_epoch:
            self._randomness.replay_epoch()
            loops.skip(partial(self._wraps.follow, loops.combined, self._randomness, is_replayed=True))
        else:
            loops.leave_epoch()
        self._randomness.catch_up()
        self._count_reloads(loops, will_reload=will_reload)
        if self._session.is_resumed:
            if is_mid_epoch:
                loops.resume_averages()
            self._known = self._results.put_back(is_mid_epoch=is_mid_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the epoch begins, before it asks for its data."""
        if self._randomness is not None:
            loops = Loops(trainer)
            self._randomness.look_up(loops.loaders)
            self._randomness.begin_epoch()
            if loops.is_data_open:
                loops.open_data()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is in hand."""
        if self._session is not None:
            self._session.begin_step()
        if self._randomness is not None:
            self._wraps.follow(Loops(trainer).combined, self._randomness)
        if self._gradients is not None:
            self._gradients.next_batch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """All of a batch is computed, but for what other hooks do with it."""
        if self._session is None or self._is_over:
            return
        self._session.end_step()
        self._is_computed = True
        self._batches += 1
        if self._batches.bit_count() == 1:  # the first batches, and a few of the others
            self._memory.look()
        loss = outputs.get(LOSS) if isinstance(outputs, Mapping) else outputs
        self._report(trainer, {LOSS: loss} if isinstance(loss, Tensor) and loss.numel() == 1 else {})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation belongs to the step before it."""
        if self._session is not None and self._randomness is not None and not trainer.sanity_checking:
            self._report(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A metric of an epoch belongs to its last step."""
        if self._session is not None and self._is_pending:
            self._report(trainer)
        if self._results is not None:
            self._results.end_epoch()

    def _begun(self) -> None:
        """All hooks of the start are done: have the parts of the training remember what they did."""
        self._memory.begin_training()
        self._memory.put_back()
        self._makings.put_back()

    def _count_reloads(self, loops: Loops, *, will_reload: bool) -> None:
        """Have loaders that are due made from the random numbers of the save, and later ones in the same epochs."""
        assert self._session is not None
        if not self._session.is_resumed or loops.loaded_in is None:
            return
        loaded_in = self._loaded_in
        if loaded_in is None and will_reload:  # a checkpoint of an earlier version, with new loaders in each epoch
            loaded_in = loops.loaded_in - 1
        if loaded_in is None:
            return
        if not will_reload and loaded_in != loops.loaded_in and self._session.is_main:
            logger.warning(
                "train_dataloader: epoch %d has the loader that was made in epoch %d, and the resume makes it again; "
                "if it depends on trainer.current_epoch, it has other data; give it a sampler with set_epoch for that",
                loops.loaded_in,
                loaded_in,
            )
        loops.reload_as_of(loaded_in)

    def _batch_done(self, trainer: Any) -> None:
        """Nothing is left of a batch, nor of a step if no gradients wait; the last one has its epoch's end left."""
        if not self._is_computed:
            return  # a finder's batch: it has callbacks of its own
        self._is_computed = False
        loops = Loops(trainer)
        self._is_pending = loops.has_stepped and not self._waits(trainer)
        if self._is_pending and not loops.is_last_batch:
            self._boundary(trainer)

    def _waits(self, trainer: Any) -> bool:
        """True if a module that steps by hand has gradients on some rank that wait for the step of a later batch."""
        if self._gradients is None:
            return False
        assert self._session is not None
        self._patience.count(waiting=self._gradients.waiting(), stepped=self._gradients.stepped_in_batch())
        is_on_any_rank = partial(trainer.strategy.reduce_boolean_decision, all=False)
        if not is_on_any_rank(self._patience.holds_save):
            return False
        if not is_on_any_rank(self._session.is_asked_to_stop()):
            return True
        if is_on_any_rank(self._patience.holds_stop()):
            return True
        self._patience.tell_of_loss()
        return False

    def _epoch_done(self, trainer: Any) -> None:
        """Nothing is left of the epoch's last step."""
        if self._is_pending:
            self._boundary(trainer)

    def _restore(self, trainer: Any, part: "Part") -> None:
        assert self._session is not None
        assert self._results is not None
        own = {MADE_BY: Made(self._results, self._memory, self._makings, self._wraps), TRAINER: part}
        self._session.restore(per_rank=False, model=trainer.lightning_module, **own)
        self._is_restored = True

    def _report(self, trainer: Any, more: Mapping[str, Tensor] | None = None) -> None:
        """Pass on what has been logged since the last time; what has not been logged again is the same object."""
        assert self._session is not None
        logged = dict(trainer.callback_metrics)
        news = {name: value for name, value in logged.items() if self._known.get(name) is not value}
        self._known = logged
        self._session.report(**{**(more or {}), **news})

    def _boundary(self, trainer: Any) -> None:
        assert self._session is not None
        self._is_pending = False
        loops = Loops(trainer)
        ended = "lightning ended the training" if trainer.should_stop and loops.may_stop else None
        self._is_over = self._session.boundary(ended=ended, total=loops.total)
        if self._is_over:
            loops.stop()


class _NothingLeftError(Exception):
    """The run was over before."""


def _refuse(trainer: Any) -> None:
    """Say no to a strategy whose checkpoints do not go through a CheckpointIO: FSDP, ModelParallel, DeepSpeed.

    Nothing of the optimizers and loops of such a training would come into a checkpoint of Piton.

    Raises:
        BadConfig: the Trainer has one.
    """
    kind = type(trainer.strategy)
    if (kind.save_checkpoint, kind.load_checkpoint) != (Strategy.save_checkpoint, Strategy.load_checkpoint):
        raise BadConfig(
            f"PitonCallback cannot use {kind.__name__}, which writes or reads checkpoints in a way of its own; "
            "DDP and one device it can; a model that is sharded needs a loop of its own, with session.steps()"
        )


def _take_over_fit() -> None:
    """Have `Trainer.fit` look for our callback: no hook comes before it decides where to begin. Once per process."""
    original = Trainer.fit
    if hasattr(original, "before_piton"):
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def fit(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)

        def go(ckpt_path: Any) -> None:
            bound.arguments["ckpt_path"] = ckpt_path
            original(*bound.args, **bound.kwargs)

        ours = next((item for item in self.callbacks if isinstance(item, PitonCallback)), None)
        if ours is None or ours.is_training:
            go(bound.arguments.get("ckpt_path"))
        else:
            ours.fit(self, go, bound.arguments.get("ckpt_path"))

    fit.before_piton = original  # type: ignore[attr-defined]
    Trainer.fit = fit
