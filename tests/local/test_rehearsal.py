"""The checks of a rehearsal, from the ending of a run that is not started: which are good, and what is left behind."""

import asyncio
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from local.helpers import Listener, fake_parts, spec_of
from piton.api.reasons import Reason
from piton.api.status import RunStatus
from piton.contract.progress import GPU_MEMORY_BYTES, GPU_MEMORY_PEAK_BYTES, MEMORY_PEAK_BYTES, Progress
from piton.core.effects import Announcement
from piton.local import preflight, rehearsal
from piton.local.observers import RunObserver, View
from piton.local.rehearsal import Check, Findings, PeakRecorder, Rehearsal
from piton.local.run_folder import RunFolder
from piton.local.runner import Ending, RunRequest
from piton.local.summary import Summary
from support.builders import NOW

END = Progress(updated="", step=6, total_steps=100, resumed_from=3, metrics={"loss": 0.5})
SUMMARY = Summary(
    name="fake",
    phase="Succeeded",
    reason="Finished",
    message="",
    final_step=6,
    lost_steps=0,
    preemptions=0,
    attempts=2,
    failures=0,
    infrastructure_failures=0,
    best_metric=None,
    best_step=None,
    weights_digest=None,
    checkpoint=None,
    best_checkpoint=None,
    stages={},
    evaluation={},
    cost={},
    examples_skipped=0,
    recovery_seconds=0.0,
    start_seconds={"imports": 2.0},
    mirror_off=None,
    drills_not_fired=(),
    curve=None,
    logs=Path("logs"),
)
Reports = tuple[Progress, ...]


def view(progress: Progress | None) -> View:
    return View(name="fake", status=RunStatus(), progress=progress, objective=None, now=NOW)


@pytest.fixture
def rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Findings, list[RunRequest]]]:
    """Rehearses a run whose reports and ending are given."""

    def rehearse(
        reports: Reports = (END,), ending: Ending | None = None, parts: dict[str, Any] | None = None
    ) -> tuple[Findings, list[RunRequest]]:
        orders: list[RunRequest] = []

        def run(order: RunRequest, observer: RunObserver) -> Ending:
            orders.append(order)
            RunFolder(order.root).checkpoints.mkdir()
            for report in reports:
                observer.show(view(report))
            return ending or Ending(summary=SUMMARY)

        monkeypatch.setattr(rehearsal, "run", run)
        subject = Rehearsal(name="fake", spec=spec_of(fake_parts(**(parts or {}))), parent=tmp_path / "runs" / "fake")
        return rehearsal.rehearse(subject, Listener()), orders

    return rehearse


def check(found: Findings, name: str) -> Check:
    [only] = [check for check in found.checks if check.name == name]
    return only


