"""What is made once for all attempts: whole or not there, made by one rank, found by all."""

from functools import partial
from pathlib import Path

import pytest

import piton_trainer
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig
from piton_trainer.run_cache import RunCache
from piton_trainer.runtime.process_group import Ranks
from support import ranks, tiny


def fill(folder: Path) -> None:
    (folder / "x").write_text("made")


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    run_cache = RunCache(tmp_path / "cache", Ranks())
    assert not run_cache.has("a")
    folder = run_cache.folder("a", fill)
    assert (folder / "x").read_text() == "made"
    assert run_cache.folder("a", lambda into: pytest.fail("made again")) == folder
    assert run_cache.has("a")


def test_what_was_cut_off_is_not_there_and_is_made_anew(tmp_path: Path) -> None:
    run_cache = RunCache(tmp_path, Ranks())

    def cut_off(folder: Path) -> None:
        (folder / "half").write_text("ma")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cache.folder("a", cut_off)
    assert not run_cache.has("a")
    assert {path.name for path in run_cache.folder("a", fill).iterdir()} == {"x", ".sizes.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def made_by_ranks(directory: Path, wrong: bool = False) -> str:
    with piton_trainer.session(Config(checkpoint_dir=directory)) as session:

        def make(folder: Path) -> None:
            if wrong:
                raise BadConfig("there is nothing to make it from")
            (folder / "x").write_text(f"by rank {session.rank}")

        return (session.run_cache.folder("a", make) / "x").read_text()


def test_one_rank_makes_it_for_all(tmp_path: Path) -> None:
    assert [end.result for end in ranks.run(2, partial(made_by_ranks, tmp_path))] == ["by rank 0"] * 2


def test_what_one_rank_cannot_make_ends_all_of_them(tmp_path: Path) -> None:
    assert [end.code for end in ranks.run(2, partial(made_by_ranks, tmp_path, wrong=True))] == [78, 78]


def test_checkpoints_do_not_mind_what_lies_beside_them(tmp_path: Path) -> None:
    with piton_trainer.session(tiny.config(tmp_path)) as session:
        folder = session.run_cache.folder("a", fill)
    assert folder == tmp_path / "cache" / "a"
    assert tiny.train(tmp_path).complete is not None
    assert tiny.train(tmp_path).resumed_from == tiny.STEPS
    assert (folder / "x").read_text() == "made"
