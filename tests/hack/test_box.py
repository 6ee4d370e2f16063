"""The box belongs to one user at a time."""

import os
from pathlib import Path

import pytest

from hack.cluster import __main__ as command
from hack.cluster import box
from hack.cluster.shell import BoxError


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(box, "require_root", lambda: None)


def test_a_box_that_is_in_use_is_refused_with_the_process_that_uses_it() -> None:
    with box.use_alone(), pytest.raises(BoxError, match=f"process {os.getpid()} uses it"), box.use_alone():
        pass

    with box.use_alone():  # free again
        pass


@pytest.mark.parametrize("words", [["down"], ["up"]])
def test_the_box_of_somebody_else_is_neither_taken_down_nor_changed(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("up", "down"):
        monkeypatch.setattr(box, name, lambda **_: pytest.fail("the box of somebody else was touched"))

    with box.use_alone():
        assert command.main(words) == 1

    assert f"cluster: the box: process {os.getpid()} uses it" in capsys.readouterr().err
