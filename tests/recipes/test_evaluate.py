"""`python -m piton_trainer.evaluate` measures the best checkpoint, as the training did, and changes nothing."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from piton.contract import names
from piton.contract.assignment import Assignment, SavePolicy
from piton.contract.manifest import Manifest
from piton.contract.termination import ExitCode, Outcome, Termination
from piton_trainer import evaluate, stage
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.training import loop
from support import charlm, resnet, twotower
from support.pictures import quadrants
from support.seats import FakeRankContext

METRICS = ("val_loss", "bits_per_char")


def orders(directory: Path, recipe: str = "charlm", **config: Any) -> Config:
    settings = config or charlm.TINY.model_dump(by_alias=True)
    return Config(checkpoint_dir=directory, assignment=Assignment(recipe=recipe, config=settings))


def saved(directory: Path, step: int) -> Mapping[str, float]:
    """What the training had measured when it saved that step."""
    return Manifest.from_json((directory / names.step_folder(step) / names.MANIFEST_FILE).read_text()).metrics


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 10 and 20 of a `charlm` whose averaged weights were evaluated at both."""
    directory = tmp_path_factory.mktemp("trained")
    charlm.attempt(directory, save=SavePolicy(every_steps=10))  # at more steps, a slow disk could skip one
    return directory


@pytest.mark.parametrize("step", [10, 20])
def test_the_checkpoint_that_is_named_is_measured_and_nothing_is_changed(
    trained: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(names.ENV_CHECKPOINT, f"/wherever/{names.step_folder(step)}")
    before = files(trained)
    words = evaluate.evaluate(orders(trained))

    assert (words.outcome, words.step) == (Outcome.FINISHED, step)
    assert set(words.metrics) == set(METRICS)
    assert words.detail.startswith(f"evaluated at step {step}: bits_per_char ")
    assert [words.metrics[name] for name in METRICS] == pytest.approx([saved(trained, step)[name] for name in METRICS])
    assert files(trained) == before


@pytest.mark.parametrize("named", ["", "step-000000005", "nonsense"])
def test_what_is_not_there_is_replaced_by_the_newest_that_is_good(
    trained: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(names.ENV_CHECKPOINT, named)

    assert evaluate.evaluate(orders(trained)).step == 20


def test_a_first_choice_that_is_damaged_is_passed_over(trained: Path, tmp_path: Path) -> None:
    for path, content in files(trained).items():
        copy = tmp_path / path.relative_to(trained)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(
            content[:-1] if path.parent.name == names.step_folder(20) and path.suffix == ".distcp" else content
        )

    assert evaluate.evaluate(orders(tmp_path)).step == 10


@pytest.mark.parametrize("make", [True, False], ids=["an empty directory", "no directory"])
def test_without_a_checkpoint_there_is_nothing_to_evaluate(tmp_path: Path, make: bool) -> None:
    directory = tmp_path / "run"
    if make:
        directory.mkdir()
    with pytest.raises(BadConfig, match=r"there is no good checkpoint in .*, so there is nothing to evaluate"):
        evaluate.evaluate(orders(directory))


def test_a_checkpoint_of_other_objects_is_refused(trained: Path) -> None:
    other = charlm.changed(depth=3).model_dump(by_alias=True)
    with pytest.raises(BadConfig, match="cannot be resumed from"):
        evaluate.evaluate(orders(trained, **other))


def test_what_is_judged_at_the_size_of_the_moment_is_judged_at_that_size(tmp_path: Path) -> None:
    """`evalSize: null` depends on how far the training was: the loader's position is restored as well."""
    config = resnet.a_config(quadrants(tmp_path / "images.npz", count=120), evalSize=None)
    metrics = resnet.attempt(tmp_path / "run", config)
    words = evaluate.evaluate(
        orders(tmp_path / "run", "resnet50", **config.model_dump(by_alias=True, exclude_unset=True))
    )

    assert words.metrics == pytest.approx({name: metrics[name] for name in words.metrics})


def test_an_evaluation_of_two_towers_leaves_their_results_alone(tmp_path: Path) -> None:
    """The best checkpoint knows less than the run does: folds that were better later."""
    twotower.attempt(tmp_path)
    before = files(tmp_path)
    step = min(int(path.name[5:]) for path in tmp_path.glob("step-*"))
    visitor = evaluate.CheckpointEvaluation(orders(tmp_path, "twotower"), Ranks(), best=step)
    metrics = loop.evaluate(visitor, twotower.a_recipe(context=FakeRankContext(directory=tmp_path)))

    assert visitor.step == step
    assert metrics["inner_ndcg_10"] == pytest.approx(saved(tmp_path, step)["inner_ndcg_10"])
    assert files(tmp_path) == before


# --- how a stage ends ------------------------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Termination | None]:
    """A place for a stage's last words."""
    log = tmp_path / "termination"
    monkeypatch.setenv(names.ENV_TERMINATION_LOG, str(log))
    return lambda: Termination.from_json(log.read_text())


def test_the_figures_are_in_the_last_words(
    trained: Path, told: Callable[[], Termination | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_config", lambda: orders(trained))
    evaluate.main()

    words = told()
    assert words is not None
    assert words.metrics["val_loss"] == pytest.approx(saved(trained, 20)["val_loss"])


def test_a_stage_that_is_told_to_stop_does_so_at_once(told: Callable[[], Termination | None]) -> None:
    def work(_: Config) -> Termination:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    with pytest.raises(Stopped) as caught:
        stage.run(work)

    words = told()
    assert caught.value.code == ExitCode.STOPPED
    assert words is not None
    assert words.outcome is Outcome.STOPPED
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_stage_that_fails_says_why(told: Callable[[], Termination | None]) -> None:
    def work(_: Config) -> Termination:
        raise RuntimeError("no route to host")

    with pytest.raises(RuntimeError):
        stage.run(work)

    assert told() == Termination(outcome=Outcome.FAILED, detail="RuntimeError: no route to host")
