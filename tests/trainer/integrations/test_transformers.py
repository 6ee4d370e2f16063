"""`PitonCallback` in a real transformers.Trainer: stop anywhere, resume, and the weights are those of a whole run."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from piton.contract import names
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton.contract.manifest import LEFT_ON_PURPOSE
from piton.contract.termination import ScriptEnd, Termination
from piton_trainer import Session
from piton_trainer.checkpoint.format import layout
from piton_trainer.config import Server
from piton_trainer.errors import BadConfig
from piton_trainer.integrations.transformers import PitonCallback
from piton_trainer.integrations.transformers_state import LOSSES
from piton_trainer.training import earlier_sessions
from support import ends, ranks, resume, tiny
from support import tiny_transformers as hf
from support.status_server import StatusServer

MID_EPOCH, EPOCH_END = 6, hf.STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> hf.Ran:
    return hf.train(tmp_path_factory.mktemp("whole"))


def assert_same(ran: hf.Ran, whole: hf.Ran) -> None:
    assert ran.weights.keys() == whole.weights.keys()
    assert [name for name in whole.weights if not torch.equal(ran.weights[name], whole.weights[name])] == []
    assert ran.complete is not None
    assert whole.complete is not None
    assert ran.complete.weights_digest == whole.complete.weights_digest


def newest(directory: Path) -> int:
    return next(layout.committed(directory / "checkpoints")).manifest.step


@pytest.mark.parametrize("step", [MID_EPOCH, EPOCH_END])
def test_a_trainer_stopped_in_or_after_an_epoch_ends_with_the_same_weights(
    step: int, whole: hf.Ran, tmp_path: Path
) -> None:
    stopped = hf.train(tmp_path, at={step: ends.terminate})
    resumed = hf.train(tmp_path)
    assert (stopped.code, stopped.error) == (143, f"told to stop by SIGTERM; step {step} is saved")
    assert stopped.complete is None
    assert resumed.losses == whole.losses
    assert_same(resumed, whole)


@resume.exact("transformers: Trainer, stopped at any step")
@pytest.mark.crash
@pytest.mark.parametrize("arguments", [{}, {"eval_strategy": "epoch"}, {"eval_strategy": "steps", "eval_steps": 2}])
@pytest.mark.parametrize("step", range(1, hf.STEPS))
def test_a_trainer_stopped_at_any_step_ends_with_the_same_weights(
    step: int, arguments: dict[str, Any], tmp_path: Path
) -> None:
    whole = hf.train(tmp_path / "whole", **arguments)
    hf.train(tmp_path / "parts", at={step: ends.terminate}, **arguments)
    resumed = hf.train(tmp_path / "parts", **arguments)
    assert resumed.losses == whole.losses
    assert_same(resumed, whole)


@resume.exact("transformers: losses in the log and train_loss", "of all steps, not of those of one attempt")
@pytest.mark.parametrize("step", [1, MID_EPOCH - 1, MID_EPOCH, hf.STEPS - 1])
def test_the_losses_that_are_logged_are_those_of_an_undisturbed_training(step: int, tmp_path: Path) -> None:
    """A line of the log is a mean over several steps, of which the attempt before may have done some."""
    whole = hf.train(tmp_path / "whole", logging_steps=3)
    hf.train(tmp_path / "parts", at={step: ends.terminate}, logging_steps=3)
    resumed = hf.train(tmp_path / "parts", logging_steps=3)
    assert resumed.losses == whole.losses
    assert resumed.output.training_loss == pytest.approx(whole.output.training_loss, rel=1e-6)
    again = hf.train(tmp_path / "parts", logging_steps=3)
    assert again.output.training_loss == pytest.approx(whole.output.training_loss, rel=1e-6)
    assert again.output.metrics["train_loss"] == again.output.training_loss


def without_losses(session: Session, *, restore: Any = Session.restore, **objects: Any) -> Any:
    """Restore as earlier trainers did."""
    del objects[LOSSES]
    return restore(session, **objects)


def test_a_checkpoint_without_losses_is_resumed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier trainers saved none."""
    with monkeypatch.context() as earlier:
        earlier.setattr(Session, "restore", without_losses)
        hf.train(tmp_path, at={MID_EPOCH: ends.terminate})
    resumed = hf.train(tmp_path)
    assert (resumed.code, resumed.state.global_step) == (0, hf.STEPS)


