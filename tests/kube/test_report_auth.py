"""Tokens and how they are checked: what is remembered, what the API server is asked, and what a flood of them costs."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from datetime import timedelta
from typing import Any, cast

import pytest

from piton.contract import names
from piton.kube.answer_cache import AnswerCache, GoodAnswer, Refusal
from piton.kube.client import Client
from piton.kube.rate_limits import RateLimit
from piton.kube.report_auth import (
    BAD_SECONDS,
    FAILURES_AT_ONCE,
    GOOD_SECONDS,
    REPORTS_AT_ONCE,
    REVIEWS_AT_ONCE,
    ReportAuthenticator,
    TooMany,
    Unauthenticated,
)
from piton.kube.report_store import Sender
from piton.kube.resources import PODS, Body, Resource
from piton.ports import Unavailable
from support import tokens
from support.cluster import FakeClock
from support.pilot import FakeTimer
from support.tokens import Token


class Api:
    """An API server that answers reviews in turns, and knows a pod `RUN-1-master-0` of each run."""

    def __init__(self) -> None:
        self.reviewed: list[str] = []
        self.under_way = 0
        self.most_under_way = 0
        self.fails = False
        self._turn: asyncio.Future[None] | None = None

    def slow(self) -> None:
        """From now on each review waits for the next `turn`."""
        self._turn = asyncio.get_running_loop().create_future()

    async def turn(self) -> None:
        """GoodAnswer all reviews that are under way, and let others begin."""
        assert self._turn is not None
        turn, self._turn = self._turn, asyncio.get_running_loop().create_future()
        turn.set_result(None)
        await settled()

    async def create(self, _: Resource, body: Body) -> Body:
        text = body["spec"]["token"]
        self.reviewed.append(text)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        if self._turn is not None:
            await asyncio.shield(self._turn)
        self.under_way -= 1
        if self.fails:
            raise Unavailable("not now")
        token = tokens.read(text)
        if token is None:
            return {"status": {"authenticated": False}}
        return {"status": {"authenticated": True, "audiences": [token.audience], "user": tokens.user(token)}}

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Body:
        run = name.removesuffix("-master-0").removesuffix("-1")
        if resource is not PODS:
            return {"metadata": {"uid": f"job-{run}", "ownerReferences": [_owner(names.KIND, run, "uid-of-the-run")]}}
        labels = {names.LABEL_RUN: run, names.LABEL_ATTEMPT: "1"}
        owners = [_owner("PyTorchJob", f"{run}-1", f"job-{run}")]
        return {"metadata": {"uid": f"uid-{run}", "labels": labels, "ownerReferences": owners}}


async def settled() -> None:
    """Let all tasks go as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


def _owner(kind: str, name: str, uid: str) -> dict[str, Any]:
    return {"kind": kind, "name": name, "uid": uid, "controller": True}


