"""No name of a variant collides with a file of the sweep's folder."""

import fcntl
import json
from pathlib import Path

import pytest

from cli.conftest import Piton
from cli.test_sweep_command import write
from piton.local import own_files

OLD = own_files.OLD_SWEEP_LOCK
NAMES = [OLD, "token", "config", "sweep", "logs", "attempts", "records", "checkpoints", "state"]


def test_variants_with_the_names_of_pitons_files_are_trained_and_begun_afresh(tmp_path: Path, piton: Piton) -> None:
    file = write(tmp_path / "sweep.yaml", dict.fromkeys(NAMES, ("--steps", "2")), parallelism=len(NAMES))
    assert piton("run", file, "--dir", tmp_path / "s", "--quiet").code == 0
    mine = [tmp_path / "s" / name / kept for name in NAMES for kept in ("results.json", "attempt-9", "7", "a.records")]
    for path in mine:
        path.write_text("the user's")

    result = piton("run", file, "--dir", tmp_path / "s", "--fresh", "--quiet")
    assert result.code == 0, result.err
    assert [path.read_text() for path in mine] == ["the user's"] * len(mine)
    phases = [json.loads((tmp_path / f"s/{name}/state.json").read_text())["status"]["phase"] for name in NAMES]
    assert phases == ["Succeeded"] * len(NAMES)


@pytest.mark.parametrize("state", [True, False])
def test_the_lock_of_an_earlier_version_goes_when_nobody_holds_it(state: bool, tmp_path: Path, piton: Piton) -> None:
    file = write(tmp_path / "sweep.yaml", {OLD: ("--steps", "2")})
    if state:
        assert piton("run", write(tmp_path / "old.yaml", {OLD: ("--steps", "2")}), "--dir", tmp_path / "s").code == 0
        for path in sorted((tmp_path / "s" / OLD).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "s" / OLD).rmdir()
        (tmp_path / "s/sweep.json").write_text(json.dumps({"name": "ablation", "created": "2026-01-01T00:00:00Z",
                                                           "status": {}}))  # fmt: skip
    else:
        (tmp_path / "s").mkdir()
    lock = tmp_path / "s" / OLD
    lock.write_text("1234\n")

    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = piton("run", file, "--dir", tmp_path / "s")
    assert refused.code == 2
    assert "another `piton run` (process 1234) works in" in refused.err
    assert piton("run", file, "--dir", tmp_path / "s", "--quiet").code == 0
    assert lock.is_dir()


def test_the_files_of_a_sweep_have_names_that_no_variant_can_have() -> None:
    kind = own_files.SWEEP
    assert all("." in name for name in (kind.state_file, kind.lock_file, own_files.ASIDE, *kind.files))
    assert not kind.folders
