"""Effects on one object that the world neither carries out nor refuses: since when, and when they are tried again.

A 5xx, a 409, a 429 or a time-out may be the answer of a server in trouble, and then it is over soon. It may as well be
all that the server ever answers for this one object, as with a broken webhook. Only the time tells the two apart. In
memory: a new operator begins anew.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from piton.ports import Clock

LASTING_SECONDS = 120.0
"""Seconds after which a failure counts as a refusal, and people are told."""
BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 1.0, 60.0
"""First and longest wait before effects are tried again that failed; it doubles with each pass in which one does."""
_DOUBLINGS_MAX = 32


@dataclass(kw_only=True)
class _Failure:
    since: datetime
    why: str


class Failures:
    """The failures of one object, from pass to pass."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[str, _Failure] = {}
        self._passes = 0
        """Passes in a row with a failure."""
        self._try_at: datetime | None = None
        self._all_wait = False
        """True if the world seemed to be away, so that nothing is tried before that time."""
        self._status_since: datetime | None = None
        self._status_told = False

    def __len__(self) -> int:
        """Return the number of effects that fail, with the status where it cannot be written."""
        return len(self._found) + (self._status_since is not None)

    def note(self, name: str, why: str) -> None:
        """Remember that the effect failed, with the newest words."""
        self._found.setdefault(name, _Failure(since=self._clock.now(), why=why)).why = why

    def forget(self, name: str) -> None:
        """Forget the failure of an effect that was carried out or refused."""
        self._found.pop(name, None)

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
        return None if self._try_at is None else max(0.0, -self._seconds_since(self._try_at))

    def end_pass(self, undone: Collection[str], *, failed: bool, is_away: bool) -> None:
        """Forget what is not asked for any more, and arrange the next try if something failed in this pass."""
        self._found = {name: failure for name, failure in self._found.items() if name in undone}
        if not self._found:
            self._passes, self._try_at, self._all_wait = 0, None, False
        elif not failed and not self.seconds_left():
            self._try_at, self._all_wait = None, False  # it was not tried, since something before it was refused
        elif failed:
            self._passes, self._all_wait = self._passes + 1, is_away
            seconds = BACKOFF_SECONDS * 2.0 ** min(self._passes - 1, _DOUBLINGS_MAX)
            self._try_at = self._clock.now() + timedelta(seconds=min(seconds, BACKOFF_SECONDS_MAX))

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

    def _seconds_since(self, time: datetime) -> float:
        return (self._clock.now() - time).total_seconds()
