"""`piton run` with a mirror: the volume is lost between two attempts, the bucket is away for minutes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from local.helpers import a_command, eventually, write_manifest
from piton_trainer.checkpoint.load.loader import newest_step
from support import loses_its_volume, s3
from support.mirrored import Contents

TESTS = Path(__file__).parents[1]
PACED = str(TESTS / "e2e" / "paced.py")
AWAY_SECONDS = 300


@pytest.fixture
def mirrored(server: s3.Server, proxy: s3.Proxy, uri: str) -> Contents:
    """What the bucket has of a run in the namespace `default`; `proxy` tells the run how to get there."""
    return Contents(server.client, f"{uri}/default")


@pytest.mark.crash
def test_a_run_whose_volume_is_lost_between_attempts_restores_it_and_ends_with_the_same_weights(
    tmp_path: Path, uri: str, mirrored: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))

    undisturbed = summary_of(tmp_path / "undisturbed", *DOOMED, "--keep")
    lost = summary_of(tmp_path / "run", *DOOMED, mirror={"uri": uri})

    assert (lost["phase"], lost["attempts"], lost["lostSteps"]) == ("Succeeded", 2, 0)
    restored = f"step {loses_its_volume.LAST_STEP_OF_THE_FIRST} is restored from {uri}/default/run"
    assert restored in log_of(tmp_path / "run", attempt=2)
    assert lost["weightsDigest"] == undisturbed["weightsDigest"]
    assert_mirrored(mirrored, step=20)


@pytest.mark.crash
@pytest.mark.timeout(300)
def test_the_foreground_says_when_nothing_is_mirrored_and_when_that_is_over(
    tmp_path: Path, uri: str, mirrored: Contents, proxy: s3.Proxy
) -> None:
    proxy.fail(method="PUT", code="AccessDenied", times=100_000)
    file = a_manifest(tmp_path / "run", "python", PACED, "200", "0.5", mirror={"uri": uri})
    told = []
    with a_command("run", str(file), "--dir", str(tmp_path / "run/run"), "--json", cwd=tmp_path / "run") as process:
        assert process.stderr is not None
        for line in process.stderr:
            told.append(line)
            if line.startswith("nothing is mirrored to "):
                proxy.heal()
            if line.startswith("checkpoints are mirrored again"):
                (tmp_path / "run/run/checkpoints/hurry").touch()
        out = process.communicate(timeout=60)[0]

    assert process.returncode == 0, "".join(told)
    news = [line for line in told if "mirrored" in line]
    assert len(news) == 2, news
    assert news[0].startswith(f"nothing is mirrored to {uri}/default/run: ")
    assert "AccessDenied" in news[0]
    assert news[1].startswith(f"checkpoints are mirrored again: {uri} has step ")
    assert json.loads(out)["mirrorOff"] is None
    assert not [line for line in told if line.strip().startswith("mirror ")]
    assert_mirrored(mirrored, step=200)


@pytest.mark.crash
@pytest.mark.timeout(300)
def test_the_summary_says_that_nothing_was_mirrored(tmp_path: Path, uri: str, mirrored: Contents) -> None:
    """The bucket has the checkpoints of an older run of this name."""
    ends = []
    for folder in ("older", "newer"):
        file = a_manifest(tmp_path / folder, "python", PACED, "8", "0", mirror={"uri": uri})
        with a_command("run", str(file), "--dir", str(tmp_path / folder / "run"), "--json", cwd=tmp_path) as process:
            ends.append((*process.communicate(timeout=120), process.returncode))

    assert [code for *_, code in ends] == [0, 0], ends
    (older, quiet, _), (newer, loud, _) = ends
    assert json.loads(older)["mirrorOff"] is None
    assert "holds the checkpoints of another run" in json.loads(newer)["mirrorOff"]
    (line,) = [line for line in loud.splitlines() if line.startswith("      mirror  ")]
    assert "holds the checkpoints of another run" in line
    assert "      mirror  " not in quiet
    assert mirrored.newest()


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_bucket_that_is_away_for_five_minutes_costs_nothing_and_the_mirror_catches_up(
    tmp_path: Path, uri: str, mirrored: Contents, server: s3.Server
) -> None:
    """With the patience that users have. A step takes a second, so the steps say how long the bucket is away."""
    steps, directory = AWAY_SECONDS + 60, tmp_path / "run/run/checkpoints"
    undisturbed = summary_of(tmp_path / "undisturbed", "python", PACED, str(steps), "0", every={"steps": 5})
    file = a_manifest(tmp_path / "run", "python", PACED, str(steps), "1", every={"steps": 5}, mirror={"uri": uri})
    with a_command("run", str(file), "--dir", str(tmp_path / "run/run"), "--json", cwd=tmp_path / "run") as process:
        went_at = eventually(lambda: mirrored.folders() and newest_step(directory), 240)
        server.stop()
        eventually(lambda: (newest_step(directory) or 0) >= went_at + AWAY_SECONDS, AWAY_SECONDS * 1.5)
        server.start()
        server.wait()
        out, err = process.communicate(timeout=400)

    assert process.returncode == 0, err
    found = json.loads(out)
    assert (found["phase"], found["attempts"], found["lostSteps"]) == ("Succeeded", 1, 0)
    assert found["weightsDigest"] == undisturbed["weightsDigest"]
    assert log_of(tmp_path / "run", attempt=1).count("fails, and is tried again") == 1
    assert_mirrored(mirrored, step=steps)


DOOMED = ("python", "-m", loses_its_volume.__name__)


def summary_of(folder: Path, *command: str, **checkpoint: Any) -> dict[str, Any]:
    """Train in a folder, in processes of their own."""
    file = a_manifest(folder, *command, **checkpoint)
    with a_command("run", str(file), "--dir", str(folder / "run"), "--json", cwd=folder) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def a_manifest(folder: Path, *command: str, **checkpoint: Any) -> Path:
    """A run of this program on the CPU, in a folder of its own."""
    folder.mkdir()
    return write_manifest(
        folder / "run.yaml",
        name="run",
        trainer={"image": "none", "command": list(command)},
        workers={"nodes": 1, "gpusPerNode": 0},
        checkpoint={"volume": {"size": "1Gi"}, "every": {"steps": 4}, **checkpoint},
    )


def log_of(folder: Path, *, attempt: int) -> str:
    """What an attempt said."""
    return (folder / f"run/logs/attempt-{attempt}/trainer-0/output.log").read_text()


def assert_mirrored(mirrored: Contents, *, step: int) -> None:
    """The bucket has this step of the run as its newest, and all that it has is whole."""
    assert (mirrored.newest() or "").startswith(f"step-{step:09d}-")
    mirrored.assert_sound()
