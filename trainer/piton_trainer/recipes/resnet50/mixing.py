"""CutMix and MixUp: each image of a batch gets a part of another one, and of its label.

What is mixed how follows from the seed and the position of the batch in the training alone.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from piton_trainer.recipes.resnet50.config import ResnetConfig


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The mixing of a batch."""

    others: Tensor
    """For each image, the place of the one that it is mixed with."""
    own: float
    """The part of an image that stays its own."""
    box: tuple[int, int, int, int] | None = None
    """CutMix: top, bottom, left and right of what comes from the other; None blends the whole image."""


def draw(config: ResnetConfig, *, first: int, count: int, size: int) -> Mix | None:
    """Return the mixing of the batch at this position; None for no mixing."""
    rng = np.random.default_rng([config.seed, first])
    chance = rng.random(2)
    cuts = chance[0] < config.cutmix
    if not cuts and not chance[1] < config.mixup:
        return None
    alpha = config.cutmix_alpha if cuts else config.mixup_alpha
    own = float(rng.beta(alpha, alpha))
    others = torch.from_numpy(rng.permutation(count))
    if not cuts:
        return Mix(others=others, own=own)
    box = _box(size, 1.0 - own, rng)
    top, bottom, left, right = box
    # At the edge of the image the box is smaller than was drawn, and so is the other's part of the label.
    return Mix(others=others, own=1.0 - (bottom - top) * (right - left) / size**2, box=box)


def _box(size: int, area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    side = round(size * math.sqrt(area))
    middle = rng.integers(size, size=2)
    low, high = (middle - side // 2).clip(0, size), (middle - side // 2 + side).clip(0, size)
    return int(low[0]), int(high[0]), int(low[1]), int(high[1])


def mixed(images: Tensor, mix: Mix) -> Tensor:
    """The images (count, channels, height, width), mixed."""
    others = mix.others.to(images.device)
    if mix.box is None:
        return torch.lerp(images[others], images, mix.own)
    top, bottom, left, right = mix.box
    result = images.clone()
    result[:, :, top:bottom, left:right] = images[others, :, top:bottom, left:right]
    return result


def loss_of(logits: Tensor, labels: Tensor, mix: Mix | None, *, smoothing: float) -> Tensor:
    """Mean cross-entropy against smoothed labels, which are mixed as the images are."""
    own = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if mix is None:
        return own
    other = F.cross_entropy(logits, labels[mix.others.to(labels.device)], label_smoothing=smoothing)
    return mix.own * own + (1.0 - mix.own) * other
