"""Collectives with gradients that flow back to all ranks.

torch has such functions under `torch.distributed.nn`, deprecated, and in a module that is private. With a single rank
nothing is sent. Every rank has to bring tensors of one shape.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of every rank's tensor.

    Each rank's loss has it whole, and DDP takes the mean of the gradients: so does the way back, over their sum.
    """
    return _Mean.apply(value) if dist.is_initialized() else value  # type: ignore[no-untyped-call]


def gathered(value: Tensor) -> Tensor:
    """Every rank's rows, in the order of the ranks."""
    return _Gathered.apply(value) if dist.is_initialized() else value  # type: ignore[no-untyped-call]


class _Mean(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004 - autograd's form
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()


class _Gathered(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.rows = len(value)
        parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.rows
        return total[first : first + ctx.rows]
