"""The model against what torchvision publishes of its ResNet-50: names, shapes, counts; and its own extras."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows
from torch.utils.flop_counter import FlopCounterMode

from piton_trainer.recipes.resnet50.model import BlurConv2d, Bottleneck, ResNet

RESNET50 = (3, 4, 6, 3)
STAGES = {  # of ResNet-50: blocks, channels that come in, inside a block, that leave it
    "layer1": (3, 64, 64, 256),
    "layer2": (4, 256, 128, 512),
    "layer3": (6, 512, 256, 1024),
    "layer4": (3, 1024, 512, 2048),
}


def published() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in torchvision's state dict of resnet50."""
    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    for stage, (blocks, outside, inside, leaving) in STAGES.items():
        for block in range(blocks):
            coming = outside if block == 0 else leaving
            name = f"{stage}.{block}"
            yield f"{name}.conv1.weight", (inside, coming, 1, 1)
            yield from norm(f"{name}.bn1", inside)
            yield f"{name}.conv2.weight", (inside, inside, 3, 3)
            yield from norm(f"{name}.bn2", inside)
            yield f"{name}.conv3.weight", (leaving, inside, 1, 1)
            yield from norm(f"{name}.bn3", leaving)
            if block == 0:
                yield f"{name}.downsample.0.weight", (leaving, coming, 1, 1)
                yield from norm(f"{name}.downsample.1", leaving)
    yield "fc.weight", (1000, 2048)
    yield "fc.bias", (1000,)


def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def resnet50() -> ResNet:
    with torch.device("meta"):
        return ResNet(RESNET50, classes=1000)


def state(model: ResNet) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


def test_names_and_shapes_are_torchvisions_in_its_order() -> None:
    found = state(resnet50())
    assert found == list(published())
    assert len(found) == 320


def test_what_blurs_loads_the_same_weights() -> None:
    assert state(a_model(blur=True)) == state(a_model())


@pytest.mark.parametrize(("classes", "parameters"), [(1000, 25_557_032), (10, 23_528_522)])
def test_it_has_as_many_parameters_as_is_published(classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = ResNet(RESNET50, classes=classes)
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_it_computes_what_is_published_and_every_stage_halves_the_image() -> None:
    model, shapes = resnet50().eval(), []
    for name, part in model.named_children():
        if name.startswith("layer"):
            part.register_forward_hook(lambda _, __, result: shapes.append(tuple(result.shape[1:])))
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.empty(1, 3, 224, 224, device="meta"))
    assert shapes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert logits.shape == (1, 1000)
    assert counter.get_total_flops() / 2 == pytest.approx(4.09e9, rel=1e-3)


def a_model(*, seed: int = 0, zero_last: bool = False, blur: bool = False, small_images: bool = True) -> ResNet:
    model = ResNet((1, 1), classes=5, width=16, small_images=small_images, blur=blur)
    model.draw_weights(seed, zero_last=zero_last)
    return model


def test_a_small_images_first_stage_sees_all_its_pixels() -> None:
    sizes: list[int] = []
    for small_images in (True, False):
        model = a_model(small_images=small_images)
        model.get_submodule("layer1").register_forward_hook(lambda _, __, result: sizes.append(result.shape[-1]))
        model.eval()(torch.zeros(1, 3, 28, 28))
    assert sizes == [28, 7]


def test_equal_seeds_are_equal_weights_and_kernels_keep_the_size_of_what_passes() -> None:
    one, same, other = a_model(seed=1), a_model(seed=1), a_model(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.fc.weight, other.fc.weight)
    kernel = ResNet((1,), classes=2, width=64).conv1.weight
    assert kernel.shape == (64, 3, 7, 7)
    one_wide = ResNet((1,), classes=2, width=64)
    one_wide.draw_weights(0, zero_last=False)
    assert one_wide.conv1.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)


def test_with_zeros_last_a_block_begins_as_the_way_around_it() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 64, 4, 4)
    block = Bottleneck(64, 16, stride=1, blur=False).eval()
    assert block.downsample is None
    assert not torch.allclose(block(images), F.relu(images))
    model = ResNet((2,), classes=2, width=16)
    model.draw_weights(0, zero_last=True)
    second = model.eval().blocks[1]
    assert torch.equal(second(images), images)


def test_weights_lie_channels_last_and_so_does_what_passes() -> None:
    model = a_model()
    assert model.get_parameter("layer1.0.conv2.weight").is_contiguous(memory_format=torch.channels_last)
    seen: list[Tensor] = []
    model.get_submodule("layer1").register_forward_hook(lambda _, __, result: seen.append(result))
    model.eval()(torch.zeros(2, 3, 8, 8).to(memory_format=torch.channels_last))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_the_blur_is_before_every_second_pixel_is_left_out_and_nowhere_else() -> None:
    convolutions = {
        name: part
        for name, part in ResNet((2, 2, 2, 2), classes=2, width=16, blur=True).named_modules()
        if isinstance(part, nn.Conv2d)
    }
    strided = {name for name, part in convolutions.items() if part.stride[0] > 1}
    blurred = {name for name, part in convolutions.items() if isinstance(part, BlurConv2d)}
    assert strided - blurred == {"conv1"}
    assert len(blurred) == 6  # conv2 and the way around, in the first block of three stages


def test_a_blurred_convolution_does_not_see_a_pattern_of_single_pixels() -> None:
    torch.manual_seed(0)
    plain, blurred = (kind(16, 16, 1, stride=2, padding=0) for kind in (nn.Conv2d, BlurConv2d))
    plain.weight.data = blurred.weight.data
    stripes = torch.zeros(1, 16, 9, 9)
    stripes[..., ::2] = 1.0
    moved = stripes.roll(1, 3)
    inner = (slice(None), slice(None), slice(1, 4), slice(1, 4))
    assert torch.allclose(blurred(stripes)[inner], blurred(moved)[inner], atol=1e-6)
    assert not torch.allclose(plain(stripes)[inner], plain(moved)[inner], atol=1e-1)
