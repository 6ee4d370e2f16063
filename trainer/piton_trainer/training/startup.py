"""A stopwatch for the start of an attempt: from the start of the process to the end of its first step."""

from collections.abc import Mapping

from piton.contract import startup_phases
from piton_trainer.clock import Clock


class Startup:
    """Laps by phase. A phase may come more than once; when the first step is done, nothing is measured any more."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lap = clock.monotonic()
        launcher = clock.launcher_seconds()
        self._seconds = {} if launcher is None else {startup_phases.LAUNCHER: launcher}
        self._seconds[startup_phases.IMPORTS] = clock.process_seconds()
        self._is_over = False

    def lap(self, phase: str) -> None:
        """Count the time since the last lap for this phase."""
        if not self._is_over:
            now = self._clock.monotonic()
            self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._lap
            self._lap = now

    def end(self) -> bool:
        """The first step is done; False when that is no news."""
        if self._is_over:
            return False
        self.lap(startup_phases.FIRST_STEP)
        self._is_over = True
        return True

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds by phase, of a start that is over; before that, nothing."""
        return self._seconds if self._is_over else {}
