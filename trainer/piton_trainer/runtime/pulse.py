"""Signs of life of the ranks, in the store of the process group: a node that is gone without a FIN sends none.

every rank          a thread counts up `piton-pulse/<rank>`
who waits too long  compares two looks at the counts: a rank that has not counted is gone, and nobody waits for it

Only whether a process lives is judged, and not how long it takes: a rank that reads, writes, mirrors or evaluates
counts on. Under `untimed()` even one that keeps Python to itself is waited for.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_BEATS = 8
"""Beats in the time in which a rank that is gone has to be noticed."""
_BEAT_SECONDS_MAX = 15.0
_LOOK = 0.4
"""Part of that time before the first look, and between two of them."""
_ANSWER = 0.1
"""Part of that time for which the store may take to answer."""
_EXCUSED = "untimed"


class Pulse:
    """This rank's signs of life, and the look at those of the others."""

    def __init__(self, store: Any, *, rank: int, world_size: int, seconds: float) -> None:
        """Begin to count. `seconds` is the time in which a rank that is gone is noticed."""
        self._rank, self._world_size, self._seconds = rank, world_size, seconds
        self._origin, self._store = store, store.clone()  # connections of our own: no other call blocks them
        self._count = 0
        self._excuses = 0
        self._ended = threading.Event()
        self._beat()
        threading.Thread(target=self._beat_on, name="pulse", daemon=True).start()

    def wait(self, work: dist.Work) -> None:
        """Wait for a collective as long as all ranks live.

        Raises:
            RuntimeError: a rank is gone, or the collective has failed.
        """
        before: Mapping[int, str] | None = None
        while not _is_done(work, self._seconds * _LOOK):
            now = self._look()
            gone = [] if before is None else [rank for rank, beat in now.items() if beat == before.get(rank, beat)]
            if gone := [rank for rank in gone if rank != self._rank and now[rank] != _EXCUSED]:
                raise RuntimeError(
                    f"rank {', '.join(map(str, gone))} has given no sign of life for {self._seconds * _LOOK:g} s: its "
                    "node is gone, or its process is stopped"
                )
            before = now

    @contextmanager
    def excused(self) -> Iterator[None]:
        """Have the other ranks wait, whatever becomes of this rank's signs of life."""
        self._excuses += 1
        self._beat()
        try:
            yield
        finally:
            self._excuses -= 1
            self._beat()

    def end(self) -> None:
        """Count no more."""
        self._ended.set()

    def _look(self) -> dict[int, str]:
        """Return the newest beat of each rank. Where the store does not answer, rank 0 does not: it is its node."""
        found: dict[int, str] = {}

        def look() -> None:
            with suppress(RuntimeError, ValueError):
                store = self._origin.clone()
                found.update({rank: store.get(_key(rank)).decode() for rank in range(self._world_size)})

        thread = threading.Thread(target=look, name="pulse-look", daemon=True)
        thread.start()
        thread.join(self._seconds * _ANSWER)  # nothing in torch limits a call to a node that is gone
        return found.copy() if len(found) == self._world_size else {0: ""}

    def _beat(self) -> None:
        self._count += 1
        try:
            self._store.set(_key(self._rank), _EXCUSED if self._excuses else str(self._count))
        except (RuntimeError, ValueError):  # the process that holds the store has ended, or its node
            self._ended.set()

    def _beat_on(self) -> None:
        while not self._ended.wait(min(self._seconds / _BEATS, _BEAT_SECONDS_MAX)):
            self._beat()


def _key(rank: int) -> str:
    return f"piton-pulse/{rank}"


def _is_done(work: dist.Work, seconds: float) -> bool:
    """Wait so long for the work; return False if it goes on.

    Raises:
        RuntimeError: it has failed.
    """
    try:
        work.wait(timedelta(seconds=seconds))
    except RuntimeError:
        if work.is_completed():
            raise
        return False
    return True
