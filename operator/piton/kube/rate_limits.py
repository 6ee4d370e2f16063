"""Rate limits by key: a few at once, then one at a time. Virtual scheduling, as ATM's generic cell rate algorithm.

Each key has one number, the time at which everything that it did is paid for. A key whose time has passed is
forgotten, as is the one that was not used for the longest time when there are too many.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from cachetools import TLRUCache

from piton.kube.workqueue import Timer

KEYS_MAX = 8192


class RateLimit:
    """At most `burst` at once for each key, and one more every `seconds`."""

    def __init__(self, timer: Timer, *, seconds: float, burst: int, keys_max: int = KEYS_MAX) -> None:
        self._timer = timer
        self._seconds = seconds
        self._slack = seconds * (burst - 1)
        self._paid_at: TLRUCache[Hashable, float] = TLRUCache(
            keys_max, ttu=lambda _key, paid_at, _now: paid_at, timer=timer.time
        )

    def __len__(self) -> int:
        """Keys that are remembered."""
        return len(self._paid_at)

    def wait(self, key: Hashable) -> float:
        """Return the seconds until one more is allowed; 0: one is allowed now."""
        now = self._timer.time()
        return max(0.0, self._paid_at.get(key, now) - self._slack - now)

    def count(self, key: Hashable) -> None:
        """Count one, allowed or not."""
        self._paid_at[key] = max(self._timer.time(), self._paid_at.get(key, 0.0)) + self._seconds

    def take(self, key: Hashable) -> float:
        """Count one if it is allowed now. Returns the seconds until it is: 0 if it is counted."""
        seconds = self.wait(key)
        if seconds <= 0:
            self.count(key)
        return seconds


class Slots:
    """Places for calls at the same time, of all and of each key: one key never takes the places of all."""

    def __init__(self, *, total: int, each: int) -> None:
        self._each = each
        self._total = asyncio.Semaphore(total)
        self._of_key: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for a place among those of the key."""
        semaphore = self._of_key.setdefault(key, asyncio.Semaphore(self._each))
        async with semaphore:
            yield

    @asynccontextmanager
    async def of_all(self) -> AsyncIterator[None]:
        """Wait for a place among all."""
        async with self._total:
            yield
