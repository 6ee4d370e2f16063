"""What transformers knows of its best metric, after evaluations that it judges and those that it does not."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from piton_trainer.integrations import transformers
from piton_trainer.integrations.transformers_state import JUDGED, Losses
from support import ends, resume
from support import tiny_transformers as hf

EACH_SECOND: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_score",
    "greater_is_better": True,
}
AT_START = {"eval_on_start": True}
PATIENCE = {"callbacks": [EarlyStoppingCallback]}
PLATEAU = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "mode": "max"}}


class Scored(Trainer):  # type: ignore[misc]
    """Its evaluations have scores, by step."""

    scores: tuple[float, ...] = (9, 1, 3, 2, 4)
    """At the start, and at each second step."""

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics["eval_score"] = self.scores[self.state.global_step // 2]
        return output


class NothingFirst(Scored):
    """Its first score is no number."""

    scores = (9, math.nan, 1, 3, 2)


class Evaluating(TrainerCallback):  # type: ignore[misc]
    """It evaluates by itself, also a step that transformers evaluates, with a score that is better."""

    trainer: Any = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.log({"eval_score": 99.0})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.log({"eval_score": 99.0})


class SelfEvaluating(Scored):
    """A Trainer with a callback that evaluates."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        evaluating = Evaluating()
        evaluating.trainer = self
        self.add_callback(evaluating)


CASES: dict[str, Any] = {
    "start": (Scored, AT_START),
    "start, patience": (Scored, AT_START | PATIENCE),
    "patience": (Scored, PATIENCE),
    "not a number": (NothingFirst, {}),
    "of the user": (SelfEvaluating, {}),
    "plateau": (Scored, PLATEAU),
}


def facts(ran: hf.Ran) -> Any:
    """Return all that a training knows of its evaluations; NaN as a text, since it is not itself."""
    entries = [(entry["step"], str(entry["eval_score"])) for entry in ran.state.log_history if "eval_score" in entry]
    best = Path(ran.state.best_model_checkpoint or "").name
    return entries, ran.losses, str(ran.state.best_metric), ran.state.best_global_step, best, ran.state.global_step


def run(directory: Path, *, callbacks: Any = (), **how: Any) -> hf.Ran:
    return hf.train(directory, callbacks=[make() for make in callbacks], **EACH_SECOND, **how)


@resume.exact("transformers: eval_on_start, early stopping, the best metric, schedules by metric")
@pytest.mark.parametrize("step", [2, 3, 4])
@pytest.mark.parametrize(("kind", "how"), CASES.values(), ids=CASES)
def test_evaluations_are_judged_as_in_an_undisturbed_training(
    kind: type[Trainer], how: dict[str, Any], step: int, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", kind=kind, **how)
    run(tmp_path / "parts", kind=kind, at={step: ends.terminate}, **how)
    resumed = run(tmp_path / "parts", kind=kind, **how)
    assert facts(resumed) == facts(whole)
    assert [name for name in whole.weights if not torch.equal(resumed.weights[name], whole.weights[name])] == []
    assert resumed.trainer.args.eval_on_start is how.get("eval_on_start", False)


def test_the_evaluation_of_a_checkpoint_of_an_earlier_trainer_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was saved before transformers had judged."""
    whole = run(tmp_path / "whole", kind=Scored, **AT_START)

    def state_dict(losses: Losses, *, of: Any = Losses.state_dict) -> dict[str, Any]:
        return {name: value for name, value in of(losses).items() if name != JUDGED}

    with monkeypatch.context() as earlier:
        earlier.setattr(Losses, "state_dict", state_dict)
        earlier.setattr(transformers, "can_judge", lambda _: False)
        run(tmp_path / "parts", kind=Scored, at={4: ends.terminate}, **AT_START)
    assert facts(run(tmp_path / "parts", kind=Scored, **AT_START)) == facts(whole)
