"""Receivers of the events of a training: `Callback` is their base class, `Callbacks` calls them.

    session             Callbacks            ConsoleReporter, Exporter, OperatorClient, and those of the user
    on_report, … →      one after the other  →

Only rank 0 has callbacks. Training does not depend on them: a callback that raises an exception is called no more.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from piton.contract.progress import Progress
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.save_interval import Choice
from piton_trainer.checkpoint.volume_health import VolumeHealth

logger = logging.getLogger(__name__)

NOTICE_SECONDS = 10.0
"""For `on_notice` of all callbacks. A spot notice leaves two minutes, of which the save needs most."""


class Callback:
    """Receives the events of a training; override the methods of the events that are needed.

    All methods are called on rank 0, between two steps; all but `on_notice` in the thread that trains. They should
    return at once, and must not call a collective: the other ranks do not. An exception is logged with its traceback,
    and ends the calls of this callback, not the training.
    """

    report_every_seconds: float = 10.0
    """Minimum seconds between two reports; 0: one after every step. A report reads metrics off the device."""
    _reported_at: float | None = None

    def is_due(self, now: float) -> bool:
        """Return True if `report_every_seconds` have passed since the last report. `now` is a monotonic time, in s."""
        return self._reported_at is None or now - self._reported_at >= self.report_every_seconds

    def report(self, progress: Progress, now: float) -> None:
        """Deliver a report, and note the time."""
        self._reported_at = now
        self.on_report(progress)

    def on_setup(self, volume: VolumeHealth) -> None:
        """Handle the end of the setup; the state of the checkpoint volume can be read from now on."""

    def on_start(self, phases: Mapping[str, float]) -> None:
        """Handle the end of this attempt's first step.

        Args:
            phases: seconds from the start of the process to the end of the step, by phase (docs/startup-time.md).
        """

    def on_step(self, *, seconds: float, waited_seconds: float) -> None:
        """Handle the end of a step. It took `seconds`, of which it waited `waited_seconds` for its batch."""

    def on_report(self, progress: Progress) -> None:
        """Handle a report: step, percentage, remaining time, checkpoint and the metrics of the newest step."""

    def on_interval(self, choice: Choice) -> None:
        """Handle a new choice of the time between two saves."""

    def on_save(self, *, stall_seconds: float) -> None:
        """Handle the begin of a save, for which training has stood still this long. It is not durable yet."""

    def on_notice(self, *, step: int) -> None:
        """Handle a stop that is asked for, after this step and before the state is saved for the last time.

        For what has to leave the machine in good time. It is called in a thread of its own and has `NOTICE_SECONDS`;
        after these the state is saved beside it.
        """

    def on_saved(self, saved: Saved, *, timestamp: float) -> None:
        """Handle a checkpoint that has become durable. `timestamp` is the Unix time, in seconds."""

    def on_end(self, progress: Progress | None) -> None:
        """Handle the end of the attempt; the last report is None if training had not begun, or has failed."""


class Callbacks:
    """Calls every callback in turn, without letting an exception through."""

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self.members = list(callbacks)

    def call(self, event: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Call one event, a method of `Callback`, on all of them."""
        for callback in self.members.copy():
            self._guarded(callback, event.__name__, *args, **kwargs)

    def notice(self, *, step: int) -> None:
        """Call `on_notice` of those that have one, and wait for them, `NOTICE_SECONDS` at most."""
        members = [each for each in self.members if getattr(each.on_notice, "__func__", None) is not Callback.on_notice]
        if not members:
            return
        waiting = members.copy()

        def call() -> None:
            for callback in members:
                self._guarded(callback, Callback.on_notice.__name__, step=step)
                waiting.remove(callback)

        thread = threading.Thread(target=call, name="piton-notice", daemon=True)
        thread.start()
        thread.join(NOTICE_SECONDS)
        if waiting:
            name = type(waiting[0]).__name__
            logger.warning("callback %s is in on_notice for more than %g s; the save goes on", name, NOTICE_SECONDS)

    def due(self, now: float) -> list[Callback]:
        """Return the callbacks that want a report now."""
        return [callback for callback in self.members if callback.is_due(now)]

    def report(self, due: Iterable[Callback], progress: Progress, now: float) -> None:
        """Deliver a report to these callbacks."""
        for callback in due:
            self._guarded(callback, "report", progress, now)

    def _guarded(self, callback: Callback, method: str, *args: Any, **kwargs: Any) -> None:
        try:
            getattr(callback, method)(*args, **kwargs)
        except Exception:
            logger.exception(
                "callback %s has failed in %s and is called no more; training goes on", type(callback).__name__, method
            )
            self.members.remove(callback)
