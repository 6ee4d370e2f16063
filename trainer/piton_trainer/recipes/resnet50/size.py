"""The size of a `resnet50`, from its config alone: convolution by convolution, as `model` builds it."""

from collections.abc import Iterator
from dataclasses import dataclass

from piton_trainer.data.image.packages import PACKAGES
from piton_trainer.recipes.resnet50.config import ResnetConfig
from piton_trainer.recipes.resnet50.schedule import mean_over_sizes
from piton_trainer.recipes.sizes import FP32_BYTES, Size

EXPANSION = 4
BLUR_FROM_CHANNELS = 16
_IMAGENET, _DIGITS = 1000, 10
_COUNTER_BYTES = 8
"""A normalisation counts the batches that it has seen."""


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """One of them, with the normalisation that follows it."""

    channels_in: int
    channels_out: int
    kernel: int
    stride: int = 1

    @property
    def weights(self) -> int:
        """Without bias."""
        return self.channels_in * self.channels_out * self.kernel**2

    def flops(self, side: int, *, blur: bool) -> int:
        """Of a square image of this side, forward: a multiplication and an addition per weight and pixel."""
        blurred = blur and self.stride > 1 and self.channels_in >= BLUR_FROM_CHANNELS
        return 2 * self.weights * shrunk(side, self.stride) ** 2 + (
            2 * 9 * self.channels_in * side**2 if blurred else 0
        )


def size(config: ResnetConfig) -> Size:
    """Of the model of this config, for as many classes as its data has, where that is known, or else ImageNet's."""
    classes = _DIGITS if config.data in PACKAGES else _IMAGENET
    layers = [layer for layer, _ in convolutions(config, 1)]
    head = features(config) * classes
    normalised = sum(layer.channels_out for layer in layers)
    parameters = sum(layer.weights for layer in layers) + 2 * normalised + head + classes
    copies = 1 if config.ema is None else 2
    remembered = copies * (2 * normalised * FP32_BYTES + len(layers) * _COUNTER_BYTES)
    momenta = 1 if config.momentum else 0
    return Size(
        parameters=parameters,
        checkpoint_bytes=FP32_BYTES * parameters * (copies + momenta) + remembered,
        flops_per_token=3.0 * mean_over_sizes(config.sizes, [_forward(config, side, head) for _, side in config.sizes]),
        note=f"for {classes:,} classes",
    )


def _forward(config: ResnetConfig, side: int, head: int) -> float:
    return 2.0 * head + sum(layer.flops(at, blur=config.blur_pool) for layer, at in convolutions(config, side))


def features(config: ResnetConfig) -> int:
    """Numbers that the last layer sees."""
    return int(config.width * 2 ** (len(config.layers) - 1) * EXPANSION)


def convolutions(config: ResnetConfig, side: int) -> Iterator[tuple[Convolution, int]]:
    """Each one, and the side of the images that come into it."""
    width = config.width
    first = Convolution(
        channels_in=3,
        channels_out=width,
        kernel=3 if config.small_images else 7,
        stride=1 if config.small_images else 2,
    )
    yield first, side
    if not config.small_images:
        side = shrunk(shrunk(side, 2), 2)
    channels = width
    for stage, depth in enumerate(config.layers):
        planes = width * 2**stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            yield Convolution(channels_in=channels, channels_out=planes, kernel=1), side
            yield Convolution(channels_in=planes, channels_out=planes, kernel=3, stride=stride), side
            if stride > 1 or channels != planes * EXPANSION:
                yield Convolution(channels_in=channels, channels_out=planes * EXPANSION, kernel=1, stride=stride), side
            side, channels = shrunk(side, stride), planes * EXPANSION
            yield Convolution(channels_in=planes, channels_out=channels, kernel=1), side


def shrunk(side: int, stride: int) -> int:
    """Return the side after a layer with an odd kernel and padding of half the kernel."""
    return (side - 1) // stride + 1
