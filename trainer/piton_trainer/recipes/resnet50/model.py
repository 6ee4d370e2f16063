"""ResNets of bottleneck blocks. Modules are named as torchvision names them, so that weights can be exchanged.

    conv1 bn1 [maxpool]   layer1 .. layer4, each of bottlenecks   mean over the image   fc
    bottleneck: conv1 1x1, conv2 3x3 (it has the stride), conv3 1x1, each with its bn; downsample where shapes change

This is what torchvision calls ResNet v1.5. The layout in memory is channels-last, which GPUs and CPUs compute faster.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

EXPANSION = 4
"""Channels that leave a block, over those inside."""
BLUR_FROM_CHANNELS = 16
"""Convolutions with fewer do without the blur: the first one, which sees the image itself."""


class BlurConv2d(nn.Conv2d):
    """A convolution that blurs what comes in, so that leaving out pixels does not alias. Its weights are the same."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int, padding: int) -> None:
        super().__init__(channels_in, channels_out, kernel, stride=stride, padding=padding, bias=False)
        blur = (torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16.0).repeat(channels_in, 1, 1, 1)
        self.register_buffer("blur", blur, persistent=False)  # a constant is no weight

    def forward(self, x: Tensor) -> Tensor:
        """Blur, then convolve."""
        blur = self.get_buffer("blur").to(x.dtype)
        return super().forward(F.conv2d(x, blur, padding=1, groups=self.in_channels))


class Bottleneck(nn.Module):
    """Three convolutions and a way around them."""

    def __init__(self, channels_in: int, planes: int, *, stride: int, blur: bool) -> None:
        super().__init__()
        channels_out = planes * EXPANSION
        self.conv1 = _conv(channels_in, planes, 1, blur=blur)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride=stride, blur=blur)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, channels_out, 1, blur=blur)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = None
        if stride > 1 or channels_in != channels_out:
            shortcut = _conv(channels_in, channels_out, 1, stride=stride, blur=blur)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """Both ways, added."""
        around = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + around)


class ResNet(nn.Module):
    """Images (count, 3, height, width) to logits (count, classes)."""

    def __init__(
        self, layers: Sequence[int], *, classes: int, width: int = 64, small_images: bool = False, blur: bool = False
    ) -> None:
        super().__init__()
        self.small_images = small_images
        self.conv1 = _conv(3, width, 3 if small_images else 7, stride=1 if small_images else 2, blur=blur)
        self.bn1 = nn.BatchNorm2d(width)
        channels, stages = width, []
        for number, depth in enumerate(layers):
            planes = width * 2**number
            stages.append(_stage(channels, planes, depth, stride=1 if number == 0 else 2, blur=blur))
            channels = planes * EXPANSION
            self.add_module(f"layer{number + 1}", stages[-1])
        self._stages = tuple(stages)
        self.fc = nn.Linear(channels, classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        x = F.relu(self.bn1(self.conv1(images)))
        if not self.small_images:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in self._stages:
            x = stage(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile for each size of images anew: they are few, and code for any size is slower and may not compile."""
        super().compile(*args, dynamic=False, **kwargs)

    @property
    def blocks(self) -> list[nn.Module]:
        """The bottlenecks."""
        return [block for stage in self._stages for block in stage]

    @torch.no_grad()
    def draw_weights(self, seed: int, *, zero_last: bool) -> None:
        """Draw the initial weights: He's for convolutions, so that no layer makes its outputs grow or shrink."""
        generator = torch.Generator(device=self.fc.weight.device).manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.uniform_(-bound, bound, generator=generator)
        if zero_last:
            for block in self.blocks:
                nn.init.zeros_(block.get_parameter("bn3.weight"))


def _stage(channels: int, planes: int, depth: int, *, stride: int, blur: bool) -> nn.Sequential:
    first = Bottleneck(channels, planes, stride=stride, blur=blur)
    rest = [Bottleneck(planes * EXPANSION, planes, stride=1, blur=blur) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


def _conv(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, blur: bool) -> nn.Conv2d:
    padding = kernel // 2
    if blur and stride > 1 and channels_in >= BLUR_FROM_CHANNELS:
        return BlurConv2d(channels_in, channels_out, kernel, stride=stride, padding=padding)
    return nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=padding, bias=False)