class Gate:
    """The authenticator with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.api, self.timer, self.clock = Api(), FakeTimer(), FakeClock()
        self.door = ReportAuthenticator(cast("Client", self.api), self.clock, self.timer)
        self._tasks: list[asyncio.Task[Sender]] = []

    def token(self, run: str = "ragcun", *, seconds: float = 3600) -> Token:
        expires = self.clock.now() + timedelta(seconds=seconds)
        return Token(pod=f"{run}-1-master-0", pod_uid=f"uid-{run}", expires=expires)

    def forged(self, number: int) -> str:
        return self.token().text(signature=f"forged-{number}")

    def admit(self, text: str, *, run: str = "ragcun", address: str = "10.0.0.1") -> Coroutine[Any, Any, Sender]:
        return self.door.admit(text, address=address, namespace="team", run=run)

    def begin(self, text: str, **where: str) -> asyncio.Task[Sender]:
        self._tasks.append(asyncio.create_task(self.admit(text, **where)))
        return self._tasks[-1]

    def advance(self, seconds: float) -> None:
        self.timer.advance(seconds)
        self.clock.advance(seconds)

    async def refusals(self, tasks: list[asyncio.Task[Sender]]) -> Counter[type]:
        return Counter(type(end) for end in await asyncio.gather(*tasks, return_exceptions=True))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    found = Gate()
    yield found
    await found.close()


# --- what is remembered -----------------------------------------------------------------------------------------------


async def test_a_trainer_that_reports_steadily_never_waits_for_a_review(gate: Gate) -> None:
    text = gate.token(seconds=7200).text()
    await gate.admit(text)
    gate.api.slow()  # no review is answered before the turn
    for _ in range(1000):
        gate.advance(5)
        async with asyncio.timeout(5):
            await gate.admit(text)
        await gate.api.turn()
    assert 5000 / GOOD_SECONDS < len(gate.api.reviewed) < 2 * 5000 / GOOD_SECONDS


async def test_an_api_server_that_is_away_is_noticed_only_when_the_token_is_too_old(gate: Gate) -> None:
    text = gate.token().text()
    await gate.admit(text)
    gate.api.fails = True
    gate.advance(GOOD_SECONDS - 1)
    await gate.admit(text)
    gate.advance(1)
    with pytest.raises(Unavailable):
        await gate.admit(text)


async def test_a_token_that_a_renewal_finds_revoked_is_believed_no_longer(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = gate.token().text()
    await gate.admit(text)
    monkeypatch.setattr(tokens, "read", lambda _: None)
    gate.advance(GOOD_SECONDS - 1)
    await gate.admit(text)
    await settled()
    with pytest.raises(Unauthenticated):
        await gate.admit(text)


async def test_reports_with_one_token_at_the_same_time_share_one_review(gate: Gate) -> None:
    gate.api.slow()
    text = gate.token().text()
    tasks = [gate.begin(text) for _ in range(REPORTS_AT_ONCE)]
    await settled()
    tasks[0].cancel()  # who gives up does not take the answer from the others
    await gate.api.turn()
    assert {found.run for found in await asyncio.gather(*tasks[1:])} == {"ragcun"}
    assert len(gate.api.reviewed) == 1


async def test_forged_tokens_do_not_drive_good_ones_out_of_memory() -> None:
    cache: AnswerCache[str] = AnswerCache(FakeTimer(), refused_seconds=BAD_SECONDS, remembered=8)
    asked: Counter[str] = Counter()

    async def ask(key: str) -> GoodAnswer[str]:
        asked[key] += 1
        if key.startswith("forged"):
            raise Refusal("no")
        return GoodAnswer(value=key)

    for key in ("good", *(f"forged-{number}" for number in range(100)), "good"):
        try:
            await cache.find(key, lambda key=key: ask(key))  # type: ignore[misc]
        except Refusal:
            continue
    assert asked["good"] == 1
    assert len(cache) <= 9


async def test_what_was_used_last_is_forgotten_last() -> None:
    cache: AnswerCache[str] = AnswerCache(FakeTimer(), refused_seconds=BAD_SECONDS, remembered=2)
    asked: list[str] = []

    async def ask(key: str) -> GoodAnswer[str]:
        asked.append(key)
        return GoodAnswer(value=key)

    for key in ("steady", "once", "steady", "new", "steady"):
        await cache.find(key, lambda key=key: ask(key))  # type: ignore[misc]
    assert asked == ["steady", "once", "new"]


# --- how much is let in -----------------------------------------------------------------------------------------------


async def test_a_pod_reports_a_few_times_at_once_and_then_once_a_second(gate: Gate) -> None:
    text = gate.token().text()
    for _ in range(REPORTS_AT_ONCE):
        await gate.admit(text)
    with pytest.raises(TooMany) as refusal:
        await gate.admit(text)
    assert refusal.value.seconds == 1
    await gate.admit(gate.token("other").text(), run="other")  # another pod is not concerned
    for _ in range(20):
        gate.advance(1)
        await gate.admit(text)


async def test_an_address_that_sends_forged_tokens_soon_costs_no_reviews(gate: Gate) -> None:
    ends = await gate.refusals([gate.begin(gate.forged(number)) for number in range(500)])
    assert ends[TooMany] >= 500 - len(gate.api.reviewed) > 0
    assert FAILURES_AT_ONCE <= len(gate.api.reviewed) <= FAILURES_AT_ONCE + 2
    before = len(gate.api.reviewed)
    for number in range(1000, 1060):
        gate.advance(1)
        await gate.refusals([gate.begin(gate.forged(10 * number + n)) for n in range(10)])
    assert len(gate.api.reviewed) - before <= 2 * 60


async def test_a_pod_of_a_known_token_reports_on_beside_forged_ones_of_its_address(gate: Gate) -> None:
    text = gate.token().text()
    await gate.admit(text)
    await gate.refusals([gate.begin(gate.forged(number)) for number in range(50)])
    gate.advance(1)
    await gate.admit(text)


async def test_a_flood_from_one_address_leaves_the_places_for_reviews_to_the_others(gate: Gate) -> None:
    gate.api.slow()
    for number in range(200):
        gate.begin(gate.forged(number), address="10.6.6.6")
    await settled()
    real = gate.begin(gate.token().text(), address="10.0.0.1")
    await gate.api.turn()
    await gate.api.turn()
    assert real.done()
    assert real.result().run == "ragcun"


async def test_beside_a_flood_from_many_addresses_a_new_pod_gets_through_within_a_second(gate: Gate) -> None:
    """A review takes 20 ms here, and a hundred addresses send forged tokens all the time."""
    gate.api.slow()
    forgers = [f"10.6.6.{number}" for number in range(100)]
    numbers = iter(range(1_000_000))
    for address in forgers:
        for _ in range(20):
            gate.begin(gate.forged(next(numbers)), address=address)
    await settled()
    real, turns = gate.begin(gate.token().text(), address="10.0.0.1"), 0
    while not real.done():
        for address in forgers:
            gate.begin(gate.forged(next(numbers)), address=address)
        await gate.api.turn()
        gate.advance(0.02)
        turns += 1
        assert turns * 0.02 <= 1.0
    assert real.result().run == "ragcun"
    assert gate.api.most_under_way == REVIEWS_AT_ONCE


def test_a_key_whose_time_has_passed_is_forgotten() -> None:
    timer = FakeTimer()
    limit = RateLimit(timer, seconds=1, burst=2, keys_max=3)
    assert [limit.take("a") for _ in range(3)] == [0, 0, 1]
    timer.advance(0.5)
    assert limit.take("a") == 0.5
    timer.advance(0.5)
    assert [limit.take("a"), limit.take("a")] == [0, 1]
    for key in "bcdef":
        limit.take(key)
    assert len(limit) == 3
    timer.advance(10)
    assert len(limit) == 0
