"""The order and the pace in which attempts leave a zone that does not answer.

    dark --ten minutes--> a turn each minute: an eighth of the zone's attempts, the most urgent and oldest first
                          fewer while the other zones have no machines for those that went before

An attempt takes its turn when it looks for it. Those that come before it and have not looked yet keep theirs, until
they have not looked for longer than anybody waits: then their nodes are back. In memory: a new operator begins anew.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import ceil

PATIENCE_SECONDS = 600.0
"""Seconds for which an outage is waited out."""
TURN_SECONDS = 60.0
"""Length of a turn: a zone's worth of runs must not ask for machines at once."""
TURNS = 8
"""Turns in which all attempts of a zone may restart, if the other zones take them: within ten minutes of the first."""
IN_VAIN_SECONDS = 180.0
"""Seconds after which an attempt that left counts as not taken by the others. A launch takes up to three minutes."""
STALE_SECONDS = 90.0
"""Seconds without a look after which an attempt does not wait any more. During an outage it looks each 30 s."""
TOGETHER_SECONDS = 300.0
"""Nodes that turn silent within so long of one another do so together."""
FOLLOWED_SECONDS = 150.0
"""Seconds after its last look at which a run waits for machines no more, while others look: it would every 120 s."""
_RECENT_SECONDS = 1200.0
"""For so long those that left count as a part of the zone's attempts."""
_FORGOTTEN_SECONDS = 3600.0
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Urgency:
    """The place of an attempt among those that leave a zone: by priority, then by deadline, then by age."""

    priority: int = 0
    deadline: datetime | None = None
    created: datetime | None = None

    def key(self, job: str) -> tuple[int, datetime, datetime, str]:
        """Return the key to sort by: the first goes first."""
        return -self.priority, self.deadline or _NEVER, self.created or _NEVER, job


@dataclass(kw_only=True)
class _Waiting:
    """An attempt that waits for its turn."""

    key: tuple[int, datetime, datetime, str]
    since: datetime
    """Since when the first of its nodes is silent, as far as this look has come."""
    since_before: datetime
    """The same, by the look before this one."""
    looked_at: datetime
    may_go_at: datetime
    """The end of the patience with its nodes."""
    answer: datetime | None = None

    def looks(self, now: datetime) -> bool:
        """True if it has looked lately."""
        return (now - self.looked_at).total_seconds() <= STALE_SECONDS


@dataclass(kw_only=True)
class _Zone:
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    given: dict[str, datetime] = field(default_factory=dict)
    """The attempts that have had their turn, and when."""
    began: datetime | None = None
    """The beginning of the first turn."""
    turn: int = 0
    taken: int = 0
    """The number of the current turn, and how many have taken it."""


class ZoneTurns:
    """Turns of all zones. For one event loop."""

    def __init__(self) -> None:
        self._zones: defaultdict[str, _Zone] = defaultdict(_Zone)
        self._unplaced: dict[str, datetime | None] = {}
        """Runs that have left a zone, and since when their newest attempt waits for a machine."""
        self._looked_at: dict[str, datetime] = {}
        """The times of the last looks of those that wait."""
        self._now = self._followed_at = datetime.min.replace(tzinfo=UTC)
        """The times of the newest look for a turn, and of the newest run that was followed."""

    def take(self, zone: str, job: str, since: datetime, urgency: Urgency, now: datetime) -> datetime:
        """Return the time at which the attempt may restart, with all of its nodes; not after now if it may."""
        self._now = max(self._now, now)
        found = self._zones[zone]
        given = found.given.get(job)
        if given is not None and (since - given).total_seconds() <= TOGETHER_SECONDS:
            return given
        waiting = _looked(found, job, since, urgency, now)
        if waiting.answer is None:
            waiting.answer = self._answer(found, job, waiting, now)
        return waiting.answer

    def follow(self, run: str, *, unplaced_since: datetime | None) -> None:
        """Note since when the newest attempt of a run waits for a machine; None: it does not."""
        if run in self._unplaced:
            self._unplaced[run], self._looked_at[run] = unplaced_since, self._now
            self._followed_at = self._now

    def forget(self, run: str) -> None:
        """Forget a run that is gone: it waits for nothing."""
        self._unplaced.pop(run, None)
        self._looked_at.pop(run, None)

    def _answer(self, zone: _Zone, job: str, waiting: _Waiting, now: datetime) -> datetime:
        if now < waiting.may_go_at:
            return waiting.may_go_at
        recent = [other for other, at in zone.given.items() if (now - at).total_seconds() <= _RECENT_SECONDS]
        if zone.began is None or not recent:
            zone.began, zone.turn, zone.taken = waiting.may_go_at, 0, 0
        number = int((now - zone.began).total_seconds() // TURN_SECONDS)
        if number != zone.turn:
            zone.turn, zone.taken = number, 0
        looking = [other for other in zone.waiting.values() if other.looks(now)]
        size = ceil((len(looking) + len(recent)) / TURNS)
        size = max(1, size - sum(self._waits_in_vain(other, now) for other in recent))
        ends = zone.began + timedelta(seconds=TURN_SECONDS * (number + 1))
        place = sum(other.key < waiting.key and other.may_go_at < ends for other in looking)
        left = size - zone.taken
        if place < left:
            self._give(zone, job, now)
            return now
        turns = 1 + max(0, place - max(0, left)) // size
        return zone.began + timedelta(seconds=TURN_SECONDS * (number + turns))

    def _give(self, zone: _Zone, job: str, now: datetime) -> None:
        forgotten = now - timedelta(seconds=_FORGOTTEN_SECONDS)
        zone.waiting = {other: each for other, each in zone.waiting.items() if each.looks(now) and other != job}
        for other in [other for other, at in zone.given.items() if at <= forgotten]:
            del zone.given[other]
            self.forget(_run_of(other))
        zone.given[job] = now
        zone.taken += 1
        self._unplaced[_run_of(job)] = None

    def _waits_in_vain(self, job: str, now: datetime) -> bool:
        run = _run_of(job)
        since = self._unplaced.get(run)
        if (
            since is None
            or run not in self._looked_at
            or (self._followed_at - self._looked_at[run]).total_seconds() > FOLLOWED_SECONDS
        ):
            return False
        return (now - since).total_seconds() >= IN_VAIN_SECONDS


def _looked(zone: _Zone, job: str, since: datetime, urgency: Urgency, now: datetime) -> _Waiting:
    """Note that the attempt looks for its turn. A pass asks for each of its nodes: the longest silence counts."""
    waiting = zone.waiting.get(job)
    if waiting is None or not waiting.looks(now):
        waiting = _Waiting(key=urgency.key(job), since=since, since_before=since, looked_at=now, may_go_at=now)
        zone.waiting[job] = waiting
    elif waiting.looked_at != now:
        waiting.since_before, waiting.since, waiting.looked_at, waiting.answer = waiting.since, since, now, None
    elif since < waiting.since:
        waiting.since, waiting.answer = since, None
    waiting.key = urgency.key(job)
    waiting.may_go_at = min(waiting.since, waiting.since_before) + timedelta(seconds=PATIENCE_SECONDS)
    return waiting


def _run_of(job: str) -> str:
    return job.rpartition("-")[0]
