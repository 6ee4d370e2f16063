"""`piton run` with a mirror: a run that loses its volume between two attempts goes on from the bucket."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from local.helpers import a_command, write_manifest
from support import loses_its_volume, s3
from support.mirrored import Contents

TESTS = Path(__file__).parents[1]


@pytest.mark.crash
def test_a_run_whose_volume_is_lost_between_attempts_restores_it_and_ends_with_the_same_weights(
    tmp_path: Path, uri: str, proxy: s3.Proxy, bucket: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))

    undisturbed = summary_of(tmp_path / "undisturbed", "--keep")
    lost = summary_of(tmp_path / "run", mirror={"uri": uri})

    assert (lost["phase"], lost["attempts"], lost["lostSteps"]) == ("Succeeded", 2, 0)
    restored = f"step {loses_its_volume.LAST_STEP_OF_THE_FIRST} is restored from {uri}/default/run"
    assert restored in log_of(tmp_path / "run", attempt=2)
    assert lost["weightsDigest"] == undisturbed["weightsDigest"]
    mirrored = Contents(bucket.client, f"{uri}/default")
    assert (mirrored.newest() or "").startswith("step-000000020-")
    mirrored.assert_sound()


def summary_of(folder: Path, *arguments: str, **checkpoint: Any) -> dict[str, Any]:
    """Train in a folder, in processes of their own."""
    folder.mkdir()
    file = write_manifest(
        folder / "run.yaml",
        name="run",
        trainer={"image": "none", "command": ["python", "-m", loses_its_volume.__name__, *arguments]},
        workers={"nodes": 1, "gpusPerNode": 0},
        checkpoint={"volume": {"size": "1Gi"}, "every": {"steps": 4}, **checkpoint},
    )
    with a_command("run", str(file), "--dir", str(folder / "run"), "--json", cwd=folder) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def log_of(folder: Path, *, attempt: int) -> str:
    """What an attempt said."""
    return (folder / f"run/logs/attempt-{attempt}/trainer-0/output.log").read_text()
