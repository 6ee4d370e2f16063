"""`piton preflight`: a few steps of the real run on this machine, and what they say of the whole.

    look     what this machine lacks                               nothing is started where it lacks something
    run      the same code as `piton run`, in a folder of its own: steps, a stop, a resume, steps, an evaluation
    verify   every byte of the checkpoints that it left
    reckon   memory, time, cost and disk of the whole run

Only its place and its end are not the real run's: it does not mirror, and the data has to be there already. Of the
mirror only the bucket is checked, with one object.
"""

import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from piton.api.spec import Limits, Spec, Stages
from piton.api.status_base import Phase
from piton.contract import InputError, startup_phases
from piton.contract import progress as words
from piton.contract.progress import Progress
from piton.contract.quantity import format_bytes
from piton.core.effects import Announcement
from piton.cost.estimate import Figure, MeasuredSpeed, Price, cost_of, measured_disk, measured_time
from piton.local import metrics, preflight
from piton.local.bucket_check import check_bucket
from piton.local.observers import RunObserver, View
from piton.local.run_folder import RunFolder
from piton.local.runner import LOCAL_PACE, Ending, RunRequest, run
from piton.rendering.appdef import processes_per_node
from piton.timing import Timing

State = Literal["ok", "failed", "unknown"]
_AFTER_TRAINING_SECONDS = 30.0
"""Seconds for which the script may run on after the steps."""
_UNLIMITED = "max"
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table."""

    name: str
    state: State
    text: str
    """Finding of the check."""
    fix: str | None = None
    """Next action for the user, if it failed."""
    value: float | None = None
    """Result as a number: bytes, seconds or dollars."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Subject of a rehearsal."""

    name: str
    spec: Spec
    parent: Path
    """Parent of the future run folder; the rehearsal creates its own folder there."""
    steps: int = 3
    """Steps before the stop, and again after it."""
    price: Price | None = None
    timing: Timing = LOCAL_PACE


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Outcome of the rehearsal."""

    checks: Sequence[Check]
    interrupted: int | None = None
    """The signal that ended it."""
    kept: Path | None = None
    """Folder of the rehearsal with its logs, if a check failed."""

    @property
    def is_good(self) -> bool:
        """True if no check failed."""
        return self.interrupted is None and all(check.state != "failed" for check in self.checks)

    def to_wire(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        checks = [asdict(check) for check in self.checks]
        return {"ok": self.is_good, "checks": checks, "kept": None if self.kept is None else str(self.kept)}


@dataclass
class PeakRecorder:
    """Observer that forwards all calls, and records the newest report and the memory peaks."""

    observer: RunObserver
    newest: Progress | None = None
    peaks: dict[str, float] = field(default_factory=dict)

    async def announce(self, announcement: Announcement) -> None:
        """Forward the announcement."""
        await self.observer.announce(announcement)

    def show(self, view: View) -> None:
        """Record the report and the peaks, and forward the view."""
        if view.progress is not None and view.progress is not self.newest:
            self.newest = view.progress
            for name in (words.MEMORY_PEAK_BYTES, words.GPU_MEMORY_PEAK_BYTES):
                if name in view.progress.metrics:
                    self.peaks[name] = max(self.peaks.get(name, 0.0), view.progress.metrics[name])
        self.observer.show(view)


def rehearse(rehearsal: Rehearsal, observer: RunObserver) -> Findings:
    """Run the rehearsal, and remove its folder unless a check failed."""
    short = _short(rehearsal.spec)
    lacks = [_lack(problem) for problem in preflight.problems(short)]
    if lacks:
        return Findings(checks=lacks)
    bucket = _bucket(rehearsal)
    parent = _existing(rehearsal.parent)
    try:
        folder = RunFolder(Path(tempfile.mkdtemp(prefix=f".preflight-{rehearsal.name}-", dir=parent)))
    except OSError as error:
        raise InputError(
            f"the folder {parent} cannot be written ({error.strerror}); name another one with --dir"
        ) from error
    witness = PeakRecorder(observer)
    timing = replace(rehearsal.timing, after_training_seconds=_AFTER_TRAINING_SECONDS, rehearses=True)
    order = RunRequest(name=rehearsal.name, spec=short, root=folder.root, rehearsal=rehearsal.steps, timing=timing)
    try:
        ending = run(order, witness)
        machine = Check(name="machine", state="ok", text=_machine(short))
        checks = [machine, *bucket, *_checks(rehearsal, ending, folder, witness)]
    except BaseException:
        shutil.rmtree(folder.root, ignore_errors=True)
        raise
    found = Findings(checks=checks, interrupted=ending.interrupted, kept=folder.root)
    if found.is_good or ending.interrupted is not None:
        shutil.rmtree(folder.root, ignore_errors=True)
        found = Findings(checks=checks, interrupted=ending.interrupted)
    return found


def _short(spec: Spec) -> Spec:
    """Return the spec without stages, mirror, retries, deadline and budget, which a rehearsal must not have."""
    checkpoint = spec.checkpoint.model_copy(update={"mirror": None})
    limits: Limits = spec.limits.model_copy(update={"failures": 1, "deadline": None, "budget": None})
    return spec.model_copy(update={"checkpoint": checkpoint, "limits": limits, "stages": Stages()})


def _lack(problem: str) -> Check:
    path, _, rest = problem.partition(": ")
    what, _, fix = rest.rpartition("; ")
    return Check(name="machine", state="failed", text=f"{path}: {what or rest}", fix=fix if what else None)


def _bucket(rehearsal: Rehearsal) -> list[Check]:
    """Return the check of the bucket, if the run mirrors to one."""
    found = check_bucket(rehearsal.name, rehearsal.spec)
    if found is None:
        return []
    return [Check(name="bucket", state="ok" if found.is_good else "failed", text=found.text, fix=found.fix)]


def _existing(path: Path) -> Path:
    """Return the path, or its nearest existing parent."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _machine(spec: Spec) -> str:
    processes = spec.workers.nodes * processes_per_node(spec)
    on = f"{len(preflight.gpus())} GPUs" if spec.workers.gpus_per_node else "the CPU"
    return f"program and data are here; {processes} {'process' if processes == 1 else 'processes'} on {on}"