def test_a_trainer_that_vanishes_resumes_from_the_newest_save(whole: hf.Ran, tmp_path: Path) -> None:
    with pytest.raises(tiny.LostError):
        hf.train(tmp_path, at={5: ends.vanish})
    assert newest(tmp_path) == 3
    assert_same(hf.train(tmp_path), whole)


def test_the_message_of_a_finished_training_says_that_the_script_goes_on(tmp_path: Path) -> None:
    """`trainer.save_model()` comes after it, also in the attempt that finds the training finished."""
    log = tmp_path / "termination-log"
    config = tiny.config(tmp_path / "checkpoints", tiny.every(3), termination_log=log)
    for attempt in (1, 2):
        log.write_text("")
        hf.train(tmp_path, config=replace(config, attempt=attempt))
        message = Termination.from_json(log.read_text())
        assert message is not None
        assert (message.is_proof, message.script, message.step) == (True, ScriptEnd.RUNNING, hf.STEPS)


def test_a_finished_trainer_trains_nothing_and_has_the_trained_model(whole: hf.Ran, tmp_path: Path) -> None:
    hf.train(tmp_path)
    again = hf.train(tmp_path, at=dict.fromkeys(range(1, 99), ends.vanish))
    assert_same(again, whole)


class Publishing(TrainerCallback):  # type: ignore[misc]
    """It uses what a training has ended with."""

    ends = 0

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends += 1


@pytest.mark.parametrize("has_losses", [True, False])
@pytest.mark.parametrize(
    "arguments", [{}, {"skip_memory_metrics": False}, {"disable_tqdm": False}], ids=["plain", "memory", "bars"]
)
def test_what_comes_after_a_training_comes_after_a_finished_one_too(
    has_losses: bool, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tail of transformers' examples: a notice in it has the script run again."""
    with monkeypatch.context() as earlier:
        if not has_losses:
            earlier.setattr(Session, "restore", without_losses)
        first = hf.train(tmp_path, **arguments)
    publishing = Publishing()
    again = hf.train(tmp_path, callbacks=[publishing], **arguments)
    assert again.output.metrics.keys() >= first.output.metrics.keys() - {"before_init_mem_cpu"}
    assert again.output.global_step == hf.STEPS
    again.trainer.log_metrics("train", again.output.metrics)
    again.trainer.save_metrics("train", again.output.metrics)
    again.trainer.save_state()
    assert math.isfinite(again.trainer.evaluate()["eval_loss"])
    assert publishing.ends == 1
    assert_same(again, first)


class EndsAtOnce(TrainerCallback):  # type: ignore[misc]
    """It has had enough after the first step, so that epochs are left."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def test_a_transformers_that_ends_in_another_way_has_all_metrics_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hf.train(tmp_path, callbacks=[EndsAtOnce()])
    monkeypatch.delattr(Trainer, "_finalize_training")
    again = hf.train(tmp_path)
    assert again.output.metrics.keys() >= first.output.metrics.keys()
    assert not again.trainer.is_in_train


class Noting(TrainerCallback):  # type: ignore[misc]
    """It adds numbers to the log that are no numbers of JSON."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history[-1] |= {"norm": torch.tensor(0.5), "rate": np.float32(0.25), "seen": np.int64(3)}


def test_numbers_of_torch_and_numpy_in_the_log_are_no_hindrance_to_a_resume(whole: hf.Ran, tmp_path: Path) -> None:
    hf.train(tmp_path, at={MID_EPOCH: ends.terminate}, callbacks=[Noting()])
    resumed = hf.train(tmp_path)
    assert_same(resumed, whole)
    first = resumed.state.log_history[0]
    assert (first["norm"], first["rate"], first["seen"]) == (0.5, 0.25, 3)


def test_an_evaluation_belongs_to_the_step_before_it_and_can_end_the_run(tmp_path: Path) -> None:
    orders = Assignment(save=SavePolicy(), objective=Objective(metric="eval_loss", target=99.0))
    config = tiny.config(tmp_path / "checkpoints", orders)
    ran = hf.train(tmp_path, config=config, eval_strategy="epoch")
    assert ran.code == 0
    assert ran.complete is not None
    assert (ran.complete.step, ran.complete.reason) == (EPOCH_END, "eval_loss reached its target of 99")
    assert ran.complete.best_metric == next(e["eval_loss"] for e in ran.state.log_history if "eval_loss" in e)
    again = hf.train(tmp_path, config=config, at={EPOCH_END + 1: ends.vanish}, eval_strategy="epoch")
    assert again.complete is not None
    assert again.complete.weights_digest == ran.complete.weights_digest


def test_what_transformers_knows_of_its_best_metric_comes_back(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "restore_callback_states_from_checkpoint": True,
    }
    patience = partial(EarlyStoppingCallback, early_stopping_patience=2, early_stopping_threshold=9.0)
    # The third evaluation is not better by 9 either, so the patience is at its end, unless the first one is forgotten.
    for step in (2, 5):  # transformers makes the callback anew, once it has counted and once it has not
        stopped = hf.train(tmp_path, at={step: ends.terminate}, callbacks=[patience()], **arguments)
        assert stopped.code == 143
    resumed = hf.train(tmp_path, callbacks=[patience()], **arguments)
    assert resumed.state.best_metric is not None
    assert resumed.complete is not None
    assert (resumed.complete.step, resumed.complete.reason) == (MID_EPOCH, "transformers ended the training")
    assert is_over(tmp_path, callbacks=[patience()], **arguments)


BEST_EARLY: dict[str, Any] = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": True,  # so the last evaluation is not the best
    "save_total_limit": 2,
}
EACH_EPOCH = {**BEST_EARLY, "eval_strategy": "epoch", "save_strategy": "epoch"}
EACH_THIRD = {**BEST_EARLY, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}


