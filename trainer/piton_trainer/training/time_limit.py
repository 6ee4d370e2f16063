"""Until when a training may go on, by the run's deadline and budget. It stops by itself: the operator may be away."""

from datetime import datetime, timedelta

from piton.contract.progress import StopAt
from piton.contract.termination import Limit
from piton_trainer.clock import Clock
from piton_trainer.config import Config


class TimeLimit:
    """Rank 0's. What the environment says holds until the operator says something else in an answer to a report."""

    def __init__(self, config: Config, clock: Clock) -> None:
        now = clock.now()
        found: list[tuple[datetime, Limit]] = []
        if config.stop_at is not None:
            found.append((config.stop_at, Limit.DEADLINE))
        if config.stop_after is not None:
            found.append((now + timedelta(seconds=config.stop_after), Limit.BUDGET))
        self._clock = clock
        self._stop_at = StopAt()
        if found:
            time, limit = min(found)
            self._stop_at = StopAt(time=time, limit=limit)

    def renew(self, stop_at: StopAt | None) -> None:
        """Take what the operator says, if it says anything."""
        self._stop_at = stop_at or self._stop_at

    def reached(self) -> StopAt | None:
        """The limit, once it is reached."""
        time = self._stop_at.time
        return self._stop_at if time is not None and self._clock.now() >= time else None
