"""The folder of a local sweep: its state, and the folders of its runs.

sweep.json   the sweep's status        .lock        held by the one `piton run` that works here
<variant>[-f<fold>][-s<seed>]/         a run's folder, see run_folder.py
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from piton.api.conditions import FAILED, in_phase
from piton.api.fields import Model
from piton.api.reasons import Reason
from piton.api.status import RunStatus
from piton.api.status_base import Phase
from piton.contract import InputError
from piton.local.drills import Drill
from piton.local.own_files import SWEEP
from piton.local.run_folder import RunFolder, replace_text
from piton.local.summary import Summary, summarise
from piton.ports import Clock
from piton.sweep import rules
from piton.sweep.expand import PlannedRun
from piton.sweep.parse import ParsedSweep, is_as_begun
from piton.sweep.status import Row, SweepStatus


class SweepState(Model):
    """State of a sweep that is stored between commands."""

    name: str
    created: AwareDatetime
    status: SweepStatus = SweepStatus()


def load(root: Path) -> SweepState | None:
    """Return the stored state of an earlier command; None without one.

    Raises:
        ValueError: this version cannot read it.
    """
    try:
        state = SweepState.model_validate_json((root / SWEEP.state_file).read_text(encoding="utf-8"), strict=True)
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise SWEEP.unreadable(root, error) from error
    if state.status.unreadable:
        raise InputError(f"{root / SWEEP.state_file}: {state.status.unreadable}; use the version that wrote it")
    return state


def save(root: Path, state: SweepState) -> None:
    """Write the state so that a crash leaves the old one or the new one.

    Raises:
        OSError: the write failed.
    """
    replace_text(root / SWEEP.state_file, state.model_dump_json(by_alias=True, indent=1))


def save_first(root: Path, state: SweepState) -> None:
    """Write the state for the first time in a command.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        save(root, state)
    except OSError as error:
        raise InputError(f"{root} cannot be written ({error.strerror}); name another folder with --dir") from error


def state_of(root: Path, sweep: ParsedSweep, clock: Clock) -> SweepState:
    """Return the state to continue from. In a failed sweep, the runs that have not succeeded are tried again.

    Raises:
        ValueError: the folder holds this sweep as it was before it was edited.
    """
    saved = load(root)
    if saved is None:
        return SweepState(name=sweep.meta.name, created=clock.now())
    if sweep.spec is not None and not is_as_begun(sweep.meta.name, sweep.spec, saved.status):
        raise InputError(
            f"spec: {rules.FIXED} are not what this sweep began with; put them back, say --fresh to start over, or "
            "give the sweep another name"
        )
    if not saved.status.is_true(FAILED):
        return saved
    rows = tuple(row if row.succeeded else _begun_again(row) for row in saved.status.runs)
    fresh = SweepStatus(plan=saved.status.plan, accepted=saved.status.accepted, runs=rows, cost=saved.status.cost)
    return saved.model_copy(update={"status": fresh.with_unknown_of(saved.status)})


def _begun_again(row: Row) -> Row:
    """Return the row of a run that gets another chance: only its cost is left."""
    return Row(name=row.name, variant=row.variant, fold=row.fold, seed=row.seed, cost=row.cost, uid=row.uid)


def failed_with(error: Exception, status: RunStatus, since: datetime) -> RunStatus:
    """Return the status of a run that ended with an error of the command: for the sweep it has failed."""
    kept = RunStatus(attempt=status.attempt, checkpoint=status.checkpoint, cost=status.cost)
    return in_phase(kept, Phase.FAILED, Reason.CANNOT_START, str(error), now=since, generation=1)


def folder_of(root: Path, run: PlannedRun, sweep: str) -> RunFolder:
    """Return the folder of a run of the sweep."""
    return RunFolder(root / run.short_name(sweep))


def summaries(
    root: Path, sweep: ParsedSweep, drills: Mapping[str, Sequence[Drill]], known: Mapping[str, Summary] | None = None
) -> tuple[Summary, ...]:
    """Return the summaries of the started runs: from this command, else from their folders.

    The drills are those of the command, by the name of the run.
    """
    known = known or {}
    found = (
        known[run.name]
        if run.name in known
        else _summary(folder_of(root, run, sweep.meta.name), drills.get(run.name, ()))
        for run in sweep.plan
    )
    return tuple(summary for summary in found if summary)


def _summary(folder: RunFolder, drills: Sequence[Drill]) -> Summary | None:
    try:
        state = folder.load()
    except InputError:
        return None  # the table has the run's row
    return summarise(folder, state, drills) if state else None
