"""Copy of tensors that only an optimizer step changes, during the forward and backward pass before that step.

    save      begin                 ->  the pass  ->  hook of the optimizer: settle  ->  its step
    memory    being filled  ……………… complete: `then`

The caller guarantees that nothing else changes these tensors, and this is checked: torch counts the writes to a tensor,
and a count that has changed too early fails the save, so that no inconsistent state is ever committed.
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
    """A tensor changed before an optimizer step."""


@dataclass(frozen=True)
class Rows:
    """Tensors by name, and the memory that their data is copied to."""

    names: list[str]
    tensors: list[Tensor]
    views: list[Tensor]

    def divided(self, steady: Collection[str]) -> tuple["Rows", "Rows"]:
        """Return the steady tensors that can be copied later, and all others.

        A tensor can be copied later if its writes are counted and its bytes are contiguous. With several GPUs none can,
        because work is ordered only within each GPU.
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
    """Return this rank's shards of sharded tensors, and all other tensors unchanged."""
    found = list(tensors)
    if DTensor not in set(map(type, found)):  # each save passes thousands of tensors
        return found
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in found]


def gpus_of(tensors: Iterable[Tensor]) -> set[torch.device]:
    """Return the GPUs that hold some of these tensors."""
    return {tensor.device for tensor in tensors if tensor.is_cuda}


class Copying:
    """A copy in progress, and a callback that a separate thread runs as soon as the copy is complete."""

    def __init__(self, rows: Rows, then: Callable[[], None]) -> None:
        self._rows = rows
        self._storages = list(map(Tensor.untyped_storage, rows.tensors))
        """References to the storages, so that a tensor whose memory is replaced meanwhile is still copied from here."""
        self._writes = list(map(_writes, rows.tensors))
        self._changed: str | None = None
        self._is_settled = False
        gpus = gpus_of(rows.tensors)
        self._engine = _OnDevice(gpus.pop(), rows, then) if gpus else _OnThread(rows, then)

    @property
    def is_done(self) -> bool:
        """True if the copy is complete."""
        return self._engine.is_done

    def settle(self) -> None:
        """Allow the tensors to change from now on; on a GPU this orders its stream, and the CPU does not wait."""
        if not self._is_settled:
            self._is_settled = True
            self._engine.settle()
            moved = map(ne, self._writes, map(_writes, self._rows.tensors))
            self._changed = next(compress(self._rows.names, moved), None)

    def finish(self) -> None:
        """Wait until the copy is complete and `then` has returned.

        Raises:
            BrokenPromiseError: a tensor was changed during the copy.
        """
        self.settle()
        self._engine.finish()
        if self._changed is not None:
            raise BrokenPromiseError(
                f"{self._changed} was changed before an optimizer stepped; "
                "leave overlap_saves out where a loop does that, and training waits for the copy"
            )


class _OnThread:
    """Copy within CPU memory. The thread holds the GIL only between two tensors, and uses one core."""

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
    """Copy from a GPU, on a separate stream; the training stream waits for it in `settle`."""

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
        self._copied.synchronize()  # raises an error of the copy

    def _run(self) -> None:
        torch.cuda.set_device(self._gpu)  # otherwise this thread would use the first GPU
        try:
            self._copied.synchronize()
        except RuntimeError:  # `finish` raises it in the training thread
            return
        self._then()
