"""`resnet50` in the shared loop: it learns, it resumes to the bit, on two ranks as well, and it ends at its target."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import piton_trainer
from piton.contract.termination import ExitCode
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.recipes.resnet50.data import Data
from piton_trainer.recipes.resnet50.prepare import files
from piton_trainer.recipes.resnet50.recipe import Resnet
from piton_trainer.training.loop import TrainableModel
from support import ranks
from support.attempts import CrashError, assert_same_end, completion, crash, terminate
from support.pictures import quadrants
from support.resnet import a_config, attempt


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quadrants(tmp_path_factory.mktemp("data") / "images.npz")


def test_a_tiny_one_learns_which_quarter_is_the_brightest(images: Path, tmp_path: Path) -> None:
    metrics = attempt(tmp_path / "run", a_config(images, epochs=8.0))
    assert metrics["val_top1"] > 90
    assert metrics["val_top5"] == 100.0


@pytest.mark.parametrize("changes", [{}, {"ema": None, "precision": "bf16", "blurPool": True}], ids=["ema", "bf16"])
def test_stopped_and_crashed_it_ends_with_the_very_weights_of_an_undisturbed_run(
    images: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = a_config(images, **changes)
    attempt(tmp_path / "one" / "undisturbed", config)

    disturbed = tmp_path / "one" / "disturbed"
    with pytest.raises(CrashError):
        attempt(disturbed, config, at=13, action=crash)
    with pytest.raises(Stopped):
        attempt(disturbed, config, at=22, action=terminate)
    attempt(disturbed, config)
    assert_same_end(tmp_path / "one" / "undisturbed", disturbed)


def test_two_ranks_that_stop_and_crash_end_with_the_weights_of_two_that_did_not(images: Path, tmp_path: Path) -> None:
    config = a_config(images, epochs=2.0)
    assert on_two(tmp_path / "one" / "undisturbed", config) == [0, 0]
    assert on_two(tmp_path / "one" / "disturbed", config, at=7, action=terminate) == [ExitCode.STOPPED] * 2
    assert 0 not in on_two(tmp_path / "one" / "disturbed", config, at=13, action=crash)
    assert on_two(tmp_path / "one" / "disturbed", config) == [0, 0]
    assert_same_end(tmp_path / "one" / "undisturbed", tmp_path / "one" / "disturbed")


def on_two(directory: Path, *args: Any, **drill: Any) -> list[int]:
    return [end.code for end in ranks.run(2, partial(attempt, directory, *args, **drill))]


def test_a_target_that_is_reached_ends_the_training(images: Path, tmp_path: Path) -> None:
    attempt(tmp_path / "run", a_config(images), target=40.0)
    complete = completion(tmp_path / "run")
    assert complete.reason == "val_top1 reached its target of 40"
    assert complete.step < 36


def test_another_order_of_images_is_refused_when_it_resumes(images: Path, tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        attempt(tmp_path / "run", a_config(images), at=8, action=crash)
    with pytest.raises(BadConfig, match=r"trainer\.config\.seed: the images or their order are not those"):
        attempt(tmp_path / "run", a_config(images, seed=1))


def a_trainee(images: Path, directory: Path, session: piton_trainer.Session, **changes: Any) -> TrainableModel:
    config = a_config(images, cutmix=0.0, mixup=0.0, **changes)
    data = Data(files(config, directory), config.validation_fraction)
    return TrainableModel(Resnet(config, session, data), session)


def skipped(images: Path, directory: Path) -> tuple[int, bool, bool]:
    """Return how often a step that is bad on rank 1 was left out, and if it, and the next one, changed anything."""
    with piton_trainer.session(Config(checkpoint_dir=directory)) as session:
        trainee = a_trainee(images, directory, session, onNonFinite="Skip", ema=0.9)
        trainee.connect()
        loss, batches = trainee.recipe.loss, iter(trainee.recipe.loader)
        trainee.step(next(batches))
        before = everything(trainee)
        trainee.recipe.loss = (  # type: ignore[method-assign]
            lambda *args: loss(*args) * (float("inf") if session.rank == 1 else 1.0)
        )
        trainee.step(next(batches))
        after = everything(trainee)
        trainee.recipe.loss = loss  # type: ignore[method-assign]
        trainee.step(next(batches))
        return trainee.skipped_steps, before != after, after != everything(trainee)


def everything(trainee: TrainableModel) -> list[list[float]]:
    """Return all that a step changes: weights, statistics, momenta and the average."""
    assert trainee.average is not None
    states = [trainee.model.state_dict(), trainee.average.state_dict()]
    states += [state for optimizer in trainee.optimizers for state in optimizer.state.values()]
    kept = [value for state in states for name, value in state.items() if not name.endswith("num_batches_tracked")]
    return [value.flatten().tolist() for value in kept if isinstance(value, torch.Tensor)]


def test_a_step_that_is_bad_on_one_rank_changes_nothing_on_any(images: Path, tmp_path: Path) -> None:
    ends = ranks.run(2, partial(skipped, images, tmp_path))
    assert [end.result for end in ends] == [(1, False, True)] * 2


def statistics_after_steps(images: Path, directory: Path) -> tuple[dict[str, Any], dict[str, float]]:
    with piton_trainer.session(Config(checkpoint_dir=directory)) as session:
        trainee = a_trainee(images, directory, session)
        trainee.connect()
        for _, batches in zip(range(3), trainee.recipe.loader, strict=False):
            trainee.step(batches)
        buffers = {name: buffer.tolist() for name, buffer in trainee.model.named_buffers()}
        return buffers, trainee.evaluate()


def test_every_rank_remembers_what_all_ranks_have_seen(images: Path, tmp_path: Path) -> None:
    (first, judged), (second, judged_too) = (
        end.result for end in ranks.run(2, partial(statistics_after_steps, images, tmp_path / "checkpoints"))
    )
    assert first == second
    assert any(name.endswith("running_var") for name in first)
    assert judged == judged_too


def test_the_average_of_the_weights_has_the_average_of_what_normalisations_remember(
    images: Path, tmp_path: Path
) -> None:
    with piton_trainer.session(Config(checkpoint_dir=tmp_path / "checkpoints")) as session:
        trainee = a_trainee(images, tmp_path / "checkpoints", session)
        trainee.connect()
        seen = []
        for _, batches in zip(range(2), trainee.recipe.loader, strict=False):
            trainee.step(batches)
            seen.append(trainee.model.get_submodule("bn1").state_dict())
            seen[-1] = {name: value.clone() for name, value in seen[-1].items()}
        assert trainee.average is not None
        found = trainee.average.module.get_submodule("bn1").state_dict()
    assert isinstance(trainee.model.get_submodule("bn1"), nn.BatchNorm2d)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(found[name], seen[0][name].lerp(seen[1][name], 1 - 2 / 11))
        assert not torch.equal(found[name], seen[1][name])
    assert found["num_batches_tracked"] == seen[1]["num_batches_tracked"]
