"""Comparison of a command with the run in its folder: go on, start over, or refuse because it is another run now."""

from collections.abc import Mapping
from datetime import datetime

from piton.api.conditions import FAILED, in_phase
from piton.api.reasons import Reason
from piton.api.spec import Spec
from piton.api.status import RunStatus
from piton.api.status_base import Phase
from piton.contract import InputError
from piton.core import retries
from piton.cost import spending
from piton.local.run_folder import LocalState, RunFolder

_IDENTITY = {
    "trainer": {"recipe": True, "config": True, "command": True},
    "workers": {"nodes": True, "gpus_per_node": True},
    "objective": True,
}
"""Parts of a spec that determine the training. The rest (limits, interval, retention, image …) may change."""


def state_of(folder: RunFolder, *, name: str, spec: Spec, now: datetime) -> LocalState:
    """Return the state to continue from; a new one in a new folder. A failed run continues from its checkpoint.

    Raises:
        ValueError: a field in `_IDENTITY` has changed.
    """
    saved = folder.load()
    if saved is None:
        return LocalState(name=name, created=now, spec=spec)
    changed = _first_difference(_identity(saved.spec), _identity(spec), "spec")
    if changed:
        raise InputError(
            f"{changed} is not what this run began with; put it back, say --fresh to start over, "
            "or give the run another name"
        )
    status = spending.stop_at_last_sight(saved.status)  # what ran under a command that was killed went with it
    status = _another_chance(status) if status.is_true(FAILED) else status
    return saved.model_copy(update={"spec": spec, "status": status})


def go_on(state: LocalState, *, now: datetime) -> LocalState:
    """Return the state of a run that has Succeeded after a `break`, and goes on: the user starts it again by hand."""
    step = state.status.result.step if state.status.result else None
    message = (
        f"The training goes on from step {step}, which the script had left by break. Where the end is meant, the "
        "script says so with session.finish()"
    )
    status = in_phase(retries.go_on(state.status), Phase.PENDING, Reason.RETRYING, message, now=now, generation=1)
    return state.model_copy(update={"status": status})


def _identity(spec: Spec) -> dict[str, object]:
    return spec.model_dump(mode="json", by_alias=True, include=_IDENTITY)  # type: ignore[arg-type]


def _first_difference(before: object, after: object, path: str) -> str | None:
    """Return the path of the first value that differs."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        differences = (
            _first_difference(before.get(key), after.get(key), f"{path}.{key}") for key in sorted({*before, *after})
        )
        return next((found for found in differences if found), None)
    return None if before == after else path


_NOTHING_FAILED = {"failures": 0, "failures_since_progress": 0, "fruitless_attempts": 0}


def _another_chance(status: RunStatus) -> RunStatus:
    """Reset the failure counts and keep the progress: a user who repeats the command has fixed the cause."""
    stages = tuple(
        stage if stage.end_time else stage.model_copy(update={**_NOTHING_FAILED, "start_time": None})
        for stage in status.stages
    )
    fresh = RunStatus(
        attempt=status.attempt,
        preemptions=status.preemptions,
        infrastructure_failures=status.infrastructure_failures,
        lost=status.lost,
        cost=spending.forget(status, status.attempts).cost,
        checkpoint=status.checkpoint,
        result=status.result,
        stages=stages,
    )
    return fresh.with_unknown_of(status)
