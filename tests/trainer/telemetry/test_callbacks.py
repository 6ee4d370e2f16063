"""Callbacks receive the events of a training, and cannot end it."""

import re
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import piton_trainer
from piton.contract.progress import Progress
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.volume_health import VolumeHealth
from piton_trainer.telemetry import callbacks
from piton_trainer.telemetry.callbacks import Callback, Callbacks
from support import ranks, tiny
from support.checkpoints import sound_steps

DOCS = Path(__file__).parents[3] / "docs" / "bring-your-own-loop.md"


class Recorder(piton_trainer.Callback):
    """Keeps the name of each event, and what it came with."""

    report_every_seconds = 0.0

    def __init__(self) -> None:
        self.events: list[str] = []
        self.reports: list[Progress] = []
        self.saved: list[int] = []
        self.last: Progress | None = None

    def on_setup(self, volume: VolumeHealth) -> None:
        self.events.append("setup")

    def on_start(self, phases: Mapping[str, float]) -> None:
        assert phases
        self.events.append("start")

    def on_step(self, *, seconds: float, waited_seconds: float) -> None:
        assert 0 <= waited_seconds <= seconds
        self.events.append("step")

    def on_report(self, progress: Progress) -> None:
        self.reports.append(progress)

    def on_save(self, *, stall_seconds: float) -> None:
        assert stall_seconds >= 0
        self.events.append("save")

    def on_notice(self, *, step: int) -> None:
        self.events.append(f"notice {step}")

    def on_saved(self, saved: Saved, *, timestamp: float) -> None:
        assert timestamp > 0
        self.saved.append(saved.step)
        self.events.append("saved")

    def on_end(self, progress: Progress | None) -> None:
        self.last = progress
        self.events.append("end")


def test_a_callback_receives_the_events_of_a_training_in_their_order(tmp_path: Path) -> None:
    recorder = Recorder()

    tiny.train(tmp_path, assignment=tiny.every(10), callbacks=[recorder])

    steps = ["step"] * (tiny.STEPS - 10)
    first = ["setup", "start", *["step"] * 10, "save", "saved"]
    assert recorder.events == [*first, *steps, "save", "saved", "end"]
    assert recorder.saved == [10, tiny.STEPS]


def test_a_callback_receives_a_report_of_every_step_when_it_asks_for_it(tmp_path: Path) -> None:
    recorder = Recorder()

    tiny.train(tmp_path, callbacks=[recorder])

    assert [report.step for report in recorder.reports] == list(range(1, tiny.STEPS))
    assert all("loss" in report.metrics for report in recorder.reports)
    assert recorder.last is not None
    assert recorder.last.percentage == 100


def test_a_callback_is_told_of_the_end_of_a_training_that_fails(tmp_path: Path) -> None:
    recorder = Recorder()

    with pytest.raises(tiny.LostError):
        tiny.train(tmp_path, at={3: tiny.vanish}, callbacks=[recorder])

    assert (recorder.events[-1], recorder.last) == ("end", None)


@pytest.mark.parametrize("event", ["on_setup", "on_start", "on_step", "on_report", "on_save", "on_saved", "on_end"])
def test_a_callback_that_fails_is_called_no_more_and_training_goes_on(
    tmp_path: Path, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing, calls, recorder = Recorder(), list[str](), Recorder()

    def fail(*_: Any, **__: Any) -> None:
        calls.append(event)
        raise RuntimeError("the tracking server is down")

    setattr(failing, event, fail)

    ran = tiny.train(tmp_path, callbacks=[failing, recorder])

    assert ran.complete is not None
    assert calls == [event]
    assert recorder.events[-1] == "end"
    [record] = [record for record in caplog.records if "is called no more" in record.message]
    assert record.message.startswith(f"callback Recorder has failed in {'report' if event == 'on_report' else event} ")
    assert record.exc_info is not None


def test_a_stop_is_announced_before_the_last_save(tmp_path: Path) -> None:
    recorder = Recorder()

    ran = tiny.train(tmp_path, at={3: tiny.terminate}, callbacks=[recorder])

    assert ran.code == 143
    assert recorder.events[-4:] == ["notice 3", "save", "saved", "end"]


def test_a_notice_that_is_not_handled_in_time_does_not_hold_up_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callbacks, "NOTICE_SECONDS", 0.05)
    slow, recorder, is_over = Recorder(), Recorder(), threading.Event()
    monkeypatch.setattr(slow, "on_notice", lambda step: is_over.wait())

    ran = tiny.train(tmp_path, at={3: tiny.terminate}, callbacks=[slow, recorder])
    is_over.set()

    assert (ran.code, recorder.saved[-1]) == (143, 3)
    assert "callback Recorder is in on_notice for more than 0.05 s; the save goes on" in caplog.text


def test_a_notice_that_fails_is_logged_and_the_state_is_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failing = Recorder()
    failing.on_notice = lambda *, step: 1 / 0  # type: ignore[assignment,method-assign]

    ran = tiny.train(tmp_path, at={3: tiny.terminate}, callbacks=[failing])

    assert (ran.code, sound_steps(tmp_path)) == (143, [3])
    assert "callback Recorder has failed in on_notice" in caplog.text


def test_of_several_ranks_only_the_first_calls_its_callbacks(tmp_path: Path) -> None:
    ranks.run(2, partial(_train_and_note, tmp_path))

    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["True", "False"]


def _train_and_note(folder: Path) -> None:
    recorder, found = Recorder(), dict[str, int]()
    tiny.train(
        folder / "run", callbacks=[recorder], at={1: lambda session: found.setdefault("rank", session.rank) and None}
    )
    (folder / f"rank{found['rank']}").write_text(str(bool(recorder.events)))


def test_reports_are_as_far_apart_as_a_callback_asks_for() -> None:
    callback, progress = Callback(), Progress(updated="")
    members = Callbacks([callback])

    delivered = []
    for second in range(25):
        if due := members.due(float(second)):
            members.report(due, progress, float(second))
            delivered.append(second)

    assert delivered == [0, 10, 20]


def test_the_callback_of_the_docs_writes_to_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(
        r"```python\n(import piton_trainer\nfrom torch.utils.tensorboard.*?)```",
        DOCS.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    written: list[tuple[str, int | None]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tb")

        def add_scalar(self, name: str, value: float, step: int | None) -> None:
            assert isinstance(value, float | int)
            written.append((name, step))

        def close(self) -> None:
            written.append(("closed", None))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    scope: dict[str, Any] = {}
    exec(code, scope)

    callback = scope["TensorBoard"](str(tmp_path / "tb"))
    callback.report_every_seconds = 0.0
    tiny.train(tmp_path, callbacks=[callback])

    assert ("loss", 1) in written
    assert written[-1] == ("closed", None)
