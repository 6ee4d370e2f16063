"""The copy of what only an optimizer's step changes, beside the forward and backward pass that come before it.

    save      begin                 ->  the pass  ->  the optimizer's hook: settle  ->  its step
    memory    being filled  …………………………………………………… whole: the writer may begin

That nothing else changes these tensors is the caller's promise, and it is checked: torch counts the writes to a tensor,
and a count that has moved too early fails the save, so that no torn state is ever committed.
"""

import ctypes
import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class BrokenPromiseError(Exception):
    """A tensor changed although no optimizer had stepped."""


class Copying:
    """One copy under way."""

    def __init__(self, names: Sequence[str], tensors: Sequence[Tensor], views: Sequence[Tensor]) -> None:
        self._names = names
        self._tensors = tensors
        self._writes = [_writes(tensor) for tensor in tensors]
        self._changed: str | None = None
        self._is_settled = False
        self._engine = _OnDevice(tensors, views) if any(t.is_cuda for t in tensors) else _OnThread(tensors, views)

    @property
    def is_done(self) -> bool:
        """Whether `finish` would return at once."""
        return self._engine.is_done

    def settle(self) -> None:
        """Let the tensors change from now on; on a GPU, by its own order of work, without waiting here."""
        if not self._is_settled:
            self._is_settled = True
            self._engine.settle()
            moved = zip(self._names, self._tensors, self._writes, strict=True)
            self._changed = next((name for name, tensor, before in moved if _writes(tensor) != before), None)

    def finish(self) -> None:
        """Until the memory is whole.

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


def can_wait(tensor: Tensor) -> bool:
    """Whether a tensor can be copied later: its writes are counted, and its bytes are in one row."""
    return not tensor.is_inference() and tensor.is_contiguous() and tensor.numel() > 0


def _writes(tensor: Tensor) -> int:
    return tensor._version  # noqa: SLF001 - https://docs.pytorch.org/docs/stable/notes/autograd.html#in-place-correctness-checks


class _OnThread:
    """Memory to memory. The thread holds the interpreter only between two tensors, and uses one core."""

    def __init__(self, tensors: Sequence[Tensor], views: Sequence[Tensor]) -> None:
        self._rows = [
            (view.data_ptr(), tensor.data_ptr(), tensor.nbytes) for tensor, view in zip(tensors, views, strict=True)
        ]
        self._thread = threading.Thread(target=self._copy, name="piton-copy", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def settle(self) -> None:
        self._thread.join()

    def finish(self) -> None:
        self._thread.join()

    def _copy(self) -> None:
        for row in self._rows:
            ctypes.memmove(*row)


class _OnDevice:
    """From a GPU, on a stream of its own; the stream that trains waits for it before it goes on."""

    def __init__(self, tensors: Sequence[Tensor], views: Sequence[Tensor]) -> None:
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch._foreach_copy_(list(views), list(tensors), non_blocking=True)
            self._copied.record(stream)

    @property
    def is_done(self) -> bool:
        return bool(self._copied.query())  # type: ignore[no-untyped-call]

    def settle(self) -> None:
        torch.cuda.current_stream().wait_event(self._copied)

    def finish(self) -> None:
        self._copied.synchronize()
