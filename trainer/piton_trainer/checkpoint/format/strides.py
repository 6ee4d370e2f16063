"""Strides of tensors whose numbers lie in memory in another order than by rows, as those of `torch.linalg.eigh` do.

    {"$tensor": KEY, "$stride": [1, 8]}

A product of matrices has other last bits with other strides, so a resume needs them. Archives have the numbers by rows
whatever the strides are, and a Piton that does not know the key has the tensor by rows, as before.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

STRIDE = "$stride"
_HOLES_MAX = 16
"""Places in memory for one number, as in a column of a matrix. With more of them a tensor comes back by rows."""


def of(tensor: Tensor) -> list[int] | None:
    """Return the strides of a tensor; None if its numbers lie by rows, or it is more than an array of numbers."""
    if not _is_array(tensor):
        return None
    own = tensor.stride()
    is_by_rows = own == by_rows(tensor.shape) or not tensor.numel()
    return None if is_by_rows or _extent(tensor.shape, own) > _HOLES_MAX * tensor.numel() else list(own)


def by_rows(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides that a new tensor of this shape has."""
    strides, step = list[int](), 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def are_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """True if each number has a place of its own in memory, and there are no holes."""
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(strides, shape, strict=True) if size > 1):
        if step != expected:
            return False
        expected *= size
    return True


@torch.no_grad()
def laid_out(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """Return the same numbers with these strides: the tensor itself, if it has them.

    Where two places of a tensor are one number in memory, as after expand(), they are again.
    """
    if not _is_array(tensor) or tensor.stride() == tuple(strides) or not tensor.numel():
        return tensor
    extent = _extent(tensor.shape, strides)
    memory = tensor.new_zeros(extent)
    if are_dense(tensor.shape, strides):
        return memory.as_strided(tensor.shape, strides).copy_(tensor)
    places = torch.arange(extent, device=tensor.device).as_strided(tensor.shape, strides)
    memory[places.reshape(-1)] = tensor.reshape(-1)
    return memory.as_strided(tensor.shape, strides)


def _is_array(tensor: Tensor) -> bool:
    is_more = tensor.is_quantized or tensor.is_nested or tensor.is_meta
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided and not is_more


def _extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many places in memory a tensor spans that is not empty."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
