"""Values that a saved state puts into an optimizer, as they were at the save: torch changes the types of some."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from piton_trainer.checkpoint.format import strides

Strides = tuple[int, ...]


def load(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict and keep the defaults of the script: torch adds some, which groups added later would get."""
    defaults = dict(getattr(optimizer, "defaults", {}))
    optimizer.load_state_dict(state)
    with suppress(AttributeError):  # a wrapper may show those of the optimizer inside
        optimizer.defaults = defaults


def keep_types(optimizer: Optimizer, saved: Mapping[int, Mapping[str, Any]], *, changed: set[int]) -> None:
    """Put back the tensors that torch has cast to the type of their parameter: momenta in fp32 of weights in bf16.

    Those of parameters in `changed`, which have another type than in the checkpoint, keep the new one.
    """
    for parameter, live, key, now, value in _pairs(optimizer, saved):
        if key != "step" and id(parameter) not in changed and now.dtype != value.dtype:
            live[key] = value.to(now.device)


def keep_strides(
    optimizer: Optimizer, saved: Mapping[int, Mapping[str, Any]], parameters: Mapping[int, Strides]
) -> None:
    """Give tensors the strides that they had at the save; those that lay as their parameter does lie as it does now.

    Args:
        optimizer: it has the saved state by now.
        saved: the state of each parameter, by `id`.
        parameters: the strides that each parameter had at the save, by `id`.
    """
    for parameter, live, key, now, value in _pairs(optimizer, saved):
        if value.layout is not torch.strided or now.layout is not torch.strided:
            continue
        wanted = value.stride()
        if now.shape == parameter.shape and wanted == parameters.get(id(parameter)):
            wanted = parameter.stride()
            if not strides.are_dense(parameter.shape, wanted):
                continue
        if now.stride() != wanted:
            live[key] = strides.laid_out(now, wanted)


def _pairs(
    optimizer: Optimizer, saved: Mapping[int, Mapping[str, Any]]
) -> Iterator[tuple[Tensor, dict[str, Any], str, Tensor, Tensor]]:
    """Yield each tensor of the live state with the saved one: the parameter, its state, the key, and both."""
    for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
        live = optimizer.state.get(parameter, {})
        for key, value in saved.get(id(parameter), {}).items():
            now = live.get(key) if isinstance(live, Mapping) else None
            if isinstance(now, Tensor) and isinstance(value, Tensor):
                yield parameter, live, key, now, value
