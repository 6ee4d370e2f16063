"""The work queue, in virtual time."""

import asyncio

import pytest

from piton.kube.workqueue import BACKOFF_SECONDS, BACKOFF_SECONDS_MAX, WorkQueue
from support.pilot import FakeTimer


@pytest.fixture
def timer() -> FakeTimer:
    return FakeTimer()


@pytest.fixture
def queue(timer: FakeTimer) -> WorkQueue[str]:
    return WorkQueue(timer, random=lambda: 0.0)


async def _drain(queue: WorkQueue[str]) -> list[str]:
    keys = []
    while len(queue):
        keys.append(await queue.get())
        queue.done(keys[-1])
    return keys


async def test_a_key_that_is_added_often_is_taken_once(queue: WorkQueue[str]) -> None:
    for key in ("a", "b", "a", "a"):
        queue.add(key)
    assert await _drain(queue) == ["a", "b"]


async def test_a_key_that_is_added_while_it_is_processed_is_processed_again_but_never_twice_at_once(
    queue: WorkQueue[str],
) -> None:
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert await _drain(queue) == ["a"]


async def test_a_key_that_is_done_and_was_not_added_again_is_gone(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.done(await queue.get())
    assert len(queue) == 0


async def test_a_worker_waits_until_there_is_a_key(queue: WorkQueue[str]) -> None:
    worker = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    assert not worker.done()
    queue.add("a")
    assert await worker == "a"


async def test_two_keys_wake_two_workers(queue: WorkQueue[str]) -> None:
    workers = [asyncio.ensure_future(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b")
    assert sorted(await asyncio.gather(*workers)) == ["a", "b"]


async def test_a_worker_that_is_cancelled_as_it_is_woken_leaves_the_key_to_another(queue: WorkQueue[str]) -> None:
    first, second = (asyncio.ensure_future(queue.get()) for _ in range(2))
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    assert await second == "a"
    assert first.cancelled()


async def test_a_delayed_key_comes_at_the_earliest_time_that_was_asked_for(
    queue: WorkQueue[str], timer: FakeTimer
) -> None:
    for seconds in (30, 10, 20):
        queue.add_after("a", seconds)
    timer.advance(9.9)
    assert len(queue) == 0
    timer.advance(0.1)
    assert await _drain(queue) == ["a"]
    timer.advance(100)
    assert len(queue) == 0


async def test_no_delay_is_now(queue: WorkQueue[str]) -> None:
    queue.add_after("a", 0)
    assert await _drain(queue) == ["a"]


async def test_errors_in_a_row_wait_longer_each_time_up_to_a_limit(queue: WorkQueue[str]) -> None:
    waits = [queue.retry("a") for _ in range(12)]
    assert waits[:3] == [BACKOFF_SECONDS, 2 * BACKOFF_SECONDS, 4 * BACKOFF_SECONDS]
    assert waits[-1] == BACKOFF_SECONDS_MAX


async def test_success_makes_the_next_error_the_first_again(queue: WorkQueue[str]) -> None:
    queue.retry("a")
    queue.retry("a")
    queue.forget("a")
    assert queue.retry("a") == BACKOFF_SECONDS


async def test_every_key_has_a_back_off_of_its_own(queue: WorkQueue[str]) -> None:
    queue.retry("a")
    queue.retry("a")
    assert queue.retry("b") == BACKOFF_SECONDS


async def test_the_first_conflicts_wait_nothing_and_a_quarrel_waits(queue: WorkQueue[str]) -> None:
    assert [queue.retry("a", free=2) for _ in range(4)] == [0, 0, BACKOFF_SECONDS, 2 * BACKOFF_SECONDS]


async def test_keys_that_failed_together_come_back_one_after_the_other(timer: FakeTimer) -> None:
    chances = iter([0.0, 0.5, 1.0])
    queue: WorkQueue[str] = WorkQueue(timer, random=lambda: next(chances))

    waits = [queue.retry(key) for key in "abc"]

    assert waits == pytest.approx([BACKOFF_SECONDS, 1.25 * BACKOFF_SECONDS, 1.5 * BACKOFF_SECONDS])


async def test_a_key_waits_for_as_long_as_the_server_asks(queue: WorkQueue[str], timer: FakeTimer) -> None:
    assert queue.postpone("a", 5) == 5
    timer.advance(4.9)
    assert len(queue) == 0
    timer.advance(0.1)
    assert len(queue) == 1
    assert queue.retry("a") == BACKOFF_SECONDS, "that was no error"


# --- urgent keys ------------------------------------------------------------------------------------------------------


async def test_an_urgent_key_goes_before_all_that_are_not(queue: WorkQueue[str]) -> None:
    for key in ("a", "b", "c"):
        queue.add(key)
    queue.add("now", urgent=True)
    queue.add("c", urgent=True)
    assert await _drain(queue) == ["now", "c", "a", "b"]


async def test_what_is_urgent_stays_so(queue: WorkQueue[str], timer: FakeTimer) -> None:
    queue.add("a")
    queue.add("b", urgent=True)
    queue.add("b")
    assert len(queue) == 2
    assert await queue.get() == "b"
    queue.add("b", urgent=True)
    queue.add("b")
    queue.add("c")
    queue.done("b")
    assert await queue.get() == "b"
    queue.done("b")
    queue.add_after("later", 10, urgent=True)
    queue.add_after("later", 5)
    timer.advance(5)
    assert await _drain(queue) == ["later", "a", "c"]
