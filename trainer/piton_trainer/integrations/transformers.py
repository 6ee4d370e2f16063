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
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, TrainOutput, speed_metrics

import piton_trainer
from piton.contract import InputError
from piton_trainer.checkpoint.format.layout import DESCRIPTION
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.state.data_position import Randomness

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
TRAINER = "trainer"
"""The object of a checkpoint that is transformers' own."""
LOSSES = "losses"
"""The object of a checkpoint that has the losses of which transformers logs means."""
LOSS = "loss"
"""The object of a checkpoint that has weights which are trained beside the model's."""
_FEWEST = 0.001
"""What transformers divides by where an attempt has no steps."""


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
        self._randomness: Randomness | None = None
        self._losses: _Losses | None = None
        self._loss: nn.Module | None = None
        self._is_first_step = True
        self._is_mid_epoch = False
        self._is_pending = False
        self._waits_for_epoch = False
        self._is_over = False
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
            state = session.peek(TRAINER)
            if state is not None:
                resume_from_checkpoint = folder
                _judge(state, trainer.args)
                text = json.dumps(state, default=lambda number: number.item())  # of numpy, or a tensor, in its log
                (Path(folder) / STATE_FILE).write_text(text, encoding="utf-8")
            # Checkpoints of earlier trainers have no losses, and such a run goes on without.
            is_known = state is None or session.peek(LOSSES) is not None
            self._losses = _Losses(trainer) if is_known and _Losses.can_be_kept(trainer) else None
            come_later = _weights_come_later(trainer) if state is not None else nullcontext()
            of_all_steps = self._losses.of_all_steps() if self._losses is not None else nullcontext()
            start_time = time.time()
            try:
                with come_later, of_all_steps:
                    try:
                        output = go(resume_from_checkpoint)
                    except _NothingLeftError:
                        output = _finish_training(trainer, start_time)
                session.finish()  # wherever transformers ends, it means to
                return output
            finally:
                self._session = self._trainer = None
        raise AssertionError("a session swallows nothing")

    def _begin(self, session: piton_trainer.Session, trainer: Any) -> None:
        self._session, self._trainer, self._randomness = session, trainer, None
        self._is_mid_epoch = self._is_pending = self._waits_for_epoch = self._is_over = False
        self._is_first_step = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Everything is built: put the checkpoint into it."""
        if self._session is None:
            raise InputError("PitonCallback: the training has to be begun by Trainer.train()")
        self._come_last()
        scaler = getattr(self._trainer.accelerator, "scaler", None)
        model, optimizer = kwargs["model"], getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        self._loss = _loss_with_weights(self._trainer, model, optimizer)
        self._session.restore(
            per_rank=False,
            model=model,
            optimizer=optimizer,
            scheduler=kwargs["lr_scheduler"],
            scaler=scaler,
            **{TRAINER: _Progress(self._trainer), DESCRIPTION: _Description(model)},
            **{LOSS: self._loss},
            **({} if self._losses is None else {LOSSES: self._losses}),
        )
        _recover_best(self._trainer, tells=self._session.is_main)
        self._randomness = self._session.begin(
            total=state.max_steps,
            step=state.global_step,
            loaders=[kwargs["train_dataloader"]],
            allow=self._allow,
            trainer=self._trainer,
        )
        if self._randomness is None:
            raise _NothingLeftError
        self._is_mid_epoch = not float(state.epoch or 0).is_integer()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Be where the random numbers were when this epoch began before."""
        self._catch_up(state, control)
        assert self._randomness is not None
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
            self._randomness.catch_up()
            self._is_mid_epoch = False
        if self._session is not None:
            self._session.begin_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A step is done, but for its log and its evaluation, which may come only after the epoch's end."""
        self._is_pending = self._session is not None
        if self._session is not None:
            self._session.end_step()
        if self._loss is not None and self._is_first_step:
            _refuse_gradients(self._loss, kwargs["model"])
        self._is_first_step = False
        is_last = float(state.epoch or 0).is_integer() or control.should_epoch_stop or control.should_training_stop
        self._waits_for_epoch = is_last
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
        if self._is_pending and not (self._waits_for_epoch or control.should_log or control.should_evaluate):
            self._boundary(state, control)

    def _catch_up(self, state: TrainerState, control: TrainerControl) -> None:
        """A log that was due never came; by now there is no flag that would end the loop before its next step."""
        if self._is_pending:
            self._boundary(state, control)
            if self._is_over:
                raise _NothingLeftError

    def _boundary(self, state: TrainerState, control: TrainerControl) -> None:
        assert self._session is not None
        self._is_pending = False
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
    if _Losses.can_be_kept(trainer):
        return trainer._finalize_training(None, 0, start_time)  # noqa: SLF001
    trainer.is_in_train = False
    rates = speed_metrics("train", start_time, num_samples=0, num_steps=0)
    metrics = {**rates, "total_flos": trainer.state.total_flos, "train_loss": 0.0, "epoch": trainer.state.epoch}
    return TrainOutput(trainer.state.global_step, 0.0, metrics)


