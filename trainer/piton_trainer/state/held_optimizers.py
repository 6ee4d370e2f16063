"""Optimizers that hold other optimizers, such as SAM and Lookahead: each of them has state, and few say all of it.

Their own `state_dict()` leaves out the others, or names tensors by places in memory. So a checkpoint has what each of
them holds, and a restore fills their lists and dicts in place, since several may share one:

    {"state": …, "param_groups": …, "attributes": {…}, "inside": {"base_optimizer": {"state": …, …}}}

Numbers, texts and what is made of them are saved as well, of attributes that are no longer as the script has made them.
An older Piton reads the outer optimizer alone, as before.
"""

import sys
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from piton.contract import InputError
from piton_trainer.state.plain_values import copy_of, fill, is_plain, is_same, packed, unpacked

INSIDE, ATTRIBUTES = "inside", "attributes"
_MANY, _DEEP = 64, 3
"""Optimizers in a list or a dict, and lists and dicts in each other, that are looked at."""
_OF_TORCH = frozenset({"defaults", "param_groups", "state", "_opt_called", "_step_count"})
"""Attributes that are saved otherwise, or that schedules set."""


def held_by(optimizer: Optimizer, *, known: Collection[int] = ()) -> dict[str, Optimizer]:
    """Return the optimizers inside of one that have a state of their own, by where they are.

    Those whose `id` is in `known` are saved by a name of their own. One whose state is that of the outer one is the
    same for a checkpoint, such as in a wrapper of accelerate's.
    """
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":  # it is refused as a whole
        return {}
    seen: dict[int, Optimizer] = {id(optimizer): optimizer}
    found: dict[str, Optimizer] = {}
    states = {id(optimizer.state)}
    left = list(_parts_of(optimizer))
    while left:
        path, part = left.pop(0)
        if id(part) in seen or id(part) in known:
            continue
        seen[id(part)] = part
        left += [(f"{path}/{more}", inner) for more, inner in _parts_of(part)]
        if id(part.state) not in states:
            states.add(id(part.state))
            found[path] = part
    return found


def says_otherwise(optimizer: Optimizer) -> bool:
    """True if an optimizer says its state in a form of its own, which has no state by parameters."""
    if type(optimizer).state_dict is Optimizer.state_dict:
        return False
    try:
        own: Any = optimizer.state_dict()
    except Exception:  # noqa: BLE001 - whoever saves it says so
        return False
    return not (isinstance(own, Mapping) and own.keys() >= {"state", "param_groups"})


def can_be_taken(module: nn.Module | None) -> bool:
    """True if an optimizer of this module's parameters holds whole ones, or shards that know what they are."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FullyShardedDataParallel", None)
    return module is None or kind is None or not any(isinstance(part, kind) for part in module.modules())


def held_state(optimizer: Optimizer, key: str, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the state that an optimizer holds: by the names of parameters, by `id`, or by number if one has none.

    Raises:
        ValueError: it has state of what is in none of its groups.
    """
    groups: list[dict[str, Any]] = optimizer.param_groups
    parameters = list(chain.from_iterable(group["params"] for group in groups))
    called: Mapping[int, str | int] = names
    if not all(id(parameter) in names for parameter in parameters):
        called = {id(parameter): number for number, parameter in enumerate(parameters)}
    strange = next((owner for owner in optimizer.state if id(owner) not in called), None)
    if strange is not None:
        what = "a parameter" if isinstance(strange, Tensor) else repr(strange)
        raise InputError(f"{key} has state of {what} that is in none of its groups; keep it in an object of its own")
    return {
        "state": {called[id(parameter)]: entry for parameter, entry in optimizer.state.items()},
        "param_groups": [{**group, "params": [called[id(one)] for one in group["params"]]} for group in groups],
    }


@torch.no_grad()
def load_in_place(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Put a state dict by numbers into an optimizer: its groups and its state stay the objects that they are."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    for group, saved in zip(groups, state["param_groups"], strict=True):
        for key, value in saved.items():
            if key != "params":
                own = group.get(key)
                is_moved = isinstance(own, Tensor) and isinstance(value, Tensor)
                group[key] = value.to(own.device) if is_moved else value  # type: ignore[union-attr]
    parameters = list(chain.from_iterable(group["params"] for group in groups))
    on_device = {id(one) for group in groups if _is_on_device(group) for one in group["params"]}
    optimizer.state.clear()
    for number, entry in state["state"].items():
        parameter = parameters[number]
        optimizer.state[parameter] = {
            key: value if key == "step" and id(parameter) not in on_device else _placed(value, parameter)
            for key, value in entry.items()
        }


class Attributes:
    """Numbers and texts that an optimizer keeps beside its state, such as a count of its steps."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._made = {key: copy_of(value) for key, value in self._own().items()}
        self._kept: dict[str, None] = {}
        """Those that were ever otherwise than the script has made them, in this attempt or before."""

    def capture(self) -> dict[str, Any]:
        """Return those that are or were not as the script has made them."""
        own = self._own()
        changed = (key for key, value in own.items() if key not in self._made or not is_same(value, self._made[key]))
        self._kept |= dict.fromkeys(changed)
        return {key: packed(own[key]) for key in self._kept if key in own}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Make them what they were; lists and dicts in place."""
        self._kept |= dict.fromkeys(saved)
        own = self._own()
        for key, value in ((key, unpacked(part)) for key, part in saved.items()):
            if key not in own or not fill(own[key], value):
                vars(self._optimizer)[key] = value

    def _own(self) -> dict[str, Any]:
        own = vars(self._optimizer)
        return {key: value for key, value in own.items() if key not in _OF_TORCH and is_plain(value)}


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers among the attributes of one, in lists and dicts as well."""
    return [part for _, part in _parts_of(optimizer)]


def _parts_of(optimizer: Optimizer) -> Iterator[tuple[str, Optimizer]]:
    for name, value in vars(optimizer).items():
        if name in _OF_TORCH:
            continue
        yield from _optimizers_in(name, value, _DEEP)


def _optimizers_in(path: str, value: Any, deep: int) -> Iterator[tuple[str, Optimizer]]:
    if isinstance(value, Optimizer):
        yield path, value
    elif (
        deep and isinstance(value, list | tuple | dict) and len(value) <= _MANY and not path.startswith("param_groups")
    ):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from _optimizers_in(f"{path}/{key}", part, deep - 1)


def _is_on_device(group: Mapping[str, Any]) -> bool:
    """True if the steps of a group are counted beside its parameters."""
    return bool(group.get("capturable") or group.get("fused"))


def _placed(value: Any, parameter: Tensor) -> Any:
    """Return a value of the state of a parameter, where that is; a shard of it, if that is one."""
    if isinstance(value, dict):
        return {key: _placed(part, parameter) for key, part in value.items()}
    if isinstance(value, list):
        return [_placed(part, parameter) for part in value]
    if not isinstance(value, Tensor):
        return value
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor) and value.shape == parameter.shape:
        there = value.to(parameter.device)
        return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device)
