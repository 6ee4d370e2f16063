"""Roles of the parts of a state: those that ranks have alike, and those that each of them may have its own of.

parameters and momenta           alike: any rank writes them, and reads what any rank wrote
shards                           each rank writes and reads those that it holds
buffers, tensors of plain objects    rank 0's, unless they are kept per rank
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from piton_trainer.checkpoint.format import codec
from piton_trainer.checkpoint.save.overlapped_copy import local_tensors
from piton_trainer.state.state_dicts import WRAPPED, parameters_by_name


class Roles:
    """The roles of the parts of a state that was captured. They stay the same as long as its keys do."""

    def __init__(
        self,
        documents: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        modules: Mapping[str, nn.Module],
        optimizers: Iterable[str],
    ) -> None:
        """Find out about these modules and the optimizers of these names."""
        self.keys = list(tensors)
        shared = {
            name: {f"{name}/{fqn}" for fqn in parameters_by_name(module)}.intersection(tensors)
            for name, module in modules.items()
        }
        shared |= {name: {key for key in self.keys if key.startswith(f"{name}/")} for name in optimizers}
        shards = {key for key, tensor in tensors.items() if isinstance(tensor, DTensor)}
        self.replicated = frozenset(shards.union(*shared.values()))
        """Keys that any rank may write."""
        self.weights = {name: [key for key in self.keys if key in own - shards] for name, own in shared.items()}
        """Keys of what all ranks are expected to have equal, by object."""
        buffers = {
            name: [fqn for fqn, part in documents[name].items() if not _are_in(part, self.replicated)]
            for name, module in modules.items()
            if not _has_buffers_of_rank_0(module)
        }
        self.buffers = {name: fqns for name, fqns in buffers.items() if fqns}
        """Names of buffers, and of states that are no tensors, of which each rank may have its own, by module."""


def is_spread(tensor: Tensor) -> bool:
    """True if several ranks have parts, or copies, of a tensor."""
    return isinstance(tensor, DTensor) and tensor.device_mesh.size() > 1


def _has_buffers_of_rank_0(module: nn.Module) -> bool:
    """True if all ranks get rank 0's buffers of a module before each step, as DDP does unless it is told not to."""
    while not isinstance(module, DistributedDataParallel):
        inner = next((child for name, child in module.named_children() if name in WRAPPED), None)
        if inner is None:
            return False
        module = inner
    return bool(module.broadcast_buffers)


def _are_in(part: Any, keys: frozenset[str]) -> bool:
    """True if a part of a state is tensors, and all of them have one of these keys."""
    own = codec.keys(part)
    return bool(own) and keys.issuperset(own)


def like_shards(state: Any, key: str, wanted: Collection[str]) -> dict[str, Tensor]:
    """Return new tensors like those of a live state that are spread over ranks, by key, as far as they are wanted.

    An object that holds such tensors, such as an average of its own, takes no others.
    """
    found = codec.split(state, key)[1]
    return {name: torch.zeros_like(value) for name, value in found.items() if name in wanted and is_spread(value)}


def steady_of(
    tensors: Mapping[str, Tensor], optimizers: Iterable[Optimizer], averages: Iterable[Any]
) -> frozenset[str]:
    """Return the keys of the tensors that only a step of an optimizer changes: its own, or an average of them."""
    changing = _memory(tensor for optimizer in optimizers for tensor in _changed_by(optimizer))
    moving = {*changing, *_memory(value for value in averages if isinstance(value, Tensor))}
    return frozenset(compress(tensors, map(moving.__contains__, _memory(tensors.values()))))


def _changed_by(optimizer: Optimizer) -> Iterator[Tensor]:
    """Parameters and momenta. What lies in the groups (a learning rate that is a tensor) is changed by others too."""
    for group in optimizer.param_groups:
        yield from group["params"]
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _memory(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor.untyped_storage().data_ptr() for tensor in local_tensors(tensors)]
