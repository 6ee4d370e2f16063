"""`PitonCallback` in a real lightning.Trainer: stop anywhere, resume, and the weights are those of a whole run."""

import json
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    Checkpoint,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
)
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy

from piton.contract import names
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton.contract.termination import Outcome, ScriptEnd, Termination
from piton_trainer.checkpoint.format import layout
from piton_trainer.config import Server
from support import ends, ranks, resume, tiny
from support import tiny_lightning as pl
from support.status_server import StatusServer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own use of torch
]
MID_EPOCH, EPOCH_END = 7, 2 * pl.BATCHES


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pl.Ran:
    return pl.train(tmp_path_factory.mktemp("whole"))


def assert_same(ran: pl.Ran, whole: pl.Ran) -> None:
    assert [name for name in whole.weights if not torch.equal(ran.weights[name], whole.weights[name])] == []
    assert ran.complete is not None
    assert whole.complete is not None
    assert ran.complete.weights_digest == whole.complete.weights_digest


@pytest.mark.parametrize("step", [MID_EPOCH, EPOCH_END])
def test_a_fit_stopped_in_or_after_an_epoch_ends_with_the_same_weights(
    step: int, whole: pl.Ran, tmp_path: Path
) -> None:
    stopped = pl.train(tmp_path, at={step: ends.terminate})
    resumed = pl.train(tmp_path)
    assert (stopped.code, stopped.error) == (143, f"told to stop by SIGTERM; step {step} is saved")
    assert stopped.complete is None
    assert stopped.seen + resumed.seen == whole.seen
    assert_same(resumed, whole)
    assert (resumed.trainer.global_step, resumed.trainer.current_epoch) == (pl.STEPS, pl.EPOCHS)


@resume.exact("Lightning: Trainer.fit, stopped at any step")
@pytest.mark.crash
@pytest.mark.parametrize(
    "arguments",
    [
        {"validate": False},
        {"val_check_interval": 2},
        {"val_check_interval": 2, "accumulate_grad_batches": 2},
        {"check_val_every_n_epoch": 2, "max_steps": 13, "max_epochs": -1},
        {"workers": 2},
    ],
    ids=lambda arguments: "-".join(map(str, arguments)),
)
def test_a_fit_stopped_at_any_step_ends_with_the_same_weights(arguments: dict[str, Any], tmp_path: Path) -> None:
    whole = pl.train(tmp_path / "whole", **arguments)
    for step in range(1, whole.trainer.global_step):
        directory = tmp_path / str(step)
        stopped = pl.train(directory, at={step: ends.terminate}, **arguments)
        resumed = pl.train(directory, **arguments)
        assert stopped.code == 143, step
        assert stopped.seen + resumed.seen == whole.seen, step
        assert_same(resumed, whole)


class Late(Checkpoint):  # type: ignore[misc]
    """Listed after PitonCallback, and to Lightning one of those that come last."""

    def __init__(self) -> None:
        self.factor = 1.0

    def change(self, pl_module: Any, factor: float) -> None:
        self.factor *= factor
        with torch.no_grad():
            pl_module.net[0].bias.mul_(self.factor)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.change(pl_module, 0.99)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.change(pl_module, 1.01)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.change(pl_module, 1.02)

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor = state["factor"]


@resume.exact("Lightning: hooks of the module and of other callbacks", "target networks, averages, counters")
@pytest.mark.parametrize("step", [MID_EPOCH - 1, MID_EPOCH, EPOCH_END])
@pytest.mark.parametrize("arguments", [{}, {"val_check_interval": 2, "accumulate_grad_batches": 2}], ids=["", "2"])
def test_a_checkpoint_has_what_all_hooks_have_done_in_its_step(
    arguments: dict[str, Any], step: int, tmp_path: Path
) -> None:
    step = step if not arguments else step // 2
    whole = pl.train(tmp_path / "whole", kind=pl.Following, callbacks=[Late()], **arguments)
    stopped = pl.train(
        tmp_path / "parts", kind=pl.Following, callbacks=[Late()], at={step: ends.terminate}, **arguments
    )
    resumed = pl.train(tmp_path / "parts", kind=pl.Following, callbacks=[Late()], **arguments)
    assert (stopped.code, stopped.error) == (143, f"told to stop by SIGTERM; step {step} is saved")
    assert stopped.seen + resumed.seen == whole.seen
    assert_same(resumed, whole)


