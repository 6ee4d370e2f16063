"""The order of images, and what is shown of them: each once per epoch, for any number of ranks, from any position."""

import io
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piton_trainer.data.image.crops import ASPECT, Crop, center_crop, generator_of, random_crop
from piton_trainer.data.image.images import Batch, ShuffledImages, in_turn
from piton_trainer.data.image.pictures import cut, from_file
from piton_trainer.data.image.record_writer import Recorder
from piton_trainer.data.image.records import Records
from piton_trainer.data.image.shuffle import PAGE, shuffled
from piton_trainer.errors import BadConfig
from support.pictures import ABOUT, jpeg, noise, records_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """24 images in colour; each has its number as its label."""
    return records_of(tmp_path_factory.mktemp("data") / "x.records", [noise(number) for number in range(24)])


def a_loader(
    records: Records,
    *,
    count: int = 24,
    rank: int = 0,
    world_size: int = 1,
    device_batch: int = 2,
    seed: int = 0,
    window: int = 1000,
    threads: int = 1,
) -> ShuffledImages:
    return ShuffledImages(
        records,
        count=count,
        device_batch=device_batch,
        total_batch=8,
        size_at=lambda position: 4 if position < 16 else 6,
        min_area=0.5,
        flip=True,
        window=window,
        seed=seed,
        threads=threads,
        rank=rank,
        world_size=world_size,
    )


def steps(loader: ShuffledImages, count: int) -> Iterator[list[Batch]]:
    return islice(loader, count)


def seen(loader: ShuffledImages, count: int) -> list[list[int]]:
    """The images of the next steps of one rank."""
    return [[label for batch in batches for label in batch.labels.tolist()] for batches in steps(loader, count)]


def shown(loader: ShuffledImages, count: int) -> list[dict[int, bytes]]:
    """What of which image is shown in the next steps of one rank."""
    return [
        {
            int(label): image.numpy().tobytes()
            for batch in batches
            for label, image in zip(batch.labels, batch.images, strict=True)
        }
        for batches in steps(loader, count)
    ]


