"""Rank 0 says now and then how far it is, for whoever reads the pod's log.

The lines come further and further apart: the first ones show that it works, and a day of training fills no screen after
screen.
"""

from collections.abc import Mapping

from piton.contract import startup_phases
from piton.contract.duration import format_duration
from piton.contract.progress import Progress
from piton.contract.quantity import format_bytes
from piton_trainer.checkpoint.save_interval import Choice
from piton_trainer.mirror.messages import Transfer
from piton_trainer.telemetry.callbacks import Callback
from piton_trainer.telemetry.metrics import LOSS
from piton_trainer.termination import print_status

FIRST_SECONDS = 5.0
APART_SECONDS_MAX = 60.0
_MUCH = 1.5
"""By which factor an interval has to change to be worth a line."""


class ConsoleReporter(Callback):
    """Prints a line when enough time has passed since the one before."""

    def __init__(self) -> None:
        self.report_every_seconds = FIRST_SECONDS
        self._printed_interval: float | None = None

    def is_due(self, now: float) -> bool:
        """Return True if it is time for a line; the first one comes after `FIRST_SECONDS`, not at once."""
        if self._reported_at is None:
            self._reported_at = now
        return super().is_due(now)

    def on_start(self, phases: Mapping[str, float]) -> None:
        """Print how long the start took, by phase."""
        print_status(f"started in {startup_phases.sentence(phases)}")

    def on_report(self, progress: Progress) -> None:
        """Print a line."""
        self.report_every_seconds = min(2 * self.report_every_seconds, APART_SECONDS_MAX)
        print_status(line(progress))

    def on_interval(self, choice: Choice) -> None:
        """Print how often saves are made, the first time that it is known, and when it has changed by much."""
        printed, seconds = self._printed_interval, choice.seconds
        if choice.cost_seconds is not None and (printed is None or not printed / _MUCH < seconds < printed * _MUCH):
            self._printed_interval = seconds
            print_status(interval_line(choice))


def line(progress: Progress) -> str:
    """A report in a line: step 120 of 600 (20%), loss 2.31, 1m10s left, step 100 is saved."""
    step = f"step {progress.step}"
    if progress.total_steps is not None:
        step += f" of {progress.total_steps}"
    if progress.percentage is not None:
        step += f" ({progress.percentage}%)"
    parts = [step]
    if LOSS in progress.metrics:
        parts.append(f"{LOSS} {progress.metrics[LOSS]:.4g}")
    if progress.remaining_seconds is not None:
        parts.append(f"{format_duration(progress.remaining_seconds)} left")
    if progress.checkpoint_step is not None:
        parts.append(f"step {progress.checkpoint_step} is saved")
    return ", ".join(parts)


def transfer_line(transfer: Transfer) -> str:
    """A checkpoint's way in a line: restoring step 6 from the mirror: 41.3 GB of 103 GB, 57.1 MB/s, 18m1s left."""
    what = "restoring step {} from" if transfer.is_restore else "uploading step {} to"
    told = f"{what.format(transfer.step)} the mirror: {format_bytes(transfer.done)} of {format_bytes(transfer.total)}"
    if transfer.bytes_per_second <= 0:
        return told
    left = max(0, transfer.total - transfer.done) / transfer.bytes_per_second
    return f"{told}, {format_bytes(transfer.bytes_per_second)}/s, {format_duration(left)} left"


def interval_line(choice: Choice) -> str:
    """An interval in a line, with its reasons."""
    return (
        f"saving every {format_duration(choice.seconds)}: a save costs {choice.cost_seconds or 0:.2g} s and is durable "
        f"after {choice.durable_seconds or 0:.2g} s, an interruption is expected every "
        f"{format_duration(choice.between_seconds)}"
    )
