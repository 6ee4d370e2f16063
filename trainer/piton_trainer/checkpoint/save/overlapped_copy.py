"""The copy of what only an optimizer's step changes, beside the forward and backward pass that come before it.

    save      begin                 ->  the pass  ->  the optimizer's hook: settle  ->  its step
    memory    being filled  ……………… whole: `then`

That nothing else changes these tensors is the caller's promise, and it is checked: torch counts the writes to a tensor,
and a count that has moved too early fails the save, so that no torn state is ever committed.
"""

import ctypes
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import compress
from operator import attrgetter, ne, not_

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_writes = attrgetter("_version")
"""https://docs.pytorch.org/docs/stable/notes/autograd.html#in-place-correctness-checks"""


class BrokenPromiseError(Exception):
    """A tensor changed although no optimizer had stepped."""


@dataclass(frozen=True)
class Rows:
    """Tensors by name, and the places that their numbers go to."""

    names: list[str]
    tensors: list[Tensor]
    views: list[Tensor]

    def divided(self, steady: Collection[str]) -> tuple["Rows", "Rows"]:
        """Those of the steady ones that can be copied later, and all others.

        They can when their writes are counted, and their bytes are in one row; but none where there are several GPUs,
        since work has an order only within each.
        """
        if not steady or len(gpus_of(self.tensors)) > 1:
            return Rows([], [], []), self
        is_steady, in_a_row = map(steady.__contains__, self.names), map(Tensor.is_contiguous, self.tensors)
        uncounted = map(Tensor.is_inference, self.tensors)
        later = [one and two and not three for one, two, three in zip(is_steady, in_a_row, uncounted, strict=True)]
        return self._part(later), self._part(list(map(not_, later)))

    def _part(self, wanted: list[bool]) -> "Rows":
        names, tensors = list(compress(self.names, wanted)), list(compress(self.tensors, wanted))
        return Rows(names, tensors, list(compress(self.views, wanted)))


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of sharded tensors this rank's shards, and all others as they are."""
    found = list(tensors)
    if DTensor not in set(map(type, found)):  # thousands are asked for at every save
        return found
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in found]


def gpus_of(tensors: Iterable[Tensor]) -> set[torch.device]:
    """Those that hold some of these tensors."""
    return {tensor.device for tensor in tensors if tensor.is_cuda}


class Copying:
    """One copy under way, and what a thread of its own does as soon as the memory is whole."""

    def __init__(self, rows: Rows, then: Callable[[], None]) -> None:
        self._rows = rows
        self._storages = list(map(Tensor.untyped_storage, rows.tensors))
        """Held, so that a tensor which is given other memory meanwhile is still copied from this."""
        self._writes = list(map(_writes, rows.tensors))
        self._changed: str | None = None
        self._is_settled = False
        gpus = gpus_of(rows.tensors)
        self._engine = _OnDevice(gpus.pop(), rows, then) if gpus else _OnThread(rows, then)

    @property
    def is_done(self) -> bool:
        """Whether the memory is whole."""
        return self._engine.is_done

    def settle(self) -> None:
        """Let the tensors change from now on; on a GPU, by its own order of work, without waiting here."""
        if not self._is_settled:
            self._is_settled = True
            self._engine.settle()
            moved = map(ne, self._writes, map(_writes, self._rows.tensors))
            self._changed = next(compress(self._rows.names, moved), None)

    def finish(self) -> None:
        """Until the memory is whole, and `then` is done.

        Raises:
            BrokenPromiseError: it holds a tensor that was changed meanwhile.
        """
        self.settle()
        self._engine.finish()
        if self._changed is not None:
            raise BrokenPromiseError(
                f"{self._changed} was changed before an optimizer stepped; "
                "leave overlap_saves out where a loop does that, and training waits for the copy"
            )


class _OnThread:
    """Memory to memory. The thread holds the interpreter only between two tensors, and uses one core."""

    def __init__(self, rows: Rows, then: Callable[[], None]) -> None:
        self._views = rows.views
        self._sources = list(map(Tensor.data_ptr, rows.tensors))
        self._then = then
        self._copied = threading.Event()
        self._thread = threading.Thread(target=self._run, name="piton-copy", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return self._copied.is_set()

    def settle(self) -> None:
        self._copied.wait()

    def finish(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        self._copy()
        self._copied.set()
        self._then()

    def _copy(self) -> None:
        for view, source in zip(self._views, self._sources, strict=True):
            ctypes.memmove(view.data_ptr(), source, view.nbytes)


class _OnDevice:
    """From a GPU, on a stream of its own; the stream that trains waits for it before it goes on."""

    def __init__(self, gpu: torch.device, rows: Rows, then: Callable[[], None]) -> None:
        self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._gpu = gpu
        self._then = then
        stream = torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(gpu))
        with torch.cuda.stream(stream), torch.no_grad():
            torch._foreach_copy_(rows.views, rows.tensors, non_blocking=True)
            self._copied.record(stream)
        self._thread = threading.Thread(target=self._run, name="piton-copy", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return bool(self._copied.query())  # type: ignore[no-untyped-call]

    def settle(self) -> None:
        torch.cuda.current_stream(self._gpu).wait_event(self._copied)

    def finish(self) -> None:
        self._thread.join()
        self._copied.synchronize()  # raises what went wrong with the copy

    def _run(self) -> None:
        torch.cuda.set_device(self._gpu)  # this thread would take the first of them for its own
        try:
            self._copied.synchronize()
        except RuntimeError:  # `finish` raises it where training hears of it
            return
        self._then()
