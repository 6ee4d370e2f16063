"""Kinds of tensors that are more than an array of numbers."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Named(Tensor):
    """A plain array of numbers of another class."""


class EightBit(Tensor):
    """Numbers in 8 bits and a scale, as the states of 8-bit optimizers and quantized weights are."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "EightBit":
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device=values.device)

    def __init__(self, values: Tensor) -> None:
        self.scale = values.abs().max() / 127 + 1e-12
        self.codes = (values / self.scale).round().to(torch.int8)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"EightBit({self.values()})"

    def values(self) -> Tensor:
        """The numbers."""
        return self.codes * self.scale

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values())
        if func is torch.ops.aten.copy_.default and isinstance(args[0], cls):
            args[0].__init__(plain(args[1]))  # type: ignore[misc]
            return args[0]
        return func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))


def plain(value: Any) -> Any:
    """The numbers, if it has them in 8 bits."""
    return value.values() if isinstance(value, EightBit) else value


def in_rows() -> Tensor:
    """A sparse matrix by rows; torch warns of the first one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.eye(3).to_sparse_csr()


def ragged() -> Tensor:
    """A nested tensor; torch warns of the first one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])


def eight_bits() -> Tensor:
    """A quantized tensor; torch warns of the first one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)
