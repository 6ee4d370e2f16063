"""Tasks of asyncio that end together, and tasks that get time to end."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

Body = Callable[[], Coroutine[Any, Any, None]]


async def together(*bodies: Body) -> None:
    """Run all of them until the first one ends; then cancel the others, and wait for them.

    Raises:
        Exception: what the first one that failed has raised.
    """
    tasks = [asyncio.create_task(body(), name=getattr(body, "__qualname__", None)) for body in bodies]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ends = await cancel(*tasks)
    raise_first(ends)


async def cancel(*tasks: asyncio.Task[Any]) -> list[Any]:
    """Cancel the tasks and wait until they have ended; return their results and errors."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def raise_first(ends: Iterable[object]) -> None:
    """Raise the first error among what tasks have ended with; a cancellation is none."""
    for end in ends:
        if isinstance(end, Exception):
            raise end


async def with_grace(body: Awaitable[None], *, seconds: float) -> None:
    """Run it. After a cancellation it has so many seconds to end by itself; then it is cancelled, too."""
    task = asyncio.ensure_future(body)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait({task}, timeout=seconds)
        raise
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def uninterrupted(body: Coroutine[Any, Any, None]) -> None:
    """Run it to its end, however often this is cancelled meanwhile.

    Raises:
        Exception: what it has raised.
    """
    task = asyncio.create_task(body)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    if not task.cancelled():
        task.result()
