"""Answers to questions that cost a call: kept for a while, asked for once at a time, renewed before they expire.

    find --known--> the answer; old: asked for again meanwhile
         --refused a moment ago--> the same refusal
         --else--> one call, which everybody who has the same question waits for

Good answers and refusals lie in separate caches, so nobody can drive good ones out with questions that are refused.
Each cache has a bound, beyond which what was not used for the longest time makes room.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cachetools import TLRUCache, TTLCache

from piton.kube.workqueue import Timer

REMEMBERED = 8192
"""Good answers, and refusals, that are remembered."""
_RENEWED_AT = 0.8
"""Part of its time after which an answer that is used is asked for again."""

Value = TypeVar("Value")


class Refusal(Exception):  # noqa: N818 - a situation, not an error
    """The answer is no. The text is a sentence for whoever asked."""


@dataclass(frozen=True, kw_only=True)
class GoodAnswer(Generic[Value]):
    """A good answer."""

    value: Value
    seconds: float = math.inf
    """Time for which it holds."""
    renewable: bool = True
    """False: it would be the same, or refused, after that time."""


@dataclass(frozen=True, kw_only=True)
class _Kept(Generic[Value]):
    value: Value
    until: float
    renew_at: float


class AnswerCache(Generic[Value]):
    """The answers to one kind of question, by key. For one event loop."""

    def __init__(self, timer: Timer, *, refused_seconds: float, remembered: int = REMEMBERED) -> None:
        self._timer = timer
        self._good: TLRUCache[Hashable, _Kept[Value]] = TLRUCache(
            remembered, ttu=lambda _key, kept, _now: kept.until, timer=timer.time
        )
        self._refused: TTLCache[Hashable, Refusal] = TTLCache(remembered, refused_seconds, timer=timer.time)
        self._asked: dict[Hashable, asyncio.Task[Value]] = {}

    def __len__(self) -> int:
        """Good answers and refusals that are remembered."""
        return len(self._good) + len(self._refused)

    async def find(
        self,
        key: Hashable,
        ask: Callable[[], Awaitable[GoodAnswer[Value]]],
        *,
        renew: Callable[[], Awaitable[GoodAnswer[Value]]] | None = None,
    ) -> Value:
        """Return the answer. `renew` asks again for one that is still good; without it, `ask` does.

        Raises:
            Refusal: the answer is no, now or a moment ago.
            Exception: what `ask` raises beside that; nothing is remembered then.
        """
        kept = self._good.get(key)
        if kept is not None:
            if kept.renew_at <= self._timer.time():
                self._start(key, renew or ask)
            return kept.value
        refused = self._refused.get(key)
        if refused is not None:
            raise type(refused)(*refused.args)  # a new one: the old would collect tracebacks of all who were told
        return await asyncio.shield(self._start(key, ask))  # who gives up waiting leaves the others their answer

    def _start(self, key: Hashable, ask: Callable[[], Awaitable[GoodAnswer[Value]]]) -> asyncio.Task[Value]:
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(self._ask(key, ask))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # somebody may not wait for it
        return task

    async def _ask(self, key: Hashable, ask: Callable[[], Awaitable[GoodAnswer[Value]]]) -> Value:
        try:
            answer = await ask()
        except Refusal as refusal:
            self._good.pop(key, None)
            self._refused[key] = type(refusal)(*refusal.args)
            raise
        finally:
            del self._asked[key]
        now = self._timer.time()
        renew_at = now + answer.seconds * _RENEWED_AT if answer.renewable else math.inf
        self._good[key] = _Kept(value=answer.value, until=now + answer.seconds, renew_at=renew_at)
        return answer.value
