"""A level-triggered work queue, after client-go's: keys, not events.

          add                    get                    done
    ------------> [waiting] ------------> [processing] ------> (nothing)
       add_after ^                add |     ^     | done, when added meanwhile
                 +---- [delayed]      +-----+     +----> [waiting]

A key waits at most once, however often it is added; one worker has it at a time; what is added while it is being
processed is processed again afterwards, because that pass may have looked too early. An urgent key goes before all
others: a notice of two minutes must not wait behind a thousand routine looks.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from random import random
from typing import Generic, Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)

BACKOFF_SECONDS = 0.1
"""First wait after an error; doubles with each one in a row."""
BACKOFF_SECONDS_MAX = 60.0


class Handle(Protocol):
    """A call that was arranged."""

    def cancel(self) -> None:
        """Forget it."""


class Timer(Protocol):
    """A monotonic clock that calls back. An asyncio loop is one; tests bring their own."""

    def time(self) -> float:
        """Seconds since some moment."""

    def call_at(self, when: float, callback: Callable[..., object], /, *args: object) -> Handle:
        """Call it then."""


@dataclass(frozen=True)
class _Delayed:
    when: float
    urgent: bool
    handle: Handle


class WorkQueue(Generic[Key]):
    """Keys that want to be looked at. For one event loop; nothing in here awaits but `get`."""

    def __init__(self, timer: Timer, *, random: Callable[[], float] = random) -> None:
        self._timer = timer
        self._random = random
        self._urgent: dict[Key, None] = {}
        self._routine: dict[Key, None] = {}
        self._processing: set[Key] = set()
        self._again: dict[Key, bool] = {}
        """Keys that were added while they are processed, and whether that was urgent."""
        self._delayed: dict[Key, _Delayed] = {}
        self._failures: dict[Key, int] = {}
        self._getters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        """Keys that wait now; delayed ones are not counted."""
        return len(self._urgent) + len(self._routine)

    def add(self, key: Key, *, urgent: bool = False) -> None:
        """Have the key looked at soon."""
        if key in self._processing:
            self._again[key] = urgent or self._again.get(key, False)
        elif key not in self._urgent and (urgent or key not in self._routine):
            self._routine.pop(key, None)
            (self._urgent if urgent else self._routine)[key] = None
            self._wake()

    def add_after(self, key: Key, seconds: float, *, urgent: bool = False) -> None:
        """Have the key looked at in so many seconds, or at the earlier time that was asked for before."""
        if seconds <= 0:
            self.add(key, urgent=urgent)
            return
        when = self._timer.time() + seconds
        before = self._delayed.get(key)
        if before is not None:
            urgent = urgent or before.urgent
            when = min(when, before.when)
            before.handle.cancel()
        self._delayed[key] = _Delayed(when, urgent, self._timer.call_at(when, self._ripe, key))

    def retry(self, key: Key, *, free: int = 0) -> float:
        """Have the key looked at after its back-off; the first `free` errors in a row wait nothing. Returns seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = (
            0.0 if failures < free else min(BACKOFF_SECONDS * 2.0 ** min(failures - free, 32), BACKOFF_SECONDS_MAX)
        )
        return self.postpone(key, seconds)

    def postpone(self, key: Key, seconds: float) -> float:
        """Have the key looked at later, by somebody's wish and for no error of its own. Returns seconds, stretched."""
        seconds = self.stretched(seconds)
        self.add_after(key, seconds, urgent=True)
        return seconds

    def stretched(self, seconds: float) -> float:
        """Return up to half as long again, by chance: keys that wait for the same must not come back together."""
        return seconds * (1 + self._random() / 2)

    def forget(self, key: Key) -> None:
        """The key went well: its next error is the first again."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """Wait for a key and take it; `done` must follow."""
        while not len(self):
            getter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if getter in self._getters:
                    self._getters.remove(getter)
                elif len(self):  # woken and cancelled at once: the key is another worker's
                    self._wake()
                raise
        waiting = self._urgent or self._routine
        key = next(iter(waiting))
        del waiting[key]
        self._processing.add(key)
        return key

    def done(self, key: Key) -> None:
        """The worker is through with the key."""
        self._processing.discard(key)
        urgent = self._again.pop(key, None)
        if urgent is not None:
            self.add(key, urgent=urgent)

    def _ripe(self, key: Key) -> None:
        self.add(key, urgent=self._delayed.pop(key).urgent)

    def _wake(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return
