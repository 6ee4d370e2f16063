"""Detection of a training that hangs, from the heartbeats of the ranks of a node. Pure.

A job waits for its slowest rank: as long as one of them saves, evaluates or waits for data, the others have a reason to
stand still.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from piton_trainer.hangs.heartbeats import Heartbeat, RankPhase

AUTO_SECONDS = 300.0
AUTO_STEPS = 10
"""Without a word of the user's: the time of so many median steps, and at least these seconds."""
IDLE_SECONDS = 1800.0
"""So long may a start, a restore or a wait for data last in which nothing is read, written or computed."""
_STEPS = 101
"""Of so many of the newest steps the median is taken."""
_UNTIMED = frozenset({RankPhase.SAVING, RankPhase.UNTIMED, RankPhase.ENDING})
_IDLE = frozenset({RankPhase.STARTING, RankPhase.BETWEEN})


@dataclass(frozen=True, kw_only=True)
class Hang:
    """No step for too long."""

    seconds: float
    limit: float
    step: int


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Nothing is read, written or computed, in a start, a restore or a wait for data."""

    seconds: float
    step: int


class HangDetector:
    """The watchdog's memory. All times are of one monotonic clock."""

    def __init__(self, *, limit_seconds: float | None, now: float, idle_seconds: float = IDLE_SECONDS) -> None:
        """`limit_seconds` None: the automatic limit."""
        self._limit_seconds = limit_seconds
        self._idle_seconds = idle_seconds
        self._durations: deque[float] = deque(maxlen=_STEPS)
        self._last: tuple[int, float] | None = None
        self._alive_at = self._moved_at = now
        self._moved = -1

    @property
    def limit(self) -> float:
        """Seconds without a step that are a hang."""
        if self._limit_seconds is not None:
            return self._limit_seconds
        typical = median(self._durations) if self._durations else 0.0
        return max(AUTO_SECONDS, AUTO_STEPS * typical)

    def silence(self, beats: Sequence[Heartbeat], now: float) -> float:
        """Seconds for which all ranks of the node have been inside one step, or waited for one another."""
        if not beats or any(beat.phase is not RankPhase.STEPPING for beat in beats):
            self._alive_at = now
            return 0.0
        self._alive_at = max(self._alive_at, *(beat.time for beat in beats))
        return max(0.0, now - self._alive_at)

    def judge(self, beats: Sequence[Heartbeat], *, moved: int, now: float) -> Hang | Idle | None:
        """Return the hang, if there is one.

        `moved` grows by one whenever the node's ranks have read, written or computed something since it was last asked.
        """
        self._learn(beats)
        silence = self.silence(beats, now)
        if silence >= self.limit:
            return Hang(seconds=silence, limit=self.limit, step=max(beat.step for beat in beats))
        if moved != self._moved or not any(beat.phase in _IDLE for beat in beats) or _any_untimed(beats):
            self._moved, self._moved_at = moved, now
        idle = self.idle(now)
        return Idle(seconds=idle, step=max(beat.step for beat in beats)) if idle >= self._idle_seconds else None

    def idle(self, now: float) -> float:
        """Seconds since the ranks of the node have last read, written or computed something, or needed not to."""
        return now - self._moved_at

    def forgive(self, now: float) -> None:
        """The machine has slept: nothing of that time counts."""
        self._alive_at = self._moved_at = now
        self._last = None

    def _learn(self, beats: Sequence[Heartbeat]) -> None:
        """Take the time of the steps since the last look."""
        stepping = [beat for beat in beats if beat.phase in (RankPhase.STEPPING, RankPhase.BETWEEN)]
        if not stepping:
            self._last = None
            return
        newest = max(stepping, key=lambda beat: beat.step)
        if self._last is None or newest.step < self._last[0]:
            self._last = (newest.step, newest.time)
        elif newest.step > self._last[0]:
            steps = newest.step - self._last[0]
            self._durations.append(max(0.0, newest.time - self._last[1]) / steps)
            self._last = (newest.step, newest.time)


def _any_untimed(beats: Sequence[Heartbeat]) -> bool:
    return any(beat.phase in _UNTIMED for beat in beats)