@resume.exact("Lightning: manual optimization that accumulates gradients", "a save waits for the step that uses them")
@pytest.mark.parametrize("stop", [4, 5, 7, 9])
@pytest.mark.parametrize("kind", [pl.Accumulating, pl.AccumulatingThree])
def test_a_module_that_accumulates_by_hand_loses_no_gradients(
    kind: type[pl.Accumulating], stop: int, tmp_path: Path
) -> None:
    whole = pl.train(tmp_path / "whole", kind=kind, validate=False)
    stopped = pl.train(tmp_path / "parts", kind=kind, validate=False, at={stop: ends.terminate})
    resumed = pl.train(tmp_path / "parts", kind=kind, validate=False)
    assert stopped.code == 143
    assert len(stopped.seen) == stop + -stop % kind.every
    assert stopped.seen + resumed.seen == whole.seen
    assert_same(resumed, whole)


FINDERS: dict[str, Callable[[], Callback]] = {
    "LearningRateFinder": lambda: LearningRateFinder(num_training_steps=30, min_lr=1e-4),
    "BatchSizeFinder": lambda: BatchSizeFinder(steps_per_trial=1, init_val=2, max_trials=2),
}


@resume.exact("Lightning: LearningRateFinder and BatchSizeFinder", "what they found in the first attempt is kept")
@pytest.mark.filterwarnings("ignore:.*Found unsupported keys in the optimizer configuration")
@pytest.mark.parametrize("stop", [2, 7])
@pytest.mark.parametrize("names_of_finders", [["LearningRateFinder"], ["BatchSizeFinder"], list(FINDERS)])
def test_what_a_finder_has_set_comes_back(
    names_of_finders: list[str], stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def train(directory: Path, **arguments: Any) -> pl.Ran:
        finders = [FINDERS[name]() for name in names_of_finders]
        return pl.train(directory, kind=pl.Tunable, brings_data=True, validate=False, callbacks=finders, **arguments)

    whole = train(tmp_path / "whole")
    stopped = train(tmp_path / "parts", at={stop: ends.terminate})
    resumed = train(tmp_path / "parts")
    assert (whole.code, stopped.code, resumed.code) == (0, 143, 0)
    assert resumed.trainer.global_step == whole.trainer.global_step
    found = [(ran.trainer.lightning_module.lr, ran.trainer.lightning_module.batch_size) for ran in (whole, resumed)]
    assert found[0] == found[1] != (pl.Tunable({}).lr, pl.Tunable({}).batch_size)
    assert_same(resumed, whole)


def test_gradients_that_a_validation_discards_are_not_waited_for(tmp_path: Path) -> None:
    """Lightning clears those of a module that steps by hand, whether or not it is done with them."""
    whole = pl.train(tmp_path / "whole", kind=pl.Accumulating)
    stopped = pl.train(tmp_path / "parts", kind=pl.Accumulating, at={pl.BATCHES: ends.terminate})
    resumed = pl.train(tmp_path / "parts", kind=pl.Accumulating)
    assert (stopped.code, len(stopped.seen)) == (143, pl.BATCHES)
    assert_same(resumed, whole)


def test_a_fit_that_vanishes_resumes_from_the_newest_save(whole: pl.Ran, tmp_path: Path) -> None:
    with pytest.raises(tiny.LostError):
        pl.train(tmp_path, at={7: ends.vanish})
    assert next(layout.committed(tmp_path / "checkpoints")).manifest.step == 4
    assert_same(pl.train(tmp_path), whole)


def test_a_finished_fit_trains_nothing_and_has_the_trained_module(whole: pl.Ran, tmp_path: Path) -> None:
    pl.train(tmp_path)
    (tmp_path / "checkpoints" / names.COMPLETE_FILE).unlink()  # it was killed before it could say so
    again = pl.train(tmp_path)
    assert again.seen == []
    assert_same(again, whole)


def test_a_validation_belongs_to_the_step_before_it_and_can_end_the_run(tmp_path: Path) -> None:
    orders = Assignment(save=SavePolicy(), objective=Objective(metric="val_loss", target=99.0))
    config = tiny.config(tmp_path / "checkpoints", orders)
    ran = pl.train(tmp_path, config=config, val_check_interval=2, min_epochs=2)
    assert (ran.code, len(ran.seen)) == (0, 2)
    assert ran.complete is not None
    assert (ran.complete.step, ran.complete.reason) == (2, "val_loss reached its target of 99")
    assert ran.complete.best_metric is not None
    assert pl.train(tmp_path, config=config, val_check_interval=2).seen == []


def test_a_validation_that_is_over_is_not_judged_again_at_each_step(tmp_path: Path) -> None:
    orders = Assignment(save=SavePolicy(), objective=Objective(metric="val_loss", patience=2, goal="Maximize"))
    ran = pl.train(tmp_path, config=tiny.config(tmp_path / "checkpoints", orders))
    assert ran.complete is not None
    assert ran.complete.step % pl.BATCHES == 0


def test_a_fit_that_ends_early_is_finished(tmp_path: Path) -> None:
    callbacks = [EarlyStopping("val_loss", min_delta=99.0, patience=1)]
    ran = pl.train(tmp_path, callbacks=callbacks)
    assert ran.complete is not None
    assert (ran.complete.step, ran.complete.reason) == (2 * pl.BATCHES, "lightning ended the training")
    assert pl.train(tmp_path, callbacks=[EarlyStopping("val_loss", min_delta=99.0, patience=1)]).seen == []


def test_the_server_hears_what_the_module_logs(tmp_path: Path) -> None:
    with StatusServer() as server:
        own = tiny.config(tmp_path / "checkpoints", server=Server(url=server.url), report_seconds=0.0)
        pl.train(tmp_path, config=own)
    last = server.reports[-1]
    assert (last.step, last.percentage) == (pl.STEPS, 100)
    assert {"loss", "train_loss", "val_loss"} <= last.metrics.keys()


def test_other_callbacks_hear_of_the_end_and_the_signals_are_given_back(tmp_path: Path) -> None:
    class Listener(Callback):  # type: ignore[misc]
        end: BaseException | None = None

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self.end = exception

    before, listener = signal.getsignal(signal.SIGTERM), Listener()
    assert pl.train(tmp_path, at={2: ends.terminate}, callbacks=[listener]).code == 143
    assert str(listener.end) == "told to stop by SIGTERM; step 2 is saved"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_lightnings_own_checkpoints_are_made_and_read_as_before(tmp_path: Path) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", every_n_train_steps=5)
    pl.train(tmp_path, callbacks=[own])
    alone = pl.make_trainer([own])
    alone.fit(module := pl.Module({}), pl.loader(), ckpt_path=own.best_model_path, weights_only=False)
    assert module.seen == []
    assert alone.global_step == pl.STEPS


class Fsdp(FSDPStrategy):  # type: ignore[misc]
    """Lightning takes FSDP itself with a GPU only."""


class DeepSpeed(DeepSpeedStrategy):  # type: ignore[misc]
    """Without DeepSpeed, which it cannot be made with otherwise."""

    def __init__(self) -> None:
        super(DeepSpeedStrategy, self).__init__()


def rank_body(kind: type[pl.Module], directory: Path, at: dict[int, ends.Event]) -> dict[str, Any]:
    warnings.simplefilter("ignore")  # Lightning has more of them with ranks
    ran = pl.train(directory, at=at, kind=kind, strategy="ddp", devices=2, plugins=[TorchElasticEnvironment()])
    return {"code": ran.code, "error": ran.error, "weights": {name: w.tolist() for name, w in ran.weights.items()}}


@resume.exact("Lightning: Trainer on two ranks")
@pytest.mark.crash  # forks two ranks three times
@pytest.mark.parametrize("kind", [pl.Module, pl.Accumulating])
def test_two_ranks_stop_together_and_end_with_the_same_weights(kind: type[pl.Module], tmp_path: Path) -> None:
    through = ranks.run(2, partial(rank_body, kind, tmp_path / "whole", {}))
    stopped = ranks.run(2, partial(rank_body, kind, tmp_path / "parts", {3: ends.terminate}))
    resumed = ranks.run(2, partial(rank_body, kind, tmp_path / "parts", {}))
    codes = [[end.result["code"] for end in each] for each in (through, stopped, resumed)]
    assert codes == [[0, 0], [143, 143], [0, 0]]
    assert [end.result["weights"] for end in resumed] == [end.result["weights"] for end in through]


@resume.refused("Lightning: strategies with checkpoints of their own", "FSDP and DeepSpeed save by themselves")
@pytest.mark.parametrize(
    ("strategy", "name"), [(Fsdp, "Fsdp"), (ModelParallelStrategy, "ModelParallelStrategy"), (DeepSpeed, "DeepSpeed")]
)
def test_a_strategy_with_checkpoints_of_its_own_is_refused_before_anything_is_trained(
    strategy: type[Any], name: str, tmp_path: Path
) -> None:
    log = tmp_path / "termination-log"
    config = tiny.config(tmp_path / "checkpoints", termination_log=log)
    ran = pl.train(tmp_path, config=config, strategy=strategy())
    assert ran.code == 78
    assert ran.error.startswith(f"PitonCallback cannot use {name}, which")
    assert ran.seen == []
    message = Termination.from_json(log.read_text())
    assert message is not None
    assert (message.outcome, message.detail) == (Outcome.BAD_CONFIG, ran.error)


def test_the_message_of_a_finished_training_says_that_the_script_goes_on(tmp_path: Path) -> None:
    """An export comes after `trainer.fit()`, also in the attempt that finds the training finished."""
    log = tmp_path / "termination-log"
    config = tiny.config(tmp_path / "checkpoints", tiny.every(4), termination_log=log)
    for attempt in (1, 2):
        log.write_text("")
        pl.train(tmp_path, config=replace(config, attempt=attempt))
        message = Termination.from_json(log.read_text())
        assert message is not None
        assert (message.is_proof, message.script) == (True, ScriptEnd.RUNNING)


def with_path_objects(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, with the name of Piton's checkpoint as a `Path`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*[Path(value) if isinstance(value, str) else value for value in args], **kwargs)

    return call


def test_a_checkpoint_that_is_named_by_a_path_object_is_kept_as_well(
    whole: pl.Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strategy may make one of the name that it is given."""
    for name in ("save_checkpoint", "load_checkpoint"):
        monkeypatch.setattr(Strategy, name, with_path_objects(getattr(Strategy, name)))
    monkeypatch.chdir(tmp_path)
    pl.train(tmp_path, at={MID_EPOCH: ends.terminate})
    assert_same(pl.train(tmp_path), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.crash
def test_a_process_that_is_killed_resumes_and_ends_with_the_same_weights(whole: pl.Ran, tmp_path: Path) -> None:
    assert [ends.attempt("tiny_lightning", tmp_path, dies_at=step) for step in (8, 0)] == [-9, 0]
    proof = json.loads((tmp_path / "checkpoints" / names.COMPLETE_FILE).read_text())
    assert whole.complete is not None
    assert proof["weightsDigest"] == whole.complete.weights_digest