@resume.exact("transformers: load_best_model_at_end, stopped at the best step", "if output_dir outlives the node")
@pytest.mark.parametrize("stop", ["before", "at", "after"])
@pytest.mark.parametrize(
    ("arguments", "best"),
    [
        (EACH_EPOCH, EPOCH_END),
        (EACH_THIRD, 6),
        ({**EACH_THIRD, "save_strategy": "best"}, 6),
        ({**EACH_THIRD, "save_steps": 9}, None),  # the best step is none that transformers saves
    ],
    ids=["epoch", "steps", "best", "not-saved"],
)
def test_the_best_model_is_that_of_an_undisturbed_training(
    arguments: dict[str, Any], best: int | None, stop: str, tmp_path: Path
) -> None:
    step = (best or 6) + ["before", "at", "after"].index(stop) - 1
    whole = hf.train(tmp_path / "whole", **arguments)
    stopped = hf.train(tmp_path / "parts", at={step: ends.terminate}, **arguments)
    resumed = hf.train(tmp_path / "parts", **arguments)
    again = hf.train(tmp_path / "parts", **arguments)
    assert (stopped.code, resumed.code, again.code) == (143, 0, 0)
    names_of_best = [Path(ran.state.best_model_checkpoint or "").name for ran in (whole, resumed, again)]
    assert names_of_best == [f"checkpoint-{best}" if best else ""] * 3
    assert_same(resumed, whole)
    assert_same(again, whole)


def test_the_best_model_is_written_again_if_the_attempt_was_lost_while_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hf.train(tmp_path / "whole", **EACH_EPOCH)
    config = tiny.config(tmp_path / "parts" / "checkpoints", tiny.every(1))
    with monkeypatch.context() as lost:
        lost.setattr(Trainer, "save_model", lambda *_, **__: ends.vanish())
        with pytest.raises(tiny.LostError):
            hf.train(tmp_path / "parts", config=config, **EACH_EPOCH)
    assert newest(tmp_path / "parts") == EPOCH_END
    assert_same(hf.train(tmp_path / "parts", config=config, **EACH_EPOCH), whole)


def test_a_best_model_that_is_lost_is_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hf.train(tmp_path, at={EPOCH_END + 1: ends.terminate}, **EACH_EPOCH)
    shutil.rmtree(tmp_path / "out")
    resumed = hf.train(tmp_path, **EACH_EPOCH)
    assert resumed.code == 0
    assert f"load_best_model_at_end: the checkpoint of step {EPOCH_END}, the best so far, is not in" in caplog.text


