"""Every file of a checkpoint that two ranks wrote in the background is damaged in every way, one after the other.

What people ask (`survey`, and so `piton checkpoint verify`) names the file and nothing else; what a resume asks
(`loader`) passes the checkpoint over, says for which file, and takes the one before.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from piton.contract import names
from piton_trainer.checkpoint import inspect
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.index import parse_index
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
from piton_trainer.checkpoint.load import loader
from piton_trainer.runtime.process_group import Ranks
from support import ranks, tiny
from support.checkpoints import flip

OLDER, NEWER = 4, 6
FIRST, SECOND = "__0_0.distcp", "__1_0.distcp"
FILES = [FIRST, SECOND, layout.INDEX_FILE, layout.STATE_FILE]
MANIFEST = names.MANIFEST_FILE
WEIGHT = "model/0.weight"
RANDOM_PLACES = 8


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good checkpoints. Whoever damages one of them repairs it."""
    directory = tmp_path_factory.mktemp("flips")
    stopped = ranks.run(2, partial(tiny.train, directory, at={NEWER: tiny.terminate}, background_saves=True))
    assert [end.result.code for end in stopped] == [143, 143]
    return directory


@pytest.fixture
def newer(directory: Path) -> Iterator[Path]:
    """The newer of them; it is put back after the test."""
    folder, aside = directory / names.step_folder(NEWER), directory / "aside"
    shutil.copytree(folder, aside)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


@pytest.fixture
def older(directory: Path, tmp_path: Path) -> Iterator[Path]:
    folder, aside = directory / names.step_folder(OLDER), tmp_path / "aside"
    shutil.copytree(folder, aside)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def problems(directory: Path) -> list[tuple[int, str]]:
    """What `piton checkpoint verify` says: step and complaint."""
    found = [(check.found.step, check.problem) for check in inspect.verify(inspect.survey(directory))]
    return sorted((step, problem) for step, problem in found if problem)


def chosen(directory: Path) -> int | None:
    """The step that a resume takes; both ways to ask agree."""
    checkpoint = loader.newest_good(directory, Ranks())
    for_people = inspect.newest_good(inspect.survey(directory))
    assert (checkpoint and checkpoint.manifest.step) == (for_people and for_people.step)
    return None if checkpoint is None else checkpoint.manifest.step


def test_the_files_of_a_checkpoint_are_those_that_are_tested_here(newer: Path, directory: Path) -> None:
    assert sorted(path.name for path in newer.iterdir()) == sorted([*FILES, MANIFEST])
    assert problems(directory) == []
    assert chosen(directory) == NEWER


def places(folder: Path, file: str, rng: random.Random) -> dict[str, int]:
    """Where bits are flipped."""
    data = (folder / file).read_bytes()
    found = {"first": 0, "last": len(data) - 1}
    if file.endswith(".distcp"):
        assert len(data) % 4096 == 0
        found["padding"] = len(data.rstrip(b"\0")) + 1
    if WEIGHT in _tensors_in(folder, file):
        checkpoint = CommittedCheckpoint(folder=folder, manifest=layout.read_manifest(folder))
        numbers = loader.load_tensors(checkpoint, {WEIGHT: None})[WEIGHT].numpy().tobytes()
        found["a weight"] = data.index(numbers) + len(numbers) // 2
    return found | {f"at random {number}": rng.randrange(len(data)) for number in range(RANDOM_PLACES)}


def _tensors_in(folder: Path, file: str) -> set[str]:
    checkpoint = CommittedCheckpoint(folder=folder, manifest=layout.read_manifest(folder))
    index = parse_index((folder / layout.INDEX_FILE).read_bytes(), checkpoint)
    assert index.storage_data is not None
    return {key.fqn for key, place in index.storage_data.items() if place.relative_path == file}


