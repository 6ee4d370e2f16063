"""Where the time of a start goes: measured once, said in the log, reported, and shown as a metric."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from piton.contract import startup_phases
from piton.contract.progress import Progress
from piton.local.metrics import Point
from piton.local.summary import newest_start
from piton_trainer.config import Server
from piton_trainer.telemetry.prometheus import Exporter
from piton_trainer.training.startup import Startup
from support import tiny
from support.clocks import FakeClock
from support.status_server import StatusServer


def test_each_phase_has_its_laps_until_the_first_step_is_done() -> None:
    clock = FakeClock()
    startup = Startup(clock)
    for phase, seconds in (
        (startup_phases.CLAIM, 1.0),
        (startup_phases.MODEL, 2.0),
        (startup_phases.CHECKPOINT, 3.0),
        (startup_phases.MODEL, 0.5),
    ):
        clock.pass_seconds(seconds)
        startup.lap(phase)
    assert startup.seconds == {}, "it is not over"
    clock.pass_seconds(4.0)
    assert startup.end()
    clock.pass_seconds(9.0)
    startup.lap(startup_phases.MODEL)
    assert not startup.end()
    assert startup.seconds == {"imports": 0.0, "claim": 1.0, "model": 2.5, "checkpoint": 3.0, "first_step": 4.0}


def test_the_sentence_is_in_order_and_leaves_out_what_took_no_time() -> None:
    phases = {"first_step": 1.8, "imports": 2.9, "process_group": 0.2, "claim": 0.01, "model": 0.4, "checkpoint": 0.8}
    assert startup_phases.sentence(phases) == (
        "6.1 s: imports 2.9, process group 0.2, model 0.4, checkpoint 0.8, first step 1.8"
    )


def test_phases_travel_as_metrics() -> None:
    metrics = startup_phases.to_metrics({"imports": 2.9, "first_step": 1.23456})
    assert metrics == {"start_imports_seconds": 2.9, "start_first_step_seconds": 1.235}
    assert startup_phases.from_metrics({"loss": 1.0, "start_of_it_seconds": 3.0, **metrics}) == {
        "imports": 2.9,
        "first_step": 1.235,
    }
    assert [startup_phases.is_start_metric(name) for name in (*metrics, "loss", "start_of_it_seconds")] == [
        True,
        True,
        False,
        False,
    ]


def test_the_newest_start_that_was_reported_is_summed_up() -> None:
    points = [
        Point(attempt=1, step=1, metrics={"start_imports_seconds": 1.0}),
        Point(attempt=2, step=5, metrics={"start_imports_seconds": 2.0}),
        Point(attempt=3, step=9, metrics={"loss": 2.0}),
    ]
    assert newest_start(points) == {"imports": 2.0}
    assert newest_start(points[2:]) == {}


def test_a_run_says_and_reports_how_it_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StatusServer() as server:
        tiny.train(tmp_path, server=Server(url=server.url))
    phases = startup_phases.from_metrics(server.reports[-1].metrics)
    assert set(phases) == {"imports", "process_group", "claim", "model", "checkpoint", "first_step"}
    assert all(seconds >= 0 for seconds in phases.values())
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("piton: started in ")]
    assert len(lines) == 1


def test_phases_are_a_metric_of_their_own_and_not_among_what_the_training_reports() -> None:
    exporter = Exporter(world_size=1, interval_seconds=0)
    exporter.on_start({"imports": 2.5, "first_step": 1.0})
    exporter.report(tiny_report({"loss": 1.0, "start_imports_seconds": 2.5}), now=0.0)
    families = {family.name: family.samples for family in exporter.registry.collect()}
    shown = {sample.labels["phase"]: sample.value for sample in families["piton_trainer_start_seconds"]}
    assert shown == {"imports": 2.5, "first_step": 1.0}
    assert [sample.labels["name"] for sample in families["piton_trainer_metric"]] == ["loss"]


def tiny_report(metrics: dict[str, float]) -> Progress:
    return Progress(updated="", step=1, metrics=metrics)


def ages(**env: str) -> tuple[float, float | None]:
    """What a new process, which has slept for 0.2 s, thinks of its age and its launcher's."""
    code = (
        "import json, threading; threading.Event().wait(0.2); from piton_trainer.clock import Clock; clock = Clock(); "
        "print(json.dumps([clock.process_seconds(), clock.launcher_seconds()]))"
    )
    out = subprocess.run([sys.executable, "-c", code], env=os.environ | env, capture_output=True, check=True).stdout
    own, launcher = json.loads(out)
    return own, launcher


def test_a_process_knows_its_age_and_what_torchrun_took_before_it() -> None:
    own, launcher = ages()
    assert 0.2 <= own < 30
    assert launcher is None
    own, launcher = ages(TORCHELASTIC_RUN_ID="1")
    assert 0.2 <= own < 30
    assert launcher is not None
    assert launcher >= 0