class Zeroing(TrainerCallback):  # type: ignore[misc]
    """It zeroes the gradients of a loss, which transformers does not know."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["optimizer"].zero_grad()


class Head(nn.Module):
    """A loss with weights of its own, as sentence-transformers has them; it counts how often it is asked."""

    asked: Tensor

    def __init__(self, model: nn.Module | None) -> None:
        super().__init__()
        self.model = model
        self.scorer = nn.Linear(32, 1)
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, logits: Tensor) -> Tensor:
        self.asked = self.asked + 1
        score: Tensor = self.scorer(logits)
        return score.square().mean() * (1 + self.asked / 100)


class Weighted(Trainer):  # type: ignore[misc]
    """A Trainer whose optimizer has weights of `self.loss` besides those of the model."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.loss = self.make_loss()

    def make_loss(self) -> Any:
        return Head(self.model)

    @property
    def heads(self) -> list[Head]:
        return list(self.loss.values()) if isinstance(self.loss, dict) else [self.loss]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        for head in self.heads:
            optimizer.add_param_group({"params": list(head.scorer.parameters())})
        return optimizer

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + sum(head(outputs.logits) for head in self.heads)
        return (loss, outputs) if return_outputs else loss


class WeightedByName(Weighted):
    """One loss for each of its data sets."""

    def make_loss(self) -> Any:
        return {"pairs": Head(self.model), "triplets": Head(self.model)}


class WeightedApart(Weighted):
    """Its loss does not know the model."""

    def make_loss(self) -> Any:
        return Head(None)


@resume.exact(
    "transformers: losses with weights", "modules that are attributes of the Trainer, sentence-transformers say"
)
@pytest.mark.parametrize("step", [MID_EPOCH - 1, EPOCH_END])
@pytest.mark.parametrize("kind", [Weighted, WeightedByName, WeightedApart])
def test_a_loss_with_weights_comes_back_too(kind: type[Weighted], step: int, tmp_path: Path) -> None:
    whole = hf.train(tmp_path / "whole", kind=kind, later=[Zeroing()])
    stopped = hf.train(tmp_path / "parts", kind=kind, later=[Zeroing()], at={step: ends.terminate})
    resumed = hf.train(tmp_path / "parts", kind=kind, later=[Zeroing()])
    assert (whole.code, stopped.code, resumed.code) == (0, 143, 0), (whole.error, stopped.error, resumed.error)
    assert resumed.losses == whole.losses
    assert_same(resumed, whole)
    for mine, other in zip(resumed.trainer.heads, whole.trainer.heads, strict=True):
        assert torch.equal(mine.scorer.weight, other.scorer.weight)
        assert torch.equal(mine.asked, other.asked)


@resume.refused("transformers: losses whose gradients add up over steps", "say optimizer.zero_grad() in a callback")
def test_gradients_of_a_loss_that_outlast_their_step_are_refused(tmp_path: Path) -> None:
    refused = hf.train(tmp_path, kind=Weighted)
    assert refused.code == 78
    assert refused.error.startswith("loss: gradients of its weights are left after a step")
    assert refused.state.global_step == 1


class Ending(TrainerCallback):  # type: ignore[misc]
    """It ends the training in one of its hooks."""

    def __init__(self, hook: str) -> None:
        def end(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = control.should_training_stop or state.global_step >= MID_EPOCH

        setattr(self, hook, end)


class Impatient(Trainer):  # type: ignore[misc]
    """It ends the training where no callback hears of it."""

    last = MID_EPOCH - 1

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.state.global_step == self.last:
            self.control.should_training_stop = True


def is_over(directory: Path, step: int = MID_EPOCH, **arguments: Any) -> bool:
    """The same command trains nothing more."""
    again = hf.train(directory, at=dict.fromkeys(range(1, 99), ends.vanish), **arguments)
    return (again.code, again.state.global_step) == (0, step)


@pytest.mark.parametrize("hook", ["on_step_end", "on_log", "on_evaluate"])
@pytest.mark.parametrize("stops", [{}, {MID_EPOCH - 1: ends.terminate}], ids=["whole", "resumed"])
def test_an_end_that_another_callback_decides_is_meant(stops: dict[int, ends.Event], hook: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2}
    if stops:
        hf.train(tmp_path, at=stops, later=[Ending(hook)], **arguments)
    ended = hf.train(tmp_path, later=[Ending(hook)], **arguments)
    assert ended.complete is not None
    assert (ended.complete.step, ended.complete.reason) == (MID_EPOCH, "transformers ended the training")
    assert is_over(tmp_path, later=[Ending(hook)], **arguments)


def test_an_end_that_a_trainer_decides_by_itself_is_meant(tmp_path: Path) -> None:
    ended = hf.train(tmp_path, kind=Impatient)
    assert ended.complete is not None
    assert (ended.complete.step, ended.complete.reason) == (Impatient.last, LEFT_ON_PURPOSE)
    assert is_over(tmp_path, Impatient.last, kind=Impatient)


def test_the_server_hears_it_once_and_not_from_kubeflows_callback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    with StatusServer() as server:
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", server.url)
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(token))
        own = tiny.config(tmp_path / "checkpoints", server=Server(url=server.url, token_file=token), report_seconds=0.0)
        ran = hf.train(tmp_path, config=own)
    assert "kubeflow" in ran.trainer.args.report_to
    assert [report.step for report in server.reports if report.step is None] == []
    assert (server.reports[-1].step, server.reports[-1].percentage) == (hf.STEPS, 100)
    assert math.isfinite(server.reports[-1].metrics["loss"])


