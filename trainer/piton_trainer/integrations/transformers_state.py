"""State of a transformers.Trainer that a checkpoint has besides model and optimizer; some of it has no public name.

It has been tried with transformers 5.23, and must not know sessions.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, TrainOutput

from piton_trainer.errors import BadConfig
from piton_trainer.integrations.transformers_callbacks import OwnCallbacks
from piton_trainer.integrations.transformers_loader import EpochPlace

logger = logging.getLogger(__name__)

LOSSES = "losses"
"""The object of a checkpoint that has the losses of which transformers logs means."""
JUDGED = "is_judged"
"""Key of the losses: true if transformers had judged the evaluation of the step; earlier trainers saved before that."""
EPOCH = "epoch"
"""Key of the losses: the epoch that the save was in, where this trainer or a later one has saved."""
_CALLBACKS = "callbacks"
"""Key of the losses: what callbacks of the user's keep."""
LOSS = "loss"
"""The object of a checkpoint that has weights which are trained beside the model's."""
_FEWEST = 0.001
"""The number of steps that transformers divides by where an attempt has no steps."""


class OwnAccount:
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


class Losses:
    """The sums of this rank's losses: the log of transformers has means since the log before, the end has that of all.

    transformers itself begins anew with each `train()`, so that the first line of a resumed log, and `train_loss`, are
    means of fewer steps (transformers#12942).
    """

    def __init__(self, trainer: Any, place: EpochPlace, callbacks: OwnCallbacks) -> None:
        self._trainer = trainer
        self._place = place
        self._callbacks = callbacks
        self._at_the_end: dict[str, Any] | None = None

    @staticmethod
    def can_be_kept(trainer: Any) -> bool:
        """True if this version of transformers adds up its losses where they can be read; 5.23 does."""
        return hasattr(trainer, "_finalize_training")

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, the epoch, and what callbacks keep."""
        return {**self._sums(), _CALLBACKS: self._callbacks.state_dict()}

    def _sums(self) -> dict[str, Any]:
        """Return the sum of what was logged, the sum of what was not, the step of the last log, and the epoch."""
        trainer = self._trainer
        return self._at_the_end or {
            "logged": trainer._total_loss_scalar,  # noqa: SLF001
            "not_logged": float(trainer._tr_loss),  # noqa: SLF001
            "logged_at": trainer._globalstep_last_logged,  # noqa: SLF001
            JUDGED: can_judge(trainer),
            EPOCH: self._place.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let transformers go on from these sums."""
        trainer = self._trainer
        trainer._total_loss_scalar = state["logged"]  # noqa: SLF001
        trainer._tr_loss.fill_(state["not_logged"])  # noqa: SLF001
        trainer._globalstep_last_logged = state["logged_at"]  # noqa: SLF001
        self._callbacks.load_state_dict(state.get(_CALLBACKS, {}))

    def mean(self) -> float:
        """Return the mean of all steps of the run."""
        sums = self._sums()
        return float((sums["logged"] + sums["not_logged"]) / max(self._trainer.state.global_step, 1))

    @contextmanager
    def of_all_steps(self) -> Iterator[None]:
        """Have `train_loss` be the mean of all steps of the run; transformers divides by the steps of this attempt."""
        trainer = self._trainer
        original = trainer._finalize_training  # noqa: SLF001

        def finalize(*args: Any, **kwargs: Any) -> TrainOutput:
            self._at_the_end = self._sums()
            own_steps = max(trainer.state.global_step - trainer._initial_global_step, _FEWEST)  # noqa: SLF001
            # Versions before 5.20, 5.16 say, divide by all steps of the run.
            is_of_own = "num_steps_trained" in original.__func__.__code__.co_varnames
            trainer._total_loss_scalar = self.mean() * (own_steps if is_of_own else trainer.state.global_step)  # noqa: SLF001
            trainer._tr_loss.zero_()  # noqa: SLF001
            return original(*args, **kwargs)

        trainer._finalize_training = finalize  # noqa: SLF001
        try:
            yield
        finally:
            del trainer._finalize_training  # noqa: SLF001


def loss_with_weights(trainer: Any, model: nn.Module, optimizer: Optimizer) -> nn.Module | None:
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


def refuse_gradients(loss: nn.Module, model: nn.Module) -> None:
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


class Description:
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


def can_judge(trainer: Any) -> bool:
    """True if this version of transformers looks for the best metric in a method of its own; 5.23 does."""
    return hasattr(trainer, "_determine_best_metric")


@contextmanager
def after_judging(trainer: Any, call: Callable[[], None]) -> Iterator[None]:
    """Call this once transformers has judged an evaluation that it has made itself, and stepped the schedule by it."""
    if not can_judge(trainer):
        yield
        return
    original = trainer._determine_best_metric  # noqa: SLF001

    def determine(*args: Any, **kwargs: Any) -> Any:
        is_best = original(*args, **kwargs)
        call()
        return is_best

    trainer._determine_best_metric = determine  # noqa: SLF001
    try:
        yield
    finally:
        del trainer._determine_best_metric  # noqa: SLF001


def judge(state: dict[str, Any], args: TrainingArguments) -> None:
    """Catch up on the evaluation of the step of a save, as transformers would have judged it."""
    name = str(args.metric_for_best_model)
    name = name if name.startswith("eval_") else f"eval_{name}"
    is_better, worst = (np.greater, -math.inf) if args.greater_is_better else (np.less, math.inf)
    for entry in state["log_history"]:
        if name not in entry or entry["step"] != state["global_step"]:
            continue
        best = state["best_metric"]
        if is_better(entry[name], worst if best is None else best):
            state["best_metric"] = entry[name]
            if args.save_strategy != SaveStrategy.NO:
                state["best_global_step"] = entry["step"]


@contextmanager
def as_resumed(trainer: Any) -> Iterator[None]:
    """Keep transformers from looking for weights in its folder, and from the evaluation that opens a run."""
    args: Any = trainer.args
    evaluates = getattr(args, "eval_on_start", False)
    trainer._load_from_checkpoint = lambda *_, **__: None  # noqa: SLF001
    args.eval_on_start = False
    try:
        yield
    finally:
        del trainer._load_from_checkpoint  # noqa: SLF001
        args.eval_on_start = evaluates


def recover_best(trainer: Any, *, tells: bool) -> None:
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


def _is_exportable(item: Any) -> bool:
    return isinstance(item, ExportableState)