def _checks(rehearsal: Rehearsal, ending: Ending, folder: RunFolder, witness: PeakRecorder) -> Iterator[Check]:
    summary = ending.summary
    if summary.phase != Phase.SUCCEEDED:
        where = f"the log is {ending.failed_log or summary.logs}"
        yield Check(name="steps", state="failed", text=summary.message or "it did not end", fix=where)
        return
    report = witness.newest
    if report is None or report.step is None:
        text = "the program ended and reported nothing: it is seen to end, and no more"
        yield Check(name="steps", state="unknown", text=text, fix="docs/bring-your-own-loop.md says how it can report")
        return
    yield _steps(report, summary.start_seconds)
    yield _resume(rehearsal, report)
    yield _verified(folder)
    yield from _memory(rehearsal.spec, report, witness)
    yield from _reckoned(rehearsal, folder, report)


def _steps(report: Progress, start_seconds: Mapping[str, float]) -> Check:
    loss = f", loss {report.metrics['loss']:.4g}" if "loss" in report.metrics else ""
    took = f"; the last start took {startup_phases.sentence(start_seconds)}" if start_seconds else ""
    return Check(name="steps", state="ok", text=f"{report.step} taken{loss}{took}")


def _resume(rehearsal: Rehearsal, report: Progress) -> Check:
    if report.resumed_from is not None:
        return Check(name="resume", state="ok", text=f"stopped and resumed at step {report.resumed_from}")
    if report.step is not None and report.step <= rehearsal.steps:
        return Check(name="resume", state="unknown", text=f"the run is over after {report.step} steps")
    return Check(
        name="resume",
        state="failed",
        text="the program was not stopped and resumed: it does not use a session of piton_trainer",
        fix="docs/bring-your-own-loop.md says how; without it each preemption costs everything",
    )