@pytest.mark.parametrize(("count", "window"), [(10, 100), (1000, 128), (1000, 1000), (999, 100), (PAGE, 7), (0, 5)])
def test_every_record_comes_once_per_epoch_in_an_order_of_its_own(count: int, window: int) -> None:
    orders = [shuffled(count, window=window, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert [sorted(order) for order in orders] == [list(range(count))] * 3
    if count > 5:
        assert len({tuple(order) for order in orders}) == 3


def test_a_window_holds_few_pages_and_mixes_them() -> None:
    order = shuffled(100 * PAGE, window=10 * PAGE, seed=0, epoch=0)
    windows = order.reshape(10, -1)
    assert [len(set(window // PAGE)) for window in windows] == [10] * 10
    assert np.mean(np.diff(windows[0]) == 1) < 0.01


def test_a_step_sees_what_the_position_says_and_epochs_follow_each_other(records: Records) -> None:
    taken = seen(a_loader(records), 6)
    epochs = [list(chain(*taken[:3])), list(chain(*taken[3:]))]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 2
    assert epochs[0] != epochs[1]


def test_a_step_may_begin_in_one_epoch_and_end_in_another_and_leaves_out_what_is_not_for_training(
    records: Records,
) -> None:
    flat = list(chain(*seen(a_loader(records, count=10), 5)))
    assert [sorted(flat[first : first + 10]) for first in (0, 10, 20, 30)] == [list(range(10))] * 4


@pytest.mark.parametrize(("world_size", "device_batch"), [(1, 8), (2, 2), (4, 1), (4, 2)])
def test_a_step_shows_the_same_parts_of_the_same_images_however_many_ranks_and_threads_share_it(
    records: Records, world_size: int, device_batch: int
) -> None:
    alone = shown(a_loader(records), 5)
    shares = [
        shown(a_loader(records, rank=rank, world_size=world_size, device_batch=device_batch, threads=3), 5)
        for rank in range(world_size)
    ]
    together = [dict(chain(*(share[step].items() for share in shares))) for step in range(5)]
    assert together == alone


@pytest.mark.parametrize("stop", range(6))
def test_it_goes_on_from_any_position_with_any_number_of_ranks_and_not_a_pixel_differs(
    records: Records, stop: int
) -> None:
    whole = shown(a_loader(records), 6)
    first = a_loader(records)
    shown(first, stop)
    second = [a_loader(records, rank=rank, world_size=2) for rank in range(2)]
    for rank in second:
        rank.load_state_dict(first.state_dict())
    rest = [shown(rank, 6 - stop) for rank in second]
    assert [one | other for one, other in zip(*rest, strict=True)] == whole[stop:]


def test_what_is_decoded_ahead_does_not_count_as_seen(records: Records) -> None:
    loader = a_loader(records)
    for taken, _ in enumerate(steps(loader, 3), start=1):
        assert loader.state_dict()["position"] == 8 * taken


def test_images_grow_at_their_position_and_no_two_batches_have_the_same_first(records: Records) -> None:
    batches = [batch for taken in steps(a_loader(records), 4) for batch in taken]
    assert [batch.images.shape[1] for batch in batches] == [4] * 8 + [6] * 8
    assert [batch.first for batch in batches] == list(range(0, 32, 2))


def test_a_position_in_another_order_is_refused_by_the_setting_that_changed(records: Records, tmp_path: Path) -> None:
    state = a_loader(records).state_dict()
    other = records_of(tmp_path / "x.records", [noise(number) for number in range(25)])
    for loader, setting in (
        (a_loader(other), "data"),
        (a_loader(records, count=20), "validationFraction"),
        (a_loader(records, seed=1), "seed"),
        (a_loader(records, window=8), "shuffleWindow"),
    ):
        with pytest.raises(BadConfig, match=rf"trainer\.config\.{setting}: .*start a new run"):
            loader.load_state_dict(state)


def test_a_damaged_record_ends_the_training_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "x.records"
    records_of(path, [noise(number) for number in range(8)])
    content = bytearray(path.read_bytes())
    content[content.index(noise(5).tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadConfig, match=r"record 5 of .* is damaged"):
        seen(a_loader(Records(path), count=8), 1)


def test_a_batch_that_does_not_divide_is_a_wrong_argument(records: Records) -> None:
    with pytest.raises(ValueError, match="8 images do not divide into 3 x 2"):
        a_loader(records, world_size=3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_evaluation_sees_each_image_once_and_its_middle(records: Records, world_size: int) -> None:
    batches = [
        batch
        for rank in range(world_size)
        for batch in in_turn(
            records, range(5, 24), batch=4, size=4, crop_ratio=0.8, threads=2,
            rank=rank, world_size=world_size, device=CPU,
        )
    ]  # fmt: skip
    assert sorted(int(label) for batch in batches for label in batch.labels) == list(range(5, 24))
    image = next(batch for batch in batches if batch.labels[0] == 5).images[0]
    assert image.tolist() == noise(5)[1:5, 0:4].tolist()


def test_crops_are_inside_the_image_and_cover_what_they_should() -> None:
    crops = [random_crop(40, 90, min_area=0.1, flip=True, rng=generator_of(0, 0, number)) for number in range(2000)]
    areas = [crop.width * crop.height / 3600 for crop in crops]
    aspects = [crop.width / crop.height for crop in crops]
    assert all(crop.left >= 0 and crop.left + crop.width <= 90 for crop in crops)
    assert all(crop.top >= 0 and crop.top + crop.height <= 40 for crop in crops)
    assert 0.09 < min(areas) < 0.13
    assert max(areas) > 0.55  # the largest that an aspect of 4:3 lets into 40 x 90
    assert ASPECT[0] * 0.95 < min(aspects) < max(aspects) < ASPECT[1] * 1.05
    assert 0.45 < np.mean([crop.flip for crop in crops]) < 0.55
    assert not any(random_crop(9, 9, min_area=0.1, flip=False, rng=generator_of(0, 0, n)).flip for n in range(99))


def test_a_crop_depends_on_the_seed_the_epoch_and_the_record_alone() -> None:
    def crop(seed: int, epoch: int, number: int) -> Crop:
        return random_crop(400, 500, min_area=0.1, flip=True, rng=generator_of(seed, epoch, number))

    assert crop(0, 0, 0) == crop(0, 0, 0)
    assert len({crop(seed, epoch, number) for seed in (0, 1) for epoch in (0, 1) for number in (0, 1)}) == 8


def test_an_image_too_narrow_for_any_crop_shows_as_much_of_its_middle_as_it_can() -> None:
    crop = random_crop(10, 200, min_area=1.0, flip=False, rng=generator_of(0, 0, 0))
    assert (crop.width, crop.height) == (13, 10)
    assert abs(crop.left - 93) <= 1


@pytest.mark.parametrize(("height", "width", "side"), [(256, 256, 224), (300, 500, 262), (1, 1, 1)])
def test_the_middle_is_a_square(height: int, width: int, side: int) -> None:
    crop = center_crop(height, width, ratio=0.875)
    assert (crop.width, crop.height) == (side, side)
    assert abs(2 * crop.left + side - width) <= 1
    assert abs(2 * crop.top + side - height) <= 1


def test_pixels_are_cut_and_mirrored(records: Records) -> None:
    part = cut(records, 3, Crop(left=1, top=2, width=3, height=3), 3)
    assert part.tolist() == noise(3)[2:5, 1:4].tolist()
    mirrored = cut(records, 3, Crop(left=1, top=2, width=3, height=3, flip=True), 3)
    assert mirrored.tolist() == noise(3)[2:5, 1:4][:, ::-1].tolist()


@pytest.mark.parametrize(("size", "reduced"), [(80, False), (64, True), (20, True)])
def test_a_jpeg_that_is_decoded_smaller_shows_the_same(tmp_path: Path, size: int, reduced: bool) -> None:
    smooth = np.linspace(0, 255, 200).astype(np.uint8)
    pixels = np.stack(
        [np.tile(smooth[:160, None], (1, 200)), np.tile(smooth, (160, 1)), np.full((160, 200), 80)], axis=2
    )
    file = jpeg(pixels.astype(np.uint8), quality=95)
    with Recorder(tmp_path / "x.records", ABOUT) as recorder:
        recorder.append(from_file(file, 0, max_side=None, quality=90))
        recorder.finish()

    crop = Crop(left=30, top=20, width=130, height=130)
    found = cut(Records(tmp_path / "x.records"), 0, crop, size)
    with Image.open(io.BytesIO(file)) as image:
        wanted = image.resize((size, size), Image.Resampling.BILINEAR, box=(30, 20, 160, 150))
    with Image.open(io.BytesIO(file)) as image:
        image.draft("RGB", (size * 200 // 130, size * 160 // 130))
        assert (image.size != (200, 160)) is reduced
    assert np.abs(found.astype(int) - np.asarray(wanted).astype(int)).max() <= 4
