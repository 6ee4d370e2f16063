"""Requests to stop that come from outside the training.

any rank    a signal: SIGTERM, SIGINT
rank 0      the operator's answer to a report; the run's deadline or budget, which needs no operator; a rehearsal
"""

from piton.contract.progress import StopAt
from piton.contract.termination import Limit
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.errors import Stopped
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.telemetry.operator_client import StopBy
from piton_trainer.telemetry.telemetry import Telemetry
from piton_trainer.training.boundary import StopRehearsal
from piton_trainer.training.signals import StopFlag


class StopRequests:
    """The requests that this rank knows of. The ranks agree on them at a step boundary."""

    def __init__(self, config: Config, *, ranks: Ranks, telemetry: Telemetry, signals: StopFlag, clock: Clock) -> None:
        self._ranks = ranks
        self._telemetry = telemetry
        self._signals = signals
        self._rehearsal = None if config.rehearsal is None else StopRehearsal(steps=config.rehearsal)
        self._time_limit = TimeLimit(config, clock)

    @property
    def last_step(self) -> int | None:
        """The step that a rehearsal ends with; None in earnest."""
        return None if self._rehearsal is None else self._rehearsal.last

    def renew(self) -> None:
        """Take over the time limit of the operator's newest answer."""
        self._time_limit.renew(self._telemetry.stop_by)

    def has_any(self, step: int, *, is_resumed: bool) -> bool:
        """Return True if this rank knows of a request to stop after this step."""
        if self._signals.received is not None:
            return True
        if not self._ranks.is_main:
            return False
        rehearsed = self._rehearsal is not None and self._rehearsal.stops(step, is_resumed=is_resumed)
        return rehearsed or self._time_limit.reached() is not None or self._telemetry.stop_requested

    def error(self, durable_step: int | None) -> Stopped:
        """Return the error that ends a training that was requested to stop."""
        received, reached = self._signals.received, self._time_limit.reached()
        saved = "nothing was trained yet" if durable_step is None else f"step {durable_step} is saved"
        if received is None and reached is not None and self._ranks.is_main:
            detail = f"limits.{reached.limit} is reached, and the training stopped by itself; {saved}"
            return Stopped(detail, reached.limit)
        cause = "the server or another rank" if received is None else received.name
        return Stopped(f"told to stop by {cause}; {saved}")


class TimeLimit:
    """Rank 0's deadline or budget: the one of the environment, until the operator answers a report with another."""

    def __init__(self, config: Config, clock: Clock) -> None:
        told = []
        if config.stop_at is not None:
            told.append(StopAt(time=config.stop_at, limit=Limit.DEADLINE))
        if config.stop_after is not None:
            told.append(StopAt(seconds=config.stop_after, limit=config.stop_limit))
        found = [StopBy.told(stop_at, clock) for stop_at in told]
        self._clock = clock
        self._stop_by = min(found, key=lambda each: each.moment or 0.0, default=StopBy())

    def renew(self, stop_by: StopBy | None) -> None:
        """Take over the operator's limit, if it has named one."""
        self._stop_by = stop_by or self._stop_by

    def reached(self) -> StopBy | None:
        """Return the limit if it is reached, else None."""
        moment = self._stop_by.moment
        return self._stop_by if moment is not None and self._clock.monotonic() >= moment else None