class _Progress:
    """transformers' own account of the training, for the checkpoint."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Return the content of transformers' `trainer_state.json`."""
        trainer = self._trainer
        trainer.store_flos()
        stateful = [item for item in (*trainer.callback_handler.callbacks, trainer.control) if _is_exportable(item)]
        own = TrainerState(stateful_callbacks=stateful).stateful_callbacks
        return {**asdict(trainer.state), "stateful_callbacks": own}

    def load_state_dict(self, _: dict[str, Any]) -> None:
        """It has been read already."""


class _Losses:
    """What transformers adds up of this rank's losses: its log has means since the log before, the end has that of all.

    transformers itself begins anew with each `train()`, so that the first line of a resumed log, and `train_loss`, are
    means of fewer steps (transformers#12942).
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._at_the_end: dict[str, Any] | None = None

    @staticmethod
    def can_be_kept(trainer: Any) -> bool:
        """True if this version of transformers adds up its losses where they can be read; 5.23 does."""
        return hasattr(trainer, "_finalize_training")

    def state_dict(self) -> dict[str, Any]:
        """Return the sum of what was logged, the sum of what was not, and the step of the last log."""
        trainer = self._trainer
        return self._at_the_end or {
            "logged": trainer._total_loss_scalar,  # noqa: SLF001
            "not_logged": float(trainer._tr_loss),  # noqa: SLF001
            "logged_at": trainer._globalstep_last_logged,  # noqa: SLF001
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let transformers go on from these sums."""
        trainer = self._trainer
        trainer._total_loss_scalar = state["logged"]  # noqa: SLF001
        trainer._tr_loss.fill_(state["not_logged"])  # noqa: SLF001
        trainer._globalstep_last_logged = state["logged_at"]  # noqa: SLF001

    def mean(self) -> float:
        """Return the mean of all steps of the run."""
        sums = self.state_dict()
        return float((sums["logged"] + sums["not_logged"]) / max(self._trainer.state.global_step, 1))

    @contextmanager
    def of_all_steps(self) -> Iterator[None]:
        """Have `train_loss` be the mean of all steps of the run; transformers divides by the steps of this attempt."""
        trainer = self._trainer
        original = trainer._finalize_training  # noqa: SLF001

        def finalize(*args: Any, **kwargs: Any) -> TrainOutput:
            self._at_the_end = self.state_dict()
            own_steps = max(trainer.state.global_step - trainer._initial_global_step, _FEWEST)  # noqa: SLF001
            trainer._total_loss_scalar = self.mean() * own_steps  # noqa: SLF001
            trainer._tr_loss.zero_()  # noqa: SLF001
            return original(*args, **kwargs)

        trainer._finalize_training = finalize  # noqa: SLF001
        try:
            yield
        finally:
            del trainer._finalize_training  # noqa: SLF001


