"""`make gpu` keeps what it has, names what did not run, and leaves nothing behind."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import __main__ as gpu
from bench.gpu import report
from bench.gpu.parts import PARTS, Part
from local.helpers import eventually, text_of
from support.processes import is_running

WORKS = Part(name="works", runs="support.gpu_parts:works", minutes=1, arguments=(7,))
FAILS = Part(name="fails", runs="support.gpu_parts:fails", minutes=1)


def run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *parts: Part, minutes: str = "5", only: str | None = None
) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(gpu, "PARTS", parts)
    chosen = [] if only is None else ["--only", only]
    monkeypatch.setattr("sys.argv", ["gpu", "--dry", "--minutes", minutes, "--results", str(folder), *chosen])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(gpu.ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))
    code = gpu.main()
    (path,) = folder.glob("gpu-*.json")
    results: dict[str, Any] = json.loads(path.read_text())
    return code, results


def test_a_part_that_fails_is_named_with_its_reason_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, results = run(monkeypatch, tmp_path, FAILS, WORKS)

    assert code == 1
    assert (results["parts"]["fails"]["state"], results["parts"]["works"]["state"]) == ("failed", "ran")
    assert results["parts"]["fails"]["reason"].endswith("CheckFailedError: the sums differ")
    assert results["parts"]["works"]["rows"] == [{"what": "a number", "value": 7, "unit": "x", "beside": "1 is best"}]
    said = capsys.readouterr().out
    assert "1 of 2 parts ran" in said
    assert "1 did not: fails" in said


def test_a_part_that_hangs_is_cut_off_with_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "child"
    wait = subprocess.Popen.wait

    def wait_once_it_hangs(process: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
        eventually(lambda: text_of(told))
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_once_it_hangs)
    monkeypatch.setattr(gpu, "DRY_SECONDS", 1.0)

    part = Part(name="hangs", runs="support.gpu_parts:hangs", minutes=1, arguments=(str(told),))
    code, results = run(monkeypatch, tmp_path, part)

    assert code == 1
    assert results["parts"]["hangs"]["reason"] == "cut off after 1 s"
    assert not is_running(int(told.read_text()))


def test_what_there_is_no_time_for_is_not_run_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, results = run(monkeypatch, tmp_path, WORKS, minutes="0.1")

    assert code == 1
    assert results["parts"]["works"] == {"state": "not run", "reason": "the 0.1 minutes are over", "rows": []}


def test_a_part_that_is_not_run_again_keeps_its_rows_on_the_same_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(monkeypatch, tmp_path, WORKS, FAILS)

    code, results = run(monkeypatch, tmp_path, WORKS, FAILS, only="fails")
    assert code == 1
    assert list(results["parts"]) == ["works", "fails"]
    assert results["parts"]["works"]["rows"]

    _, results = run(monkeypatch, tmp_path, WORKS, FAILS, minutes="0.1")
    assert results["parts"]["works"]["state"] == "ran"

    monkeypatch.setattr(gpu, "_machine", lambda *, dry: {"device": "the CPU, dry", "date": results["machine"]["date"]})
    _, results = run(monkeypatch, tmp_path, WORKS, FAILS, only="fails")
    assert list(results["parts"]) == ["fails"]


def test_the_page_names_the_device_and_what_did_not_run(tmp_path: Path) -> None:
    machine = {"dry": False, "device": "NVIDIA H200", "memory_gib": 139.8, "driver": "575.1", "cuda": "12.9"}
    machine |= {"torch": "2.13.0", "python": "3.12.1", "cores": 16, "date": "2026-11-22"}
    row = {"what": "stall / pinned copy", "value": 1.0523, "unit": "x", "beside": "dcp 1.9"}
    parts = {
        "checkpoints": {"state": "ran", "seconds": 60, "rows": [row]},
        "memory": {"state": "failed", "reason": "cut off after 60 s", "rows": []},
    }
    (tmp_path / "gpu-h200.json").write_text(json.dumps({"machine": machine, "parts": parts}))
    (tmp_path / "gpu-dry.json").write_text(json.dumps({"machine": {**machine, "dry": True}, "parts": {}}))

    report.write(tmp_path / "gpu.md", tmp_path)

    page = (tmp_path / "gpu.md").read_text()
    assert page.count("## NVIDIA H200, 2026-11-22") == 1
    assert "driver 575.1, CUDA 12.9, torch 2.13.0, Python 3.12.1, 16 cores" in page
    assert "| checkpoints | stall / pinned copy | 1.052 x | dcp 1.9 |" in page
    assert "| memory | failed |  | cut off after 60 s |" in page


def test_every_part_names_a_function_that_is_there() -> None:
    for part in PARTS:
        module, function = part.runs.split(":")
        path = gpu.ROOT / (module.replace(".", "/") + ".py")
        assert f"\ndef {function}(" in path.read_text(), part
    assert len({part.name for part in PARTS}) == len(PARTS)
