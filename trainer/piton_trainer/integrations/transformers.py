"""A session for `transformers.Trainer`, in one line: `Trainer(..., callbacks=[PitonCallback()])`.

    train()            enter the session; where a checkpoint is, tell transformers how far it goes
    on_train_begin     restore; from here on transformers passes over what is done by itself
    step, log, eval    when nothing of a step is left to do: the boundary
    end of train()     leave the session: last save, COMPLETE.json, or exit code 143

The tensors never take the way through transformers' own files: it is handed a folder with nothing but its
`trainer_state.json`, and everything else is put into its objects once they are built. No hook of a callback comes
before `train()` decides where to begin, so that one method is taken over; for Trainers without the callback it does
what it did.
"""

import functools
import json
import logging
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput, speed_metrics

import piton_trainer
from piton.contract import InputError
from piton_trainer.checkpoint.format.layout import DESCRIPTION
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.integrations.transformers_callbacks import OwnCallbacks
from piton_trainer.integrations.transformers_loader import EpochPlace, resumes_exactly
from piton_trainer.integrations.transformers_state import (
    EPOCH,
    JUDGED,
    LOSS,
    LOSSES,
    Description,
    Losses,
    OwnAccount,
    after_judging,
    as_resumed,
    can_judge,
    judge,
    loss_with_weights,
    recover_best,
    refuse_gradients,
)
from piton_trainer.state.data_position import Randomness

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
TRAINER = "trainer"
"""The object of a checkpoint that is transformers' own."""


