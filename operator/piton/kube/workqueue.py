"""A level-triggered work queue, after client-go's: keys, not events.

          add                    get                    done
    ------------> [waiting] ------------> [processing] ------> (nothing)
       add_after ^                add |     ^     | done, when added meanwhile
                 +---- [delayed]      +-----+     +----> [waiting]

A key waits at most once, however often it is added; one worker has it at a time; what is added while it is being
processed is processed again afterwards, because that pass may have looked too early.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
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


class WorkQueue(Generic[Key]):
    """Keys that want to be looked at. For one event loop; nothing in here awaits but `get`."""

    def __init__(self, timer: Timer, *, random: Callable[[], float] = random) -> None:
        self._timer = timer
        self._random = random
        self._waiting: deque[Key] = deque()
        self._dirty: set[Key] = set()
        self._processing: set[Key] = set()
        self._delayed: dict[Key, tuple[float, Handle]] = {}
        self._failures: dict[Key, int] = {}
        self._getters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        """Keys that wait now; delayed ones are not counted."""
        return len(self._waiting)

    def add(self, key: Key) -> None:
        """Have the key looked at soon."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._processing:
            self._enqueue(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Have the key looked at in so many seconds, or at the earlier time that was asked for before."""
        if seconds <= 0:
            self.add(key)
            return
        when = self._timer.time() + seconds
        if key in self._delayed:
            earlier, handle = self._delayed[key]
            if earlier <= when:
                return
            handle.cancel()
        self._delayed[key] = when, self._timer.call_at(when, self._ripe, key)

    def retry(self, key: Key, *, free: int = 0) -> float:
        """Have the key looked at after its back-off; the first `free` errors in a row wait nothing. Returns seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = (
            0.0 if failures < free else min(BACKOFF_SECONDS * 2.0 ** min(failures - free, 32), BACKOFF_SECONDS_MAX)
        )
        return self.postpone(key, seconds)

    def postpone(self, key: Key, seconds: float) -> float:
        """Have the key looked at later, by somebody's wish and for no error of its own. Returns seconds.

        Up to half as long again, by chance: keys that wait for the same thing must not come back together.
        """
        seconds *= 1 + self._random() / 2
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: Key) -> None:
        """The key went well: its next error is the first again."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """Wait for a key and take it; `done` must follow."""
        while not self._waiting:
            getter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if getter in self._getters:
                    self._getters.remove(getter)
                elif self._waiting:  # woken and cancelled at once: the key is another worker's
                    self._wake()
                raise
        key = self._waiting.popleft()
        self._dirty.discard(key)
        self._processing.add(key)
        return key

    def done(self, key: Key) -> None:
        """The worker is through with the key."""
        self._processing.discard(key)
        if key in self._dirty:
            self._enqueue(key)

    def _ripe(self, key: Key) -> None:
        del self._delayed[key]
        self.add(key)

    def _enqueue(self, key: Key) -> None:
        self._waiting.append(key)
        self._wake()

    def _wake(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return
