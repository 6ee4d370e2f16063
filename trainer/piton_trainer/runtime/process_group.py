"""The ranks of one attempt, and the few words that they exchange to act as one.

All of it goes over a gloo group of its own, on the CPU: it never waits for a GPU and never mixes with the collectives
of the training step. With a single rank nothing is sent at all.
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.rendezvous import rendezvous

from piton.contract import InputError
from piton.contract.termination import Outcome
from piton_trainer.config import COLLECTIVE_SECONDS, JOIN_SECONDS
from piton_trainer.errors import BY_OUTCOME, Ended
from piton_trainer.runtime.pulse import Pulse

T = TypeVar("T")

_TURN_SECONDS = 1.0
"""Seconds of one collective in which the other ranks wait for rank 0."""


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """An error of one rank, in a form that every other rank can raise."""

    rank: int
    outcome: Outcome | None
    detail: str


class Ranks:
    """This process among its peers."""

    def __init__(self, *, rank: int = 0, local_rank: int = 0, world_size: int = 1, group: Any = None) -> None:
        self.rank = rank
        self.local_rank = local_rank
        self.world_size = world_size
        self.group = group
        self.local_world_size = _number("LOCAL_WORLD_SIZE", 1)
        self.device = _device(local_rank)
        self._owns_process_group = False
        self._pulse: Pulse | None = None
        self._cause: BaseException | None = None

    @classmethod
    def join(cls, collective_seconds: float = COLLECTIVE_SECONDS, join_seconds: float = JOIN_SECONDS) -> Self:
        """Join the other ranks as torchrun's environment says; the process group is made unless there is one.

        Args:
            collective_seconds: how long a collective of the group that is made waits for the other ranks, and the
                time in which `agree` notices a rank that is gone.
            join_seconds: how long the first rank waits for the last one to come.

        Raises:
            ValueError: the environment does not describe a world.
        """
        local_rank = _number("LOCAL_RANK", 0)
        if not dist.is_initialized() and _number("WORLD_SIZE", 1) <= 1:
            return cls(local_rank=local_rank)
        device, owner = _device(local_rank), not dist.is_initialized()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if owner:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            _make_process_group(backend, collective_seconds, join_seconds)
        ranks = cls(
            rank=dist.get_rank(),
            local_rank=local_rank,
            world_size=dist.get_world_size(),
            group=dist.new_group(backend="gloo"),
        )
        ranks._owns_process_group = owner
        if ranks.world_size > 1:
            store = dist.distributed_c10d._get_default_store()  # noqa: SLF001 - of groups that are not ours too
            ranks._pulse = Pulse(store, rank=ranks.rank, world_size=ranks.world_size, seconds=collective_seconds)
        return ranks

    @property
    def is_main(self) -> bool:
        """True if this is rank 0, which decides, writes the manifest and reports."""
        return self.rank == 0

    def leave(self) -> None:
        """Take the process group down, if `join` made it."""
        if self._pulse is not None:
            self._pulse.end()
        if self._owns_process_group and dist.is_initialized():
            dist.destroy_process_group()

    def agree(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over all ranks: one tiny all-reduce.

        Raises:
            RuntimeError: a rank is gone.
        """
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device="cpu")
        assert self._pulse is not None
        self._pulse.wait(dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group, async_op=True))
        return cast("list[float]", tensor.tolist())

    def excused(self) -> AbstractContextManager[None]:
        """Have the other ranks wait for this one while this lasts, however long."""
        return nullcontext() if self._pulse is None else self._pulse.excused()

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def together(self, action: Callable[[], T]) -> list[T]:
        """Do something on every rank; when it fails on one, it fails on all of them and nobody waits for ever."""
        results = self.gather(self._attempt(action))
        for result in results:
            if isinstance(result, _Failure):
                raise self._error(result)
        return cast("list[T]", results)

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something on rank 0; its result, or its failure, is everybody's."""
        if self.world_size == 1:
            return action()
        box: list[Any] = [self._attempt(action) if self.is_main else None]
        dist.broadcast_object_list(box, src=dist.get_global_rank(self.group, 0), group=self.group)
        if isinstance(box[0], _Failure):
            raise self._error(box[0])
        return cast("T", box[0])

    def await_main(self, action: Callable[[], T]) -> T:
        """The same for what may take longer than the group's time-out: the others wait in many collectives, not in one.

        Where there are others, rank 0 does it in a thread.
        """
        if self.world_size == 1:
            return action()
        results: list[T | _Failure] = []
        thread = threading.Thread(target=lambda: results.append(self._attempt(action)), name="await-main", daemon=True)
        if self.is_main:
            thread.start()

        def wait() -> list[T | _Failure]:
            thread.join(_TURN_SECONDS)
            return results.copy()  # rank 0 has to go by what it has sent, not by what has come while it was sending

        while not (received := self.on_main(wait)):
            pass
        if isinstance(received[0], _Failure):
            raise self._error(received[0])
        return received[0]

    def _attempt(self, action: Callable[[], T]) -> T | _Failure:
        if self.world_size == 1:
            return action()
        try:
            return action()
        except Ended as ended:
            self._cause = ended
            return _Failure(rank=self.rank, outcome=ended.outcome, detail=ended.detail)
        except (Exception, CheckpointException) as error:  # noqa: BLE001 - the other ranks have to hear of all of them
            self._cause = error
            return _Failure(rank=self.rank, outcome=None, detail=f"{type(error).__name__}: {error}")

    def _error(self, failure: _Failure) -> BaseException:
        if failure.rank == self.rank and self._cause is not None:
            return self._cause
        if failure.outcome is not None:
            kind: type[Ended] = BY_OUTCOME[failure.outcome]
            return kind(failure.detail)
        return RuntimeError(f"rank {failure.rank} failed with {failure.detail}")


def _make_process_group(backend: str, collective_seconds: float, join_seconds: float) -> None:
    store, rank, world_size = next(rendezvous("env://", timeout=timedelta(seconds=join_seconds)))
    timeout = timedelta(seconds=collective_seconds)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _device(local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{name} has to be a whole number, not {text!r}")
    return int(text)
