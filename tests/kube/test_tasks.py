"""Tasks that end together, and tasks that get time to end."""

import asyncio

import pytest

from piton.kube.tasks import together, uninterrupted, with_grace

NEVER = 3600.0


async def _forever(said: list[str]) -> None:
    said.append("began")
    try:
        await asyncio.Event().wait()
    finally:
        said.append("ended")


async def _turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_end_of_one_is_the_end_of_all() -> None:
    said: list[str] = []

    async def fails() -> None:
        await _turns()
        raise OSError("the port is taken")

    with pytest.raises(OSError, match="the port is taken"):
        await together(lambda: _forever(said), fails)
    assert said == ["began", "ended"]


async def test_a_pass_ends_by_itself_after_a_cancellation() -> None:
    said, go_on = [], asyncio.Event()

    async def a_pass() -> None:
        await go_on.wait()
        said.append("written")

    worker = asyncio.create_task(with_grace(a_pass(), seconds=NEVER))
    await _turns()
    worker.cancel()
    await _turns()
    assert not worker.done()
    go_on.set()

    with pytest.raises(asyncio.CancelledError):
        await worker
    assert said == ["written"]


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 1), (NEVER, 2)])
async def test_a_pass_that_takes_too_long_is_cancelled_and_so_is_one_that_is_cancelled_again(
    seconds: float, times: int
) -> None:
    said: list[str] = []
    worker = asyncio.create_task(with_grace(_forever(said), seconds=seconds))
    await _turns()
    for _ in range(times):
        worker.cancel()
        await _turns()

    with pytest.raises(asyncio.CancelledError):
        await worker
    assert said == ["began", "ended"]


async def test_what_a_pass_raises_arrives() -> None:
    async def fails() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await with_grace(fails(), seconds=NEVER)


async def test_what_must_end_ends_however_often_it_is_cancelled() -> None:
    said, go_on = [], asyncio.Event()

    async def releases() -> None:
        await go_on.wait()
        said.append("released")

    task = asyncio.create_task(uninterrupted(releases()))
    await _turns()
    for _ in range(3):
        task.cancel()
        await _turns()
    go_on.set()

    await task
    assert said == ["released"]
