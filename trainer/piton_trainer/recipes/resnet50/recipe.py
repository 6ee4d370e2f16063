"""The recipe `resnet50` from top to bottom: records, crops, model, optimizer, rates, loss, metrics."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it
from torch.optim import SGD, Optimizer
from torch.utils.flop_counter import FlopCounterMode

from piton_trainer.data.image.images import Batch, ShuffledImages, in_turn
from piton_trainer.errors import BadConfig
from piton_trainer.recipes.protocol import DataContext, RecipeContext, Stateful
from piton_trainer.recipes.resnet50 import prepare
from piton_trainer.recipes.resnet50.config import ResnetConfig
from piton_trainer.recipes.resnet50.data import Classes, Data
from piton_trainer.recipes.resnet50.mixing import draw, loss_of, mixed
from piton_trainer.recipes.resnet50.model import ResNet
from piton_trainer.recipes.resnet50.schedule import mean_over_sizes, rate_at, size_at
from piton_trainer.runtime.resources import cores

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, from 0 to 1: what every published ResNet was trained with."""
TOP = 5


class Resnet:
    """The implementation of `resnet50` for the loop; see `piton_trainer.recipes.protocol.Recipe`."""

    def __init__(self, config: ResnetConfig, place: RecipeContext, data: Data) -> None:
        self.data = data
        self.skipped_data = data.skipped_data
        self.config = _resolved(config, data.count)
        self.place = place
        self.images_overall = (self.config.steps or 1) * config.batch_size
        self.warmup = _warmup(config, self.images_overall / data.count)
        self.threads = config.decode_threads or max(1, cores() // max(1, torch.cuda.device_count()))
        self.loader = ShuffledImages(
            data.training,
            count=data.count,
            device_batch=config.device_batch_size,
            total_batch=config.batch_size,
            size_at=lambda position: size_at(config.sizes, position / self.images_overall),
            min_area=config.min_crop,
            flip=config.flip,
            window=config.shuffle_window,
            seed=config.seed,
            threads=self.threads,
            rank=place.rank,
            world_size=place.world_size,
            device=place.device,
        )
        self.tokens_per_step = config.batch_size
        self.extras: Mapping[str, Stateful] = {"classes": Classes(data.classes, data.training.about.classes)}
        colours = torch.tensor([MEAN, DEVIATION], device=place.device) * 255
        self._mean, self._deviation = (colour.view(1, 3, 1, 1) for colour in colours)

    def describe(self) -> str:
        """One line for the log."""
        return (
            f"resnet50: {self.data.count:,} training and {len(self.data.held_out):,} validation images of "
            f"{self.data.classes} classes, {self.config.steps:,} steps ({self.images_overall / self.data.count:.3g} "
            f"epochs) at {', '.join(str(size) for _, size in self.config.sizes)} pixels"
        )

    def build(self) -> nn.Module:
        """The model, on the default device, with whatever numbers its memory holds."""
        config = self.config
        return ResNet(
            config.layers,
            classes=self.data.classes,
            width=config.width,
            small_images=config.small_images,
            blur=config.blur_pool,
        )

    def draw_weights(self, model: nn.Module) -> None:
        """Draw the initial weights."""
        _resnet(model).draw_weights(self.config.seed, zero_last=self.config.zero_last)

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        """The module that is compiled: the whole, since its blocks have many shapes and torch caches code for a few."""
        return [_resnet(model)]

    def flops_per_token(self, model: nn.Module) -> float:  # noqa: ARG002 - counted on a twin without numbers
        """Of training, per image: the mean over the training, as images grow. A backward pass is two forward ones."""
        with torch.device("meta"):
            twin = self.build().eval()
            forward = [_flops(twin, size) for _, size in self.config.sizes]
        return 3.0 * mean_over_sizes(self.config.sizes, forward)

    def optimizers(self, model: nn.Module) -> list[Optimizer]:
        """SGD; only matrices and kernels decay. `tune` sets the rate."""
        config, weights = self.config, list(model.parameters())
        groups = [
            {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        return [SGD(groups, lr=config.peak_rate, momentum=config.momentum, nesterov=config.nesterov)]

    def tune(self, optimizers: Sequence[Optimizer], *, fraction: float, step: int) -> None:  # noqa: ARG002
        """Set the rate, which follows from the config and the moment alone."""
        rate = rate_at(self.config, fraction, warmup=self.warmup)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy against smoothed and maybe mixed labels."""
        images = self._normalized(batch.images)
        mix = draw(self.config, first=batch.first, count=len(images), size=images.shape[-1])
        logits = model(images if mix is None else mixed(images, mix))
        return loss_of(logits, batch.labels, mix, smoothing=self.config.label_smoothing)

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Tensor], int]:
        """Sums over this rank's share of the validation images: cross-entropy, and hits in percent."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.place.device)
        total = 0
        for batch in self._held_out():
            sums += self._judged(model, batch)
            total += len(batch.labels)
        return dict(zip(("val_loss", "val_top1", "val_top5"), sums, strict=True)), total

    def _held_out(self) -> Iterable[Batch]:
        return in_turn(
            self.data.validation,
            self.data.held_out,
            batch=self.config.device_batch_size,
            size=self.config.eval_size or self.loader.size_at(self.loader.position - 1),
            crop_ratio=self.config.eval_crop,
            threads=self.threads,
            rank=self.place.rank,
            world_size=self.place.world_size,
            device=self.place.device,
        )

    def _judged(self, model: nn.Module, batch: Batch) -> Tensor:
        images = self._normalized(batch.images)
        logits = model(images).double()
        if self.config.eval_flip:
            logits = (logits + model(images.flip(3)).double()) / 2
        best = logits.topk(min(TOP, logits.shape[1])).indices == batch.labels.unsqueeze(1)
        nats = F.cross_entropy(logits, batch.labels, reduction="sum")
        return torch.stack([nats, 100.0 * best[:, 0].sum(), 100.0 * best.sum()]).double()

    def _normalized(self, images: Tensor) -> Tensor:
        """Bytes (count, height, width, 3) as numbers around zero, channels second and yet last in memory."""
        numbers: Tensor = (images.permute(0, 3, 1, 2).float() - self._mean) / self._deviation
        return numbers


def build(config: ResnetConfig, place: DataContext) -> Resnet:
    """The recipe, with its files of records made and opened.

    Raises:
        BadConfig: the images are missing or cannot be used.
    """
    place.run_cache.on_main(partial(prepare.refresh, config, place.directory))
    paths = prepare.files(config, place.directory)
    return Resnet(config, place, Data(paths, config.validation_fraction, config.max_skipped))


def _resolved(config: ResnetConfig, count: int) -> ResnetConfig:
    """The config with epochs told in steps, now that the number of images is known."""
    changes: dict[str, Any] = {}
    if config.epochs is not None:
        changes["steps"] = math.ceil(config.epochs * count / config.batch_size)
    if config.eval_epochs is not None:
        changes["eval_every"] = max(1, round(config.eval_epochs * count / config.batch_size))
    return config.model_copy(update=changes)


def _warmup(config: ResnetConfig, epochs: float) -> float:
    """The part of the training in which the rate rises.

    Raises:
        BadConfig: that is all of it.
    """
    try:
        config.check_warmup(epochs)
    except ValueError as error:
        raise BadConfig(f"trainer.config.{error}") from error
    return config.warmup_epochs / epochs


def _flops(model: nn.Module, size: int) -> float:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size))
    return float(counter.get_total_flops())


def _resnet(model: nn.Module) -> ResNet:
    assert isinstance(model, ResNet)
    return model