def _verified(folder: RunFolder) -> Check:
    """Verify the hash of each file of each checkpoint."""
    from piton_trainer.checkpoint import inspect

    found = inspect.survey(folder.checkpoints)
    bad = [check for check in inspect.verify(found) if check.problem]
    if not found or bad:
        text = f"{bad[0].found.folder.name}: {bad[0].problem}" if bad else "none was saved"
        return Check(
            name="checkpoints", state="failed", text=text, fix="try another volume, or another folder with --dir"
        )
    size = max(item.manifest.size for item in found if item.manifest is not None)
    return Check(
        name="checkpoints", state="ok", text=f"{len(found)} saved, {format_bytes(size)} each, every byte verified"
    )


def _memory(spec: Spec, report: Progress, witness: PeakRecorder) -> Iterator[Check]:
    if (peak := witness.peaks.get(words.MEMORY_PEAK_BYTES)) is not None:
        processes, there = spec.workers.nodes * processes_per_node(spec), _memory_here()
        total = processes * peak
        text = f"{processes} x {format_bytes(peak)} = {format_bytes(total)} of {format_bytes(there)}"
        fix = "take smaller batches, fewer processes or a larger machine" if total > there else None
        yield Check(name="memory", state="failed" if fix else "ok", text=text, fix=fix, value=total)
    used, all_of_it = witness.peaks.get(words.GPU_MEMORY_PEAK_BYTES), report.metrics.get(words.GPU_MEMORY_BYTES)
    if used is not None and all_of_it:
        text = f"{format_bytes(used)} of {format_bytes(all_of_it)} at most, {used / all_of_it:.0%}"
        yield Check(name="GPU memory", state="ok", text=text, value=used)


def _memory_here() -> float:
    """Return the bytes of memory of the machine, or the limit of this container."""
    machine = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        limit = _CGROUP.read_text(encoding="utf-8").strip()
    except OSError:
        return machine
    return machine if limit == _UNLIMITED else min(machine, float(limit))


def _reckoned(rehearsal: Rehearsal, folder: RunFolder, report: Progress) -> Iterator[Check]:
    spec = rehearsal.spec
    time = measured_time(spec, _measured(folder, report))
    yield _check("time", time, "a larger deadline, fewer steps or more machines")
    yield _check("cost", cost_of(spec, time, rehearsal.price), "a larger budget, fewer steps or cheaper machines")
    newest = folder.newest_checkpoint()
    size = 0 if newest is None else sum(path.stat().st_size for path in newest.iterdir())
    disk = measured_disk(spec, size)
    yield _check("disk", disk, "a larger volume, or fewer checkpoints")
    free = shutil.disk_usage(folder.root).free
    if disk.value is not None and disk.value > free:
        text = f"{format_bytes(free)} are free here, for {format_bytes(disk.value)}"
        yield Check(name="disk here", state="failed", text=text, fix="another folder, for a run on this machine")


def _check(name: str, figure: Figure, fix: str) -> Check:
    if figure.warning:
        text = f"{figure.text}; {figure.warning}"
        return Check(name=name, state="failed", text=text, fix=fix, value=figure.value)
    state: State = "unknown" if figure.value is None else "ok"
    return Check(name=name, state=state, text=figure.text.removeprefix("unknown: "), value=figure.value)


def _measured(folder: RunFolder, report: Progress) -> MeasuredSpeed:
    """Return the seconds of a step by the reports, and the rest. The first step of an attempt does not count."""
    points = metrics.read(folder.metrics_file)
    laps = [point.metrics[words.STEP_SECONDS] for point in points if words.STEP_SECONDS in point.metrics]
    return MeasuredSpeed(
        step_seconds=statistics.median(laps) if laps else None,
        steps=report.total_steps,
        evaluation_seconds=report.metrics.get(words.EVALUATION_SECONDS),
        evaluation_every=report.metrics.get(words.EVALUATION_EVERY_STEPS),
        stall_seconds=report.metrics.get(words.CHECKPOINT_STALL_SECONDS),
    )
