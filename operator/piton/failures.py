"""Effects on one object that the world neither carries out nor refuses, and what of it cannot be read: since when.

A 5xx, a 409, a 429 or a time-out may be the answer of a server in trouble, and then it is over soon. It may as well be
all that the server ever answers for this one object, as with a broken webhook. Only the time tells the two apart. The
same goes for reads. In memory: a new operator begins anew.
"""

from collections.abc import Awaitable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from piton.core.wait_reasons import without_numbers
from piton.ports import Clock, PortError

T = TypeVar("T")

LASTING_SECONDS = 120.0
"""Seconds after which a failure counts as a refusal, and people are told. What cannot be read so long is unknown."""
BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 1.0, 60.0
"""First and longest wait before effects are tried again that failed; it doubles with each pass in which one does."""
REWORD_SECONDS = 10.0
"""Least seconds between two writes of a status that differ in nothing but words: two causes may alternate for hours."""
_DOUBLINGS_MAX = 32
_LOOK = "look"
"""Name of all that a pass has to read: without it nothing is decided."""


@dataclass(kw_only=True)
class _Failure:
    since: datetime
    why: str


@dataclass(kw_only=True)
class _Refusal:
    why: str
    tries: int
    try_at: datetime


class Failures:
    """The failures of one object, from pass to pass, and the refusals of its optional effects."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[str, _Failure] = {}
        self._refused: dict[str, _Refusal] = {}
        self._passes = 0
        """Passes in a row with a failure."""
        self._try_at: datetime | None = None
        self._all_wait = False
        """True if the world seemed to be away, so that nothing is tried before that time."""
        self._done: frozenset[str] = frozenset()
        """Effects that the newest pass has carried out."""
        self._repeated: tuple[str, ...] = ()
        self._repeats = 0
        """Passes in a row that had to carry out an effect again."""
        self._status_since: datetime | None = None
        self._status_told = False
        self._reworded_at: datetime | None = None
        self._unread: dict[str, _Failure] = {}

    def __len__(self) -> int:
        """Return the number of effects and reads that fail or are refused, with a status that cannot be written."""
        return len(self._found) + len(self._refused) + len(self._unread) + (self._status_since is not None)

    @property
    def is_over(self) -> bool:
        """True if nothing is remembered that a later pass has to know."""
        return not (len(self) or self._done or self.seconds_to_reword())

    def note(self, name: str, why: str) -> None:
        """Remember that the effect failed, with the newest words."""
        self._found.setdefault(name, _Failure(since=self._clock.now(), why=why)).why = why

    def forget(self, name: str) -> None:
        """Forget the failure of an effect that was carried out or refused."""
        self._found.pop(name, None)

    def forget_refusal(self, name: str) -> None:
        """Forget the refusal of an effect that was carried out."""
        self._refused.pop(name, None)

    def note_refusal(self, name: str, why: str) -> bool:
        """Record the refusal of an optional effect, and delay its next retry: 1 s, doubled up to 60 s.

        Returns True if an earlier pass was refused the same; then the earlier words stay.
        """
        known = self._refused.get(name)
        is_known = known is not None and without_numbers(known.why) == without_numbers(why)
        tries = 1 if known is None else known.tries + 1
        self._refused[name] = _Refusal(
            why=known.why if known is not None and is_known else why,
            tries=tries,
            try_at=self._clock.now() + timedelta(seconds=_backoff(tries)),
        )
        return is_known

    def refusal(self, name: str) -> str:
        """Return the words of the refusal of an optional effect; empty if it was not refused."""
        return self._refused[name].why if name in self._refused else ""

    def is_refused(self, name: str) -> bool:
        """True if an optional effect was refused, and it is too early for a retry."""
        return name in self._refused and self._seconds_until(self._refused[name].try_at) > 0

    def why(self, name: str) -> str:
        """Return the words of the failure; empty: it has not failed."""
        return self._found[name].why if name in self._found else ""

    def has_lasted(self, name: str) -> bool:
        """True if the effect has failed for so long that it counts as refused."""
        return name in self._found and self._seconds_since(self._found[name].since) >= LASTING_SECONDS

    def is_early(self, name: str) -> bool:
        """True if it is not yet time to try the effect, which failed, or others did and the world seemed to be away."""
        return (self._all_wait or name in self._found) and (self.seconds_left() or 0.0) > 0

    def seconds_left(self) -> float | None:
        """Return the seconds until what failed is tried again; None: nothing did."""
        return None if self._try_at is None else self._seconds_until(self._try_at)

    def end_pass(self, undone: Collection[str], *, failed: bool, is_away: bool) -> None:
        """Forget what is not asked for any more, and arrange the next try if something failed in this pass."""
        self._found = {name: failure for name, failure in self._found.items() if name in undone}
        self._refused = {name: refusal for name, refusal in self._refused.items() if name in undone}
        if not self._found:
            self._passes, self._try_at, self._all_wait = 0, None, False
        elif not failed and not self.seconds_left():
            self._try_at, self._all_wait = None, False  # it was not tried, since something before it was refused
        elif failed:
            self._passes, self._all_wait = self._passes + 1, is_away
            self._try_at = self._clock.now() + timedelta(seconds=_backoff(self._passes))

    def record_done(self, names: Collection[str]) -> None:
        """Record what a pass has carried out, and what of it the pass before had carried out as well."""
        self._repeated = tuple(sorted(self._done.intersection(names)))
        self._done, self._repeats = frozenset(names), self._repeats + 1 if self._repeated else 0

    @property
    def repeated(self) -> tuple[str, ...]:
        """Effects that the newest two passes have both carried out."""
        return self._repeated

    @property
    def repeats(self) -> int:
        """Number of passes in a row that had to carry out an effect again."""
        return self._repeats

    def seconds_before_repeating(self) -> float:
        """Return the seconds to wait before the next pass that repeats an effect."""
        return _backoff(self._repeats)

    def note_status(self, is_refused: bool) -> bool:
        """Remember that the status could not be written. True if people have to hear of it, once."""
        if self._status_since is None:
            self._status_since = self._clock.now()
        lasts = is_refused or self._seconds_since(self._status_since) >= LASTING_SECONDS
        told, self._status_told = self._status_told, self._status_told or lasts
        return lasts and not told

    def note_status_written(self) -> None:
        """Forget that the status could not be written."""
        self._status_since, self._status_told = None, False

    def note_reworded(self) -> None:
        """Remember that the status is written for its words alone."""
        self._reworded_at = self._clock.now()

    def seconds_to_reword(self) -> float:
        """Return the seconds until the status may be written again for its words alone."""
        at = self._reworded_at
        since = None if at is None else self._seconds_since(at)
        return 0.0 if since is None or since < 0 else max(0.0, REWORD_SECONDS - since)

    def note_read(self, name: str, why: str) -> bool:
        """Remember that this could not be read. True if that has lasted: then it is unknown."""
        failure = self._unread.setdefault(name, _Failure(since=self._clock.now(), why=why))
        return self._seconds_since(failure.since) >= LASTING_SECONDS

    def keep_reads(self, unread: Collection[str]) -> None:
        """Forget all reads but those that failed in the look that has just ended."""
        self._unread = {name: failure for name, failure in self._unread.items() if name in unread}

    def note_look(self, why: str) -> None:
        """Remember that nothing can be decided, since something that has to be read cannot be."""
        self.note_read(_LOOK, why)

    def note_looked(self) -> None:
        """Forget that nothing could be decided."""
        self._unread.pop(_LOOK, None)

    def is_blind(self) -> bool:
        """True if nothing could be decided for so long that people have to hear of it."""
        failure = self._unread.get(_LOOK)
        return failure is not None and self._seconds_since(failure.since) >= LASTING_SECONDS

    def _seconds_until(self, time: datetime) -> float:
        """Return the seconds left of a back-off; none if more are left than it ever lasts, since the clock was set."""
        left = -self._seconds_since(time)
        return left if 0 < left <= BACKOFF_SECONDS_MAX else 0.0

    def _seconds_since(self, time: datetime) -> float:
        return (self._clock.now() - time).total_seconds()


def _backoff(tries: int) -> float:
    return min(BACKOFF_SECONDS * 2.0 ** min(tries - 1, _DOUBLINGS_MAX), BACKOFF_SECONDS_MAX)


class Unread:
    """The parts of one look that could not be read for so long that they are unknown; none without earlier failures."""

    def __init__(self, failures: Failures | None) -> None:
        self._failures = failures
        self._found: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._found

    async def or_unknown(self, name: str, reading: Awaitable[T], unknown: T) -> T:
        """Return what is read; `unknown` if that has failed for long.

        Raises:
            PortError: it has failed, perhaps only for a moment.
        """
        try:
            return await reading
        except PortError as error:
            if self._failures is None or not self._failures.note_read(name, str(error)):
                raise
            self._found[name] = str(error)
            return unknown

    def end_look(self) -> str:
        """Forget what was read again. Returns in words what is unknown, and why: of many nodes one."""
        if self._failures is not None:
            self._failures.keep_reads(self._found)
        told: dict[str, str] = {}
        for name, why in self._found.items():
            told.setdefault(name.split()[0], f"{name}: {why}")
        return "; ".join(told.values())
