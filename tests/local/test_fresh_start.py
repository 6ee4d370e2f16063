"""`--fresh` deletes what Piton made in a folder that Piton made, and nothing else."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local.helpers import train
from piton.api.status_base import Phase
from piton.contract import names
from piton.local import own_files
from piton.local.run_folder import taken

FOREIGN_STATES = ['{"page": 1}', '{"torn', "[]", '{"name": "fake", "status": "done"}', "\0" * 64]


def everything(root: Path) -> dict[str, str | None]:
    """Every file and folder below, with its content."""
    return {
        str(path.relative_to(root)): path.read_text(errors="replace") if path.is_file() else None
        for path in root.rglob("*")
    }


def another_run(root: Path) -> None:
    train(root)
    state = json.loads((root / "state.json").read_text())
    (root / "state.json").write_text(json.dumps(state | {"name": "another"}))


def a_foreign_state(text: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / ".git").mkdir(parents=True)
        (root / ".git/HEAD").write_text("ref")
        (root / "thesis").mkdir()
        (root / "thesis/main.tex").write_text("3 years of work")
        (root / "state.json").write_text(text)

    return make


def an_unreadable_state(root: Path) -> None:
    (root / "state.json").mkdir(parents=True)


FOREIGN = {
    **{f"state {text[:12]!r}": a_foreign_state(text) for text in FOREIGN_STATES},
    "another run": another_run,
    "a state that cannot be read": an_unreadable_state,
}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("made_by", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_folder_that_is_not_this_runs_is_refused_and_left_alone(
    made_by: Callable[[Path], None], fresh: bool, tmp_path: Path
) -> None:
    made_by(tmp_path / "run")
    before = everything(tmp_path)

    with pytest.raises(ValueError, match="with --dir") as refusal:
        train(tmp_path / "run", fresh=fresh)

    assert "--fresh" not in str(refusal.value)
    assert everything(tmp_path) == before


def the_users_files(root: Path) -> set[str]:
    """Files beside Piton's, as people leave them."""
    own = [".git/HEAD", "notes.txt", "checkpoints/model.pt", "logs/my.log", "attempts/readme", "records/mine.csv"]
    for name in own:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("mine")
    return set(own)


def test_the_users_files_beside_a_run_are_kept_and_listed(tmp_path: Path) -> None:
    train(tmp_path / "run")
    own = the_users_files(tmp_path / "run")
    ending, listener = train(tmp_path / "run", fresh=True)

    assert (ending.trained, ending.summary.attempts, ending.summary.phase) == (True, 1, Phase.SUCCEEDED)
    assert own <= {name for name, text in everything(tmp_path / "run").items() if text == "mine"}
    deleted, kept = listener.said[0].split("; not made by Piton, and kept: ")
    assert deleted.startswith(f"--fresh deletes in {tmp_path / 'run'}: ")
    assert {"state.json", "checkpoints/step-000000020", "logs/attempt-1"} <= set(deleted.split(": ")[1].split(", "))
    assert set(kept.split(", ")) == {".git", *own} - {".git/HEAD", "records/mine.csv"} | {"records"}


def test_without_files_of_the_user_nothing_is_left(tmp_path: Path) -> None:
    train(tmp_path / "run")
    own_files.delete(tmp_path / "run", own_files.made_by_run(tmp_path / "run"))

    assert everything(tmp_path / "run").keys() == {"lock"}


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/step-000000020", "logs", "state.json", "metrics.jsonl"])
def test_a_link_in_a_place_of_pitons_is_refused_before_anything_is_deleted(name: str, tmp_path: Path) -> None:
    train(tmp_path / "run")
    (tmp_path / "run" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    before = everything(tmp_path)

    with pytest.raises(ValueError, match=rf"{name} is a link, and Piton makes none"):
        train(tmp_path / "run", fresh=True)
    assert everything(tmp_path) == before


def test_a_link_to_the_runs_folder_is_followed(tmp_path: Path) -> None:
    train(tmp_path / "disk")
    (tmp_path / "run").symlink_to(tmp_path / "disk")

    assert train(tmp_path / "run", fresh=True)[0].trained


@pytest.mark.parametrize("make", [lambda root: None, lambda root: root.mkdir()], ids=["none", "empty"])
def test_a_folder_without_anything_is_taken_and_nothing_is_told(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "run")
    ending, listener = train(tmp_path / "run", fresh=True)

    assert ending.trained
    assert not any("--fresh" in text for text in listener.said)


@pytest.mark.parametrize("edit", [{"invented": 1}, {"status": {"phase": "Invented", "more": 2}}])
def test_a_state_of_another_version_is_known_and_fresh_is_advised_and_helps(
    edit: dict[str, Any], tmp_path: Path
) -> None:
    train(tmp_path / "run")
    state = json.loads((tmp_path / "run/state.json").read_text())
    (tmp_path / "run/state.json").write_text(json.dumps(state | edit))

    with pytest.raises(ValueError, match=r"--fresh to start over|use the version that wrote it"):
        train(tmp_path / "run")
    assert train(tmp_path / "run", fresh=True)[0].summary.phase == Phase.SUCCEEDED


def test_of_a_sweep_only_its_own_runs_are_deleted(tmp_path: Path) -> None:
    state = {"name": "ragcun", "created": "2026-01-01T00:00:00Z", "status": {}}
    for folder, name in (("a", "ragcun-a"), ("gone", "ragcun-gone"), ("b", "other-b"), ("notes", None)):
        (tmp_path / folder / "checkpoints/step-000000001").mkdir(parents=True)
        (tmp_path / folder / "mine").write_text("")
        if name is not None:
            (tmp_path / folder / "state.json").write_text(json.dumps(state | {"name": name, "spec": {}}))
    (tmp_path / "gone/mine").unlink()
    (tmp_path / "sweep.json").write_text(json.dumps(state))
    with taken(tmp_path, own_files.SWEEP, "ragcun") as root:
        made = own_files.made_by_sweep(root, "ragcun")
        assert own_files.describe(root, made).endswith("not made by Piton, and kept: a/mine, b, notes")
        own_files.delete(root, made)

    kept = {name for name in everything(tmp_path) if name.count("/") < 2}
    assert kept == {".lock", "a", "a/mine", "b", "b/mine", "b/checkpoints", "b/state.json"} | {
        "notes",
        "notes/mine",
        "notes/checkpoints",
    }


def test_the_lock_of_a_run_in_a_sweep_goes_too(tmp_path: Path) -> None:
    root = tmp_path / "a"
    root.mkdir()
    (root / "lock").touch()
    (root / "state.json").write_text(json.dumps({"name": "s-a", "created": "", "spec": {}, "status": {}}))

    own_files.delete(tmp_path, own_files.made_by_sweep(tmp_path, "s"))
    assert not root.exists()


def test_the_patterns_are_of_names_and_not_of_paths() -> None:
    assert not [pattern for pattern in names.CHECKPOINT_FILES if os.sep in pattern or pattern == "*"]
