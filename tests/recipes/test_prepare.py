"""`python -m piton_trainer.prepare` makes a recipe's data from the assignment of the training, or says why not."""

from pathlib import Path
from typing import Any

import pytest

from piton.contract import names
from piton.contract.assignment import Assignment
from piton.contract.termination import ExitCode, Outcome, Termination
from piton_trainer.config import Config
from piton_trainer.data.image.records import Records
from piton_trainer.errors import BadConfig
from piton_trainer.prepare import main, prepare
from support.checkpoints import flip
from support.pictures import quadrants


def orders(tmp_path: Path, recipe: str | None, **config: Any) -> Config:
    assignment = Assignment(recipe=recipe, config=config)
    return Config(checkpoint_dir=tmp_path / "volume" / "checkpoints", assignment=assignment)


def made(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "volume" / "records").glob("*.records"))


def test_it_makes_the_records_beside_the_checkpoints_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = quadrants(tmp_path / "images.npz", count=20)
    (tmp_path / "config.json").write_text(Assignment(recipe="resnet50", config={"data": str(data)}).to_json())
    monkeypatch.setenv(names.ENV_CONFIG, str(tmp_path / "config.json"))
    monkeypatch.setenv(names.ENV_CHECKPOINT_DIR, str(tmp_path / "volume" / "checkpoints"))
    monkeypatch.setenv(names.ENV_TERMINATION_LOG, str(tmp_path / "termination"))
    with caplog.at_level("INFO"):
        main()
    assert "20 of 20" in caplog.text
    (path,) = made(tmp_path)
    assert len(Records(path)) == 20
    termination = Termination.from_json((tmp_path / "termination").read_text())
    assert termination is not None
    assert termination.outcome is Outcome.FINISHED


def test_a_second_time_it_only_compares_the_checksums(tmp_path: Path) -> None:
    data = quadrants(tmp_path / "images.npz", count=20)
    config = orders(tmp_path, "resnet50", data=str(data), validation=str(data))
    prepare(config)
    (path,) = made(tmp_path)
    written = path.stat().st_mtime_ns
    prepare(config)
    assert path.stat().st_mtime_ns == written

    flip(path)
    with pytest.raises(BadConfig, match="is damaged; delete the file and prepare it again"):
        prepare(config)


@pytest.mark.parametrize(
    ("recipe", "config", "sentence"),
    [
        (None, {}, "trainer.recipe: missing; only a recipe has something to prepare"),
        ("charlm", {"data": "pydoc"}, "trainer.recipe: charlm has nothing to prepare"),
        ("resnet50", {"dat": "x"}, "trainer.config.dat: resnet50 has no such setting; did you mean data?"),
        ("resnet50", {"data": "/nowhere"}, "trainer.config.data: there is no file or directory /nowhere; give one, or"),
    ],
)
def test_what_cannot_be_prepared_is_refused_in_a_sentence(
    tmp_path: Path, recipe: str | None, config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadConfig) as caught:
        prepare(orders(tmp_path, recipe, **config))
    assert caught.value.detail.startswith(sentence)


def test_a_refusal_is_a_termination_message_and_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(names.ENV_TERMINATION_LOG, str(tmp_path / "termination"))
    monkeypatch.setenv(names.ENV_CONFIG, "/nowhere/config.json")
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == ExitCode.BAD_CONFIG
    termination = Termination.from_json((tmp_path / "termination").read_text())
    assert termination is not None
    assert termination.outcome is Outcome.BAD_CONFIG
    assert "/nowhere/config.json, which cannot be read" in termination.detail
    assert termination.detail in capsys.readouterr().err