def test_a_machine_that_lacks_something_is_named_and_nothing_is_started(
    rehearsed: Callable[..., tuple[Findings, list[RunRequest]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "problems", lambda _: ["spec.workers: 8 GPUs are needed; use another machine"])

    found, orders = rehearsed()

    assert orders == []
    assert not found.is_good
    expected = Check(name="machine", state="failed", text="spec.workers: 8 GPUs are needed", fix="use another machine")
    assert list(found.checks) == [expected]


def test_the_rehearsal_has_no_limits_no_mirror_and_no_other_stage(
    rehearsed: Callable[..., tuple[Findings, list[RunRequest]]],
) -> None:
    parts = {"limits": {"deadline": "1h", "budget": {"usd": "5"}, "failures": 9}, "capacity": {"maxPricePerHour": "9"}}

    _, [order] = rehearsed(parts=parts)

    assert order.rehearsal == 3
    assert (order.spec.limits.deadline, order.spec.limits.budget, order.spec.limits.failures) == (None, None, 1)
    assert order.spec.checkpoint.mirror is None


def test_a_run_that_ends_without_a_report_is_seen_to_end_and_no_more(
    rehearsed: Callable[..., tuple[Findings, list[RunRequest]]],
) -> None:
    found, _ = rehearsed(reports=())

    assert found.is_good
    assert check(found, "steps").state == "unknown"


def test_a_run_that_fails_keeps_its_folder_and_names_its_log(
    rehearsed: Callable[..., tuple[Findings, list[RunRequest]]],
) -> None:
    failed = Ending(summary=replace(SUMMARY, phase="Failed", message="exit code 1"), failed_log=Path("there.log"))

    found, [order] = rehearsed(ending=failed)

    assert not found.is_good
    assert (check(found, "steps").text, check(found, "steps").fix) == ("exit code 1", "the log is there.log")
    assert found.kept == order.root
    assert order.root.is_dir()


@pytest.mark.parametrize(
    ("report", "state", "text"),
    [
        (END, "ok", "stopped and resumed at step 3"),
        (replace(END, resumed_from=None, step=3), "unknown", "the run is over after 3 steps"),
        (replace(END, resumed_from=None), "failed", "the program was not stopped and resumed"),
    ],
)
def test_a_run_has_to_resume_unless_it_is_over_before(
    rehearsed: Callable[..., tuple[Findings, list[RunRequest]]], report: Progress, state: str, text: str
) -> None:
    found, _ = rehearsed(reports=(report,))

    assert check(found, "resume").state == state
    assert check(found, "resume").text.startswith(text)


def test_a_run_without_a_checkpoint_fails(rehearsed: Callable[..., tuple[Findings, list[RunRequest]]]) -> None:
    found, _ = rehearsed()

    assert (check(found, "checkpoints").state, check(found, "checkpoints").text) == ("failed", "none was saved")


@pytest.mark.parametrize(("limit", "state"), [("max", "ok"), ("1000000", "failed"), ("9000000", "ok")])
def test_the_peak_of_the_memory_has_to_fit_into_the_limit_of_the_container(
    rehearsed: Callable[..., tuple[Findings, list[RunRequest]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    state: str,
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    monkeypatch.setattr(rehearsal, "_CGROUP", tmp_path / "memory.max")
    high = replace(END, metrics={**END.metrics, MEMORY_PEAK_BYTES: 2e6})
    low = replace(END, metrics={**END.metrics, MEMORY_PEAK_BYTES: 1e6})

    found, _ = rehearsed(reports=(high, low))

    memory = check(found, "memory")
    assert (memory.state, memory.value) == (state, 2e6)
    assert (memory.fix is None) == (state == "ok")


def test_the_peak_of_the_gpu_memory_is_shown(rehearsed: Callable[..., tuple[Findings, list[RunRequest]]]) -> None:
    metrics = {GPU_MEMORY_PEAK_BYTES: 30e9, GPU_MEMORY_BYTES: 40e9}

    found, _ = rehearsed(reports=(replace(END, metrics=metrics),))

    assert check(found, "GPU memory").text == "30.0 GB of 40.0 GB at most, 75%"


def test_an_interrupted_rehearsal_leaves_nothing(rehearsed: Callable[..., tuple[Findings, list[RunRequest]]]) -> None:
    found, [order] = rehearsed(ending=Ending(summary=SUMMARY, interrupted=signal.SIGINT))

    assert (found.interrupted, found.kept, found.is_good) == (signal.SIGINT, None, False)
    assert not order.root.exists()


def test_an_error_leaves_nothing(
    rehearsed: Callable[..., tuple[Findings, list[RunRequest]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_machine", lambda _: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        rehearsed()

    assert list(tmp_path.glob(".preflight-*")) == []


def test_findings_are_plain_values() -> None:
    found = Findings(checks=[Check(name="steps", state="ok", text="6 taken")], kept=Path("/there"))

    wire = json.loads(json.dumps(found.to_wire()))

    assert (wire["ok"], wire["kept"], wire["checks"][0]["name"]) == (True, "/there", "steps")


def test_the_recorder_passes_everything_on_and_keeps_the_highest_peaks() -> None:
    listener = Listener()
    recorder = PeakRecorder(listener)

    for peak in (1.0, 3.0, 2.0):
        recorder.show(view(replace(END, metrics={MEMORY_PEAK_BYTES: peak})))
    recorder.show(view(None))
    asyncio.run(recorder.announce(Announcement(reason=Reason.STARTING, message="here")))

    assert recorder.peaks == {MEMORY_PEAK_BYTES: 3.0}
    assert recorder.newest is not None
    assert recorder.newest.metrics[MEMORY_PEAK_BYTES] == 2.0
    assert (len(listener.views), listener.said) == (4, ["here"])