class PitonCallback(TrainerCallback):  # type: ignore[misc]
    """Checkpoints, resuming, reports and an orderly stop. Wherever it is named, it comes after all other callbacks."""

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
        self._trainer: Any = None
        self._losses: Losses | None = None
        self._loss: nn.Module | None = None
        _take_over_train()

    @property
    def is_training(self) -> bool:
        """True if `train` is under way."""
        return self._session is not None

    def train(self, trainer: Any, go: Callable[[Any], TrainOutput], resume_from_checkpoint: Any) -> TrainOutput:
        """`trainer.train()` inside a session. What transformers is told to resume from counts until we have better."""
        # It would tell the same server the same things, and know less.
        for callback in [item for item in trainer.callback_handler.callbacks if _reports_to_us(item)]:
            trainer.remove_callback(callback)
        with (
            piton_trainer.session(self._config, name=self._name) as session,
            TemporaryDirectory(prefix="piton-") as folder,
        ):
            _refuse(trainer)
            self._begin(session, trainer)
            state, saved = session.peek(TRAINER), session.peek(LOSSES)
            if state is not None:
                resume_from_checkpoint = folder
                if not (saved or {}).get(JUDGED):
                    judge(state, trainer.args)
                text = json.dumps(state, default=lambda number: number.item())  # of numpy, or a tensor, in its log
                (Path(folder) / STATE_FILE).write_text(text, encoding="utf-8")
            # Checkpoints of earlier trainers have no losses, and such a run goes on without.
            is_known = state is None or saved is not None
            can_be_kept = is_known and Losses.can_be_kept(trainer)
            self._losses = Losses(trainer, self._place, self._callbacks) if can_be_kept else None
            resumed = as_resumed(trainer) if state is not None else nullcontext()
            of_all_steps = self._losses.of_all_steps() if self._losses is not None else nullcontext()
            start_time = Clock().now().timestamp()
            in_epoch = self._place.resumes(state, (saved or {}).get(EPOCH))
            exactly = resumes_exactly(trainer, randomness=lambda: self._randomness)
            try:
                with resumed, of_all_steps, in_epoch, exactly, after_judging(trainer, self._judged):
                    try:
                        output = go(resume_from_checkpoint)
                    except _NothingLeftError:
                        output = _finish_training(trainer, start_time)
                self._tell_of_early_end(trainer)
                session.finish()  # wherever transformers ends, it means to
                return output
            finally:
                self._session = self._trainer = None
        raise AssertionError("a session swallows nothing")

    def _tell_of_early_end(self, trainer: Any) -> None:
        """Say it if nobody has asked for an end before the last step; transformers ends its last epoch silently."""
        state = trainer.state
        is_meant = (
            self._is_over
            or self._randomness is None
            or (trainer.control.should_training_stop and state.global_step > self._epoch_began_at)
        )
        if state.global_step < state.max_steps and not is_meant and self._session is not None and self._session.is_main:
            logger.warning(
                "transformers ended the training at step %d of %d, and no callback asked for that: the data had fewer "
                "batches, or epochs were cut short; the run counts as finished",
                state.global_step,
                state.max_steps,
            )

    def _begin(self, session: piton_trainer.Session, trainer: Any) -> None:
        self._session, self._trainer, self._place = session, trainer, EpochPlace(trainer)
        self._callbacks = OwnCallbacks(trainer)
        self._randomness: Randomness | None = None
        self._is_mid_epoch = self._is_pending = self._waits_for_epoch = self._is_over = False
        self._waits_for_judging = False
        self._is_first_step, self._epoch_began_at = True, -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Everything is built: put the checkpoint into it."""
        if self._session is None:
            raise InputError("PitonCallback: the training has to be begun by Trainer.train()")
        self._come_last()
        scaler = getattr(self._trainer.accelerator, "scaler", None)
        model, optimizer = kwargs["model"], getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        self._loss = loss_with_weights(self._trainer, model, optimizer)
        self._session.restore(
            per_rank=False,
            model=model,
            optimizer=optimizer,
            scheduler=kwargs["lr_scheduler"],
            scaler=scaler,
            **{TRAINER: OwnAccount(self._trainer), DESCRIPTION: Description(model)},
            **{LOSS: self._loss},
            **({} if self._losses is None else {LOSSES: self._losses}),
        )
        recover_best(self._trainer, tells=self._session.is_main)
        self._randomness = self._session.begin(
            total=state.max_steps,
            step=state.global_step,
            loaders=[kwargs["train_dataloader"]],
            allow=self._allow,
            trainer=self._trainer,
        )
        # Where nothing is left, the loop ends in its first epoch, if it has one: all callbacks have begun by then.
        self._is_mid_epoch = not (float(state.epoch or 0).is_integer() or self._place.is_over)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Be where the random numbers were when this epoch began before."""
        self._catch_up(state, control)
        self._callbacks.begin()
        self._place.begin_epoch()
        self._epoch_began_at = state.global_step
        if self._randomness is None:
            raise _NothingLeftError
        if self._is_mid_epoch:
            self._randomness.replay_epoch()
        else:
            self._randomness.catch_up()
            self._randomness.begin_epoch()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first one of a resumed epoch comes after transformers has passed over the batches that are done."""
        self._catch_up(state, control)
        if self._is_mid_epoch and self._randomness is not None:
            # The loader has done it by now, unless it is one of which nobody knows how far it reads ahead.
            self._randomness.catch_up(has_read_on=True)
            self._is_mid_epoch = False
        if self._session is not None:
            self._session.begin_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A step is done, but for its log and its evaluation, which may come only after the epoch's end."""
        self._is_pending = self._session is not None
        if self._session is not None:
            self._session.end_step()
        if self._loss is not None and self._is_first_step:
            refuse_gradients(self._loss, kwargs["model"])
        self._is_first_step = False
        self._waits_for_epoch = float(state.epoch or 0).is_integer() or control.should_training_stop
        self._settle(state, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass on what transformers has measured."""
        if self._session is None or self._randomness is None:
            return
        self._session.report(**{name: value for name, value in (logs or {}).items() if isinstance(value, int | float)})
        self._settle(state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An evaluation is done."""
        self._settle(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The last step of an epoch has only the epoch's log and evaluation left."""
        self._place.end_epoch()
        if self._is_mid_epoch and self._randomness is not None:  # it had no step left
            self._randomness.catch_up(has_read_on=True)
            self._is_mid_epoch = False
        if self._is_over:
            control.should_log = control.should_evaluate = control.should_save = False
        self._waits_for_epoch = False
        self._settle(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Nothing comes any more."""
        if self._is_pending:
            self._boundary(state, control)

    def _come_last(self) -> None:
        """See what other callbacks decide. Whose state transformers restores, it has made anew and put at the end."""
        handler = self._trainer.callback_handler
        handler.callbacks = [*(item for item in handler.callbacks if item is not self), self]

    def _settle(self, state: TrainerState, control: TrainerControl) -> None:
        """Act once nothing of the step is left to do: what is logged and evaluated belongs to it."""
        self._waits_for_epoch |= control.should_epoch_stop and not self._place.is_over
        self._waits_for_judging |= control.should_evaluate and can_judge(self._trainer)
        is_waiting = self._waits_for_epoch or self._waits_for_judging
        if self._is_pending and not (is_waiting or control.should_log or control.should_evaluate):
            self._boundary(state, control)

    def _judged(self) -> None:
        """Act, now that the best metric of transformers is that of the step, too."""
        self._waits_for_judging = False
        self._settle(self._trainer.state, self._trainer.control)

    def _catch_up(self, state: TrainerState, control: TrainerControl) -> None:
        """A log that was due never came; by now there is no flag that would end the loop before its next step."""
        if self._is_pending:
            self._boundary(state, control)
            if self._is_over:
                raise _NothingLeftError

    def _boundary(self, state: TrainerState, control: TrainerControl) -> None:
        assert self._session is not None
        self._is_pending = self._waits_for_judging = False
        is_short = control.should_training_stop and state.global_step < state.max_steps
        try:
            self._is_over = self._session.boundary(ended="transformers ended the training" if is_short else None)
        except Stopped:
            # It is raised again when the session ends; until then transformers and its callbacks end in order.
            self._is_over, control.should_save = True, False
        control.should_training_stop = control.should_training_stop or self._is_over


class _NothingLeftError(Exception):
    """The run is over before transformers has begun with the next step."""


def _finish_training(trainer: Any, start_time: float) -> TrainOutput:
    """Do what transformers does after its last step: callbacks, the best model, and metrics with all their names.

    The times are those of this attempt.
    """
    if Losses.can_be_kept(trainer):
        return trainer._finalize_training(None, 0, start_time)  # noqa: SLF001
    trainer.is_in_train = False
    rates = speed_metrics("train", start_time, num_samples=0, num_steps=0)
    metrics = {**rates, "total_flos": trainer.state.total_flos, "train_loss": 0.0, "epoch": trainer.state.epoch}
    return TrainOutput(trainer.state.global_step, 0.0, metrics)


def _take_over_train() -> None:
    """Have `Trainer.train` look for our callback. Once per process."""
    original = Trainer.train
    if hasattr(original, "before_piton"):
        return

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> TrainOutput:
        def go(resume: Any) -> TrainOutput:
            return original(self, resume, *args, **kwargs)

        ours = next((item for item in self.callback_handler.callbacks if isinstance(item, PitonCallback)), None)
        if ours is None or ours.is_training:
            return go(resume_from_checkpoint)
        if args or kwargs.get("trial") is not None:
            raise BadConfig("PitonCallback cannot be used in a search of hyperparameters: give each trial its own run")
        return ours.train(self, go, resume_from_checkpoint)

    train.before_piton = original  # type: ignore[attr-defined]
    Trainer.train = train


def _refuse(trainer: Any) -> None:
    """Say no to what cannot be resumed as it was.

    Raises:
        BadConfig: the Trainer's arguments ask for it.
    """
    args = trainer.args
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise BadConfig("PitonCallback does not know the checkpoints of DeepSpeed and FSDP; DDP and one device it does")
    if args.auto_find_batch_size:
        raise BadConfig("PitonCallback needs auto_find_batch_size=False: a resumed run has the batches that it had")
    if getattr(args, "enable_jit_checkpoint", False):
        raise BadConfig("PitonCallback needs enable_jit_checkpoint=False: both would answer SIGTERM")


def _reports_to_us(callback: Any) -> bool:
    return type(callback).__name__ == "KubeflowCallback"