def _loss_with_weights(trainer: Any, model: nn.Module, optimizer: Optimizer) -> nn.Module | None:
    """Return a module with all that the optimizer trains, if that is more than the model; None if it is not.

    sentence-transformers has losses with weights, as `trainer.loss` or by name in it, and the model inside of them. The
    names of what an optimizer holds come from one module, so a checkpoint has the model's weights there once more.
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    apart = trained - _ids(model)
    attributes = vars(trainer).values()
    held = chain.from_iterable(value.values() if isinstance(value, dict) else [value] for value in attributes)
    parts = list(dict.fromkeys(part for part in held if isinstance(part, nn.Module) and apart & _ids(part)))
    if not parts:
        return None
    if not trained <= set().union(*map(_ids, parts)):
        parts.append(model)
    return parts[0] if len(parts) == 1 else nn.ModuleList(parts)


def _ids(module: nn.Module) -> set[int]:
    return set(map(id, module.parameters()))


def _refuse_gradients(loss: nn.Module, model: nn.Module) -> None:
    """Say no to gradients that outlast their step: transformers zeroes the model's only, and no checkpoint has any.

    Raises:
        BadConfig: there are some.
    """
    own = _ids(model)
    gradients = (weight.grad for weight in loss.parameters() if id(weight) not in own)
    if any(gradient is not None and bool(gradient.any()) for gradient in gradients):
        raise BadConfig(
            "loss: gradients of its weights are left after a step, since transformers zeroes those of the model only; "
            "say optimizer.zero_grad() in a callback's on_step_end"
        )


class _Description:
    """The kind of the model, for users who load the weights without this script."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """The model's config, and which of its weights are others under a second name."""
        model = self._model
        config: Any = getattr(model, "config", None)
        generation: Any = getattr(model, "generation_config", None)
        if not hasattr(config, "to_json_string"):
            return {}
        description: dict[str, Any] = {"config": json.loads(config.to_json_string(use_diff=False))}
        description["config"]["architectures"] = [type(model).__name__]
        if generation is not None and model.can_generate():
            description["generation_config"] = json.loads(generation.to_json_string(use_diff=True))
        description["tied"] = dict(getattr(model, "all_tied_weights_keys", None) or {})
        return description

    def load_state_dict(self, _: dict[str, Any]) -> None:
        """The script has built the model."""


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


@contextmanager
def _weights_come_later(trainer: Any) -> Iterator[None]:
    """Keep transformers from looking for weights in its folder."""
    trainer._load_from_checkpoint = lambda *_, **__: None  # noqa: SLF001
    try:
        yield
    finally:
        del trainer._load_from_checkpoint  # noqa: SLF001


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


def _judge(state: dict[str, Any], args: TrainingArguments) -> None:
    """Catch up on the best metric: transformers looks for it only after its callbacks have heard of an evaluation."""
    name = str(args.metric_for_best_model)
    name = name if name.startswith("eval_") else f"eval_{name}"
    found = [(entry[name], entry["step"]) for entry in state["log_history"] if name in entry]
    if found:
        best = (max if args.greater_is_better else min)(found, key=lambda pair: pair[0])
        state["best_metric"], state["best_global_step"] = best


def _recover_best(trainer: Any, *, tells: bool) -> None:
    """Write transformers' checkpoint of its best step, if the attempt before was stopped or lost between ours and that.

    transformers writes it after our boundary. A stop does not wait for it, since its whole state comes back.
    """
    args, state = trainer.args, trainer.state
    if not args.load_best_model_at_end or not state.best_global_step:
        return
    before = state.stateful_callbacks.get(TrainerControl.__name__, {}).get("args", {})
    was_due = before.get("should_save") or args.save_strategy == SaveStrategy.BEST
    if was_due and state.best_global_step == state.global_step:
        trainer._save_checkpoint(trainer.model, None)  # noqa: SLF001
        trainer.control = trainer.callback_handler.on_save(args, state, trainer.control)
    elif state.best_model_checkpoint is None and tells:
        logger.warning(
            "load_best_model_at_end: the checkpoint of step %d, the best so far, is not in %s; unless a later step is "
            "better, the training ends with its last weights; keep output_dir where it outlives the node",
            state.best_global_step,
            args.output_dir,
        )


def _reports_to_us(callback: Any) -> bool:
    return type(callback).__name__ == "KubeflowCallback"


def _is_exportable(item: Any) -> bool:
    return isinstance(item, ExportableState)
