"""Rank processes for tests: forked, so that none of them has to import torch again, and stopped by their process ids.

world = start(2, body)          body runs in each rank, with torchrun's environment
world.kill(rank=1)              SIGKILL, or any other signal
exits = world.wait()            exit codes and what body returned; whoever is late is killed and that is an error
"""

import faulthandler
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Any, Self

import torch._dynamo  # noqa: F401 - every optimizer imports it when it is made: once here, not for a second in each rank

from support.ports import free_port

TIMEOUT_SECONDS = 60.0
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Exit:
    """How one rank ended: its exit code (negative: the signal that killed it) and what its body returned."""

    code: int
    result: Any = None


class World:
    """Ranks that are running."""

    def __init__(self, processes: list[ForkProcess], results: list[Connection]) -> None:
        self._processes = processes
        self._results = results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._kill_all()

    def kill(self, signum: signal.Signals = signal.SIGKILL, *, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all."""
        for number, process in enumerate(self._processes):
            if rank in (None, number) and process.is_alive() and process.pid is not None:
                os.kill(process.pid, signum)

    def kill_groups(self) -> None:
        """SIGKILL to the process groups that the ranks lead."""
        for process in self._processes:
            if process.is_alive() and process.pid is not None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:  # it leads none yet, so there is nobody else in it
                    os.kill(process.pid, signal.SIGKILL)

    def end_as_torchrun_does(self, patience_seconds: float = 10.0) -> None:
        """Once a rank is gone the others may end by themselves, and are killed if they do not.

        One that is on its way into a process group would wait there for minutes.
        """
        multiprocessing.connection.wait([process.sentinel for process in self._processes])
        deadline = time.monotonic() + patience_seconds
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()

    def ends_within(self, seconds: float) -> bool:
        """Wait so long at most; whether one of the ranks is done by then."""
        return bool(multiprocessing.connection.wait([process.sentinel for process in self._processes], seconds))

    def result(self, rank: int, timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
        """What the body of one rank has returned, whatever the others do."""
        return _receive(self._results[rank], timeout_seconds)

    def wait(self, timeout_seconds: float = TIMEOUT_SECONDS) -> list[Exit]:
        """The ends of all ranks."""
        exits = []
        for process, connection in zip(self._processes, self._results, strict=True):
            # The result is read first: a rank cannot end before a large one has left the pipe.
            result = _receive(connection, timeout_seconds)
            process.join(timeout_seconds)
            if process.exitcode is None:
                self._kill_all()
                raise TimeoutError(f"rank process {process.pid} did not end in {timeout_seconds:g} s")
            exits.append(Exit(process.exitcode, result))
        return exits

    def _kill_all(self) -> None:
        self.kill(signal.SIGKILL)
        for process in self._processes:
            process.join()


def run(world_size: int, body: Callable[[], Any], **env: str) -> list[Exit]:
    """Run `body` in each rank and wait for the ends."""
    with start(world_size, body, **env) as world:
        return world.wait()


def start(world_size: int, body: Callable[[], Any], **env: str) -> World:
    """Fork the ranks. `env` is added to the environment of each."""
    port = str(free_port())
    processes, results = [], []
    for rank in range(world_size):
        receiver, sender = _FORK.Pipe(duplex=False)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
        own = {name: str(value) for name, value in place.items()} | {"MASTER_PORT": port} | env
        process = _FORK.Process(target=_rank, args=(body, own, sender), daemon=True)
        process.start()
        sender.close()
        processes.append(process)
        results.append(receiver)
    return World(processes, results)


def _rank(body: Callable[[], Any], env: dict[str, str], sender: Connection) -> None:
    os.environ.update(env)
    # What lies in the parent's garbage stays there. Finalizers that ran here in the middle of an `ast.parse` called it
    # again, for a traceback, which Python before 3.11.5 does not survive (gh-106905).
    gc.freeze()
    faulthandler.enable(2)  # where a rank that crashes was: into what pytest captures
    sender.send(body())


def _receive(connection: Connection, timeout_seconds: float) -> Any:
    """What a rank sent; None if it ended without."""
    try:
        return connection.recv() if connection.poll(timeout_seconds) else None
    except EOFError:
        return None