def test_other_callbacks_end_in_order_when_the_run_is_stopped(tmp_path: Path) -> None:
    class Logger(TrainerCallback):  # type: ignore[misc]
        ended = False

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ended = True

    logger = Logger()
    assert hf.train(tmp_path, at={2: ends.terminate}, callbacks=[logger]).code == 143
    assert logger.ended


def test_a_trainer_without_the_callback_is_as_it_was(tmp_path: Path) -> None:
    trainer = hf.make_trainer(tmp_path, [], save_strategy="steps", save_steps=4)
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert trainer.state.global_step == hf.STEPS
    assert not (tmp_path / "checkpoints").exists()


@resume.refused("transformers: auto_find_batch_size", "set auto_find_batch_size=False")
def test_a_batch_size_that_finds_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="needs auto_find_batch_size=False"):
        hf.make_trainer(tmp_path, [PitonCallback()], auto_find_batch_size=True).train()


def test_a_second_trainer_of_the_model_is_told_of_and_the_same_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It finds that all steps are done: a fine-tuning that trains nothing."""
    monkeypatch.setenv(names.ENV_CHECKPOINT_DIR, str(tmp_path / "checkpoints"))
    monkeypatch.setattr(earlier_sessions, "_finished", {})
    first = hf.make_trainer(tmp_path, [PitonCallback()])
    first.train()
    first.args.num_train_epochs += 1
    first.train()
    assert first.state.global_step == hf.STEPS + hf.STEPS_PER_EPOCH
    second = hf.make_trainer(tmp_path, [PitonCallback()], learning_rate=1e-3)
    second.model = second.model_wrapped = first.model
    assert caplog.text == ""
    second.train()
    assert "by another Trainer" in caplog.text
    assert "left nothing to train; if this is another one, name each training" in caplog.text


def rank_body(directory: Path, at: dict[int, ends.Event]) -> dict[str, Any]:
    ran = hf.train(directory, at=at, logging_steps=3)
    return {"code": ran.code, "losses": ran.losses}


@resume.exact("transformers: Trainer on two ranks")
@pytest.mark.crash  # forks two ranks three times
def test_two_ranks_stop_together_and_end_with_the_same_weights(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    env = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    through = ranks.run(2, partial(rank_body, whole, {}), **env)
    stopped = ranks.run(2, partial(rank_body, parts, {MID_EPOCH - 1: ends.terminate}), **env)
    resumed = ranks.run(2, partial(rank_body, parts, {}), **env)
    assert [end.result["code"] for end in (*through, *stopped, *resumed)] == [0, 0, 143, 143, 0, 0]
    assert resumed[0].result["losses"] == through[0].result["losses"]
    proofs = [json.loads((d / "checkpoints" / names.COMPLETE_FILE).read_text()) for d in (whole, parts)]
    assert proofs[0]["weightsDigest"] == proofs[1]["weightsDigest"]


@pytest.mark.crash
def test_a_process_that_is_killed_resumes_and_ends_with_the_same_weights(whole: hf.Ran, tmp_path: Path) -> None:
    assert [ends.attempt("tiny_transformers", tmp_path, dies_at=step) for step in (6, 0)] == [-9, 0]
    proof = json.loads((tmp_path / "checkpoints" / names.COMPLETE_FILE).read_text())
    assert whole.complete is not None
    assert proof["weightsDigest"] == whole.complete.weights_digest
