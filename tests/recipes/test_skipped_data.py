"""What `maxSkipped` leaves out of a training's data is in its log and in its metrics, in each attempt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from piton.contract.progress import EXAMPLES_SKIPPED
from piton_trainer.data.skipped import MANIFEST
from piton_trainer.errors import BadConfig
from piton_trainer.recipes import catalog
from piton_trainer.recipes.retrieval.batches import Identity
from piton_trainer.recipes.twotower.recipe import build as build_towers
from support import charlm, resnet, retrieval, twotower
from support.attempts import CrashError, crash
from support.encoders import write_bert
from support.pictures import jpeg, noise
from support.seats import FakeRankContext

Attempt = Callable[..., Any]


def charlm_with_losses(folder: Path) -> Attempt:
    """Of three texts the second is none."""
    (folder / "texts").mkdir()
    for number in range(3):
        (folder / "texts" / f"{number}.txt").write_text("".join(f"{number} and {n}, " for n in range(900)))
    (folder / "texts" / "1.txt").write_bytes(b"\xff" * 9)
    config = charlm.changed(data=str(folder / "texts"))
    return lambda directory, most, **drill: charlm.attempt(
        directory, config.model_copy(update={"max_skipped": most}), **drill
    )


def resnet_with_losses(folder: Path) -> Attempt:
    for number in range(60):
        path = folder / "images" / ("ant", "bee")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if number == 7 else jpeg(noise(number)))
    return lambda directory, most, **drill: resnet.attempt(
        directory, resnet.a_config(folder / "images", maxSkipped=most), **drill
    )


def retrieval_with_losses(folder: Path) -> Attempt:
    """A document that no judgment of the split for training names: the split for the test does."""
    tiny = retrieval.world(folder)
    corpus = tiny.data / "corpus.jsonl"
    lines = corpus.read_text().splitlines(keepends=True)
    corpus.write_text("".join([lines[0][1:], *lines[1:]]))
    return lambda directory, most, **drill: retrieval.attempt(
        directory, tiny.config(max_skipped=most, freeze_base=True), **drill
    )


LOSSES = {
    "charlm": (charlm_with_losses, 1),
    "resnet50": (resnet_with_losses, 1),
    "retrieval": (retrieval_with_losses, 2),
}
"""With the number of examples that are lost; examples and collection of `retrieval` are two sources."""


@pytest.mark.parametrize("recipe", LOSSES)
def test_each_attempt_says_what_is_left_out_and_counts_it(
    recipe: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, count = LOSSES[recipe]
    attempt, directory = make(tmp_path), tmp_path / "volume" / "checkpoints"
    with pytest.raises(CrashError):
        attempt(directory, 1, at=7, action=crash)
    for _ in range(2):
        said = [line for line in caplog.messages if "damaged examples are left out" in line]
        assert len(said) == count
        assert all("1 damaged examples are left out, and maxSkipped accepts 1; the first is /" in line for line in said)
        listed = [Path(line.rpartition(" listed in ")[2]) for line in said]
        assert all(path.is_file() for path in listed)
        caplog.clear()
        metrics = attempt(directory, 1)
        assert metrics[EXAMPLES_SKIPPED] == count
    with pytest.raises(BadConfig):
        attempt(directory, 0)


@pytest.mark.parametrize("recipe", LOSSES)
def test_one_training_goes_on_when_more_is_accepted(recipe: str, tmp_path: Path) -> None:
    attempt, directory = LOSSES[recipe][0](tmp_path), tmp_path / "volume" / "checkpoints"
    with pytest.raises(CrashError):
        attempt(directory, 1, at=7, action=crash)
    assert attempt(directory, 5)[EXAMPLES_SKIPPED] == LOSSES[recipe][1]


def test_a_training_that_loses_nothing_has_no_such_metric(tmp_path: Path) -> None:
    assert EXAMPLES_SKIPPED not in charlm.attempt(tmp_path)


def test_two_towers_leave_out_judgments(tmp_path: Path) -> None:
    rows = [f"q{q},m{m},{(q + m) % 3},w{q}\n" for q in range(40) for m in range(4)]
    rows[3] = "q0,m3,worst,w0\n"
    (tmp_path / "x.csv").write_text("query_id,llm_id,qrel,query_text\n" + "".join(rows))
    words = [f"w{number}" for number in range(40)]
    changes = {"data": str(tmp_path / "x.csv"), "encoder": str(write_bert(tmp_path / "bert", words, width=16))}
    place = FakeRankContext(tmp_path / "checkpoints")
    recipe = build_towers(twotower.changed(**changes, max_skipped=1), place)
    assert recipe.skipped_data.count == 1
    [manifest] = place.run_cache.directory.glob(f"judgments-*/{MANIFEST}")
    assert json.loads(manifest.read_text())["skipped"][0]["place"] == "line 5"
    with pytest.raises(BadConfig, match="0 damaged examples are accepted, and there are 1; the first is"):
        build_towers(twotower.changed(**changes), place)


# A checkpoint of an earlier version.


def loader_of(tiny: retrieval.World, place: FakeRankContext) -> Any:
    return retrieval.a_recipe(tiny.config(freeze_base=True), place).loader


def test_a_checkpoint_of_an_earlier_version_is_continued_by_sizes_and_times(tmp_path: Path) -> None:
    """And one of this version by an earlier one: it knows the same digest."""
    loader = loader_of(retrieval.world(tmp_path), FakeRankContext(tmp_path))
    state = {**loader.state_dict(), "position": 16}
    identity: Identity = loader._identity
    assert state["digest"] == identity.stamps != state["content"] == identity.content
    del state["content"]
    loader.load_state_dict(state)
    assert loader.position == 16
    with pytest.raises(BadConfig, match="are not those of the checkpoint"):
        loader.load_state_dict({**state, "digest": "another"})


def test_a_checkpoint_of_this_version_is_continued_by_content(tmp_path: Path) -> None:
    tiny = retrieval.world(tmp_path)
    state = loader_of(tiny, FakeRankContext(tmp_path / "one")).state_dict()
    for path in tiny.data.rglob("*.*"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    elsewhere = loader_of(tiny, FakeRankContext(tmp_path / "two"))
    assert elsewhere.state_dict()["digest"] != state["digest"]
    elsewhere.load_state_dict(state)
    queries = tiny.data / "queries.jsonl"
    queries.write_text(queries.read_text().replace("w1", "w2"))
    with pytest.raises(BadConfig, match="are not those of the checkpoint"):
        loader_of(tiny, FakeRankContext(tmp_path / "three")).load_state_dict(state)


# The setting.


@pytest.mark.parametrize("recipe", ["charlm", "resnet50", "retrieval", "twotower"])
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (-1, "trainer.config.maxSkipped: has to be at least 0, not -1"),
        (True, "trainer.config.maxSkipped: has to be a whole number, not True"),
        (1.5, "trainer.config.maxSkipped: has to be a whole number, not 1.5"),
        ("3", "trainer.config.maxSkipped: has to be a whole number, not '3'; write 3"),
        (None, "trainer.config.maxSkipped: has to be a whole number, not null"),
    ],
)
def test_the_setting_is_a_whole_number_from_0_on(recipe: str, value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"maxSkipped") as caught:
        catalog.check(recipe, {"data": "x", "maxSkipped": value, **({"epochs": 1} if recipe == "resnet50" else {})})
    assert str(caught.value) == sentence
