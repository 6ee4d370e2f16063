"""Message and exit code of a command whose run has Succeeded without a drill that was ordered.

A drill is a test of the run. A drill that did not fire has tested nothing, whatever the quality of the model.
"""

from collections.abc import Iterable

import click

from piton.api.status_base import Phase
from piton.local.summary import Summary

NOT_FIRED = 3
"""Exit code if all runs are trained, but a drill did not fire."""


def exit_code(runs: Iterable[Summary]) -> int:
    """Return the exit code of a command whose run or sweep has Succeeded.

    A failed run has an exit code of its own; a stopped run may be continued, and its drills may fire then.
    """
    return NOT_FIRED if any(_not_drilled(run) for run in runs) else 0


def complain(runs: Iterable[Summary]) -> None:
    """Print one sentence on stderr for each run that has Succeeded without all of its drills."""
    for run in runs:
        if _not_drilled(run):
            drills = ", ".join(run.drills_not_fired)
            sentence = (
                f"{run.name} has Succeeded, but not fired: {drills}; it was over before it was known to be so far"
            )
            click.echo(f"piton: {sentence}", err=True)


def _not_drilled(run: Summary) -> bool:
    return run.phase == Phase.SUCCEEDED and bool(run.drills_not_fired)