@pytest.mark.parametrize("file", FILES)
def test_a_bit_that_is_flipped_anywhere_is_found_and_its_file_named(
    file: str, newer: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(file)
    tried = places(newer, file, rng)
    assert len(tried) >= 2 + RANDOM_PLACES
    for where, place in tried.items():
        bit = rng.randrange(8)
        flip(newer / file, place, bit)
        assert problems(directory) == [(NEWER, f"{file} has flipped bits: its digest is another")], where
        assert chosen(directory) == OLDER, where
        assert caplog.messages == [f"{newer.name} is passed over: {file} has flipped bits: its digest is another"]
        caplog.clear()
        flip(newer / file, place, bit)
    assert chosen(directory) == NEWER


def test_a_weight_and_the_padding_of_both_shards_are_among_the_places(newer: Path) -> None:
    tried = [places(newer, file, random.Random(0)).keys() for file in (FIRST, SECOND)]
    assert sum("a weight" in found for found in tried) == 1
    assert all("padding" in found for found in tried)


def test_a_flipped_bit_in_each_single_byte_of_a_manifest_is_found(newer: Path) -> None:
    for place in range((newer / MANIFEST).stat().st_size):
        flip(newer / MANIFEST, place, place % 8)
        with pytest.raises(ValueError, match="manifest"):
            layout.read_manifest(newer)
        flip(newer / MANIFEST, place, place % 8)
    assert layout.read_manifest(newer).step == NEWER


@pytest.mark.parametrize("place", [0, 700, -1])
def test_a_checkpoint_whose_manifest_has_a_flipped_bit_is_passed_over(
    place: int, newer: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip(newer / MANIFEST, place % (newer / MANIFEST).stat().st_size, 0)
    ((step, problem),) = problems(directory)
    assert (step, "manifest" in problem) == (NEWER, True)
    assert chosen(directory) == OLDER
    assert caplog.messages == [f"{newer.name} is passed over: {problem}"]


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def lengthen_by_a_block(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(4096))


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


DAMAGE: dict[Callable[[Path], object], str] = {
    shorten: "bytes instead of",
    empty: "bytes instead of",
    lengthen: "bytes instead of",
    lengthen_by_a_block: "bytes instead of",
    Path.unlink: "is missing",
    replace_by_a_folder: "bytes instead of",
    replace_by_a_link_to_nothing: "is missing",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", [*FILES, MANIFEST])
def test_a_file_that_is_not_as_long_as_it_was_or_no_file_is_found(
    file: str, damage: Callable[[Path], object], newer: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(newer / file)
    ((step, problem),) = problems(directory)
    assert step == NEWER
    assert ("manifest" in problem) if file == MANIFEST else (problem.startswith(file) and DAMAGE[damage] in problem)
    assert chosen(directory) == OLDER
    assert caplog.messages == [f"{newer.name} is passed over: {problem}"]


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("swapped")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("file", FILES)
def test_files_of_one_name_that_two_checkpoints_exchange_are_found_in_both(
    file: str, newer: Path, older: Path, directory: Path
) -> None:
    same = (newer / file).read_bytes() == (older / file).read_bytes()
    # The index is the same from save to save, so it may change places.
    assert same == (file == layout.INDEX_FILE)
    swap(newer / file, older / file)
    assert [step for step, problem in problems(directory) if problem.startswith(file)] == [OLDER, NEWER] * (not same)
    assert chosen(directory) == (NEWER if same else None)


def test_shards_that_two_ranks_exchange_are_found(newer: Path, directory: Path) -> None:
    swap(newer / FIRST, newer / SECOND)
    assert {problem.split()[0] for _, problem in problems(directory)} == {FIRST, SECOND}
    assert chosen(directory) == OLDER


def test_manifests_that_two_checkpoints_exchange_are_found(newer: Path, older: Path, directory: Path) -> None:
    swap(newer / MANIFEST, older / MANIFEST)
    assert problems(directory) == [
        (OLDER, f"its manifest speaks of step {NEWER}"),
        (NEWER, f"its manifest speaks of step {OLDER}"),
    ]
    assert chosen(directory) is None


def test_checkpoints_that_exchange_their_names_are_found(newer: Path, older: Path, directory: Path) -> None:
    swap(newer, older)
    assert [step for step, _ in problems(directory)] == [OLDER, NEWER]
    assert chosen(directory) is None
