"""Optimizers, as a checkpoint sees them: the state of each parameter by its name, the groups as they were at the save.

A checkpoint also has the class of the optimizer, and the settings that the script gave it in the first attempt:

    {"state": {PARAMETER: {…}}, "param_groups": [{"params": [PARAMETER, …], …}, …], "class": "…", "given": [{…}, …]}

A restore puts the groups of the checkpoint into the optimizer, whatever groups the script gives it: a group that the
script has added, split, merged or moved since is there again. Where the script gives another value than in the first
attempt, the checkpoint's value is used. What differs is told.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from piton.contract import InputError
from piton_trainer.checkpoint.format import codec
from piton_trainer.checkpoint.format.strides import by_rows
from piton_trainer.state.optimizer_values import keep_strides, keep_types, load
from piton_trainer.state.state_dicts import parameters_by_name

logger = logging.getLogger(__name__)

Group = dict[str, Any]
_STATE, _GROUPS, _PARAMS, _CLASS, _GIVEN = "state", "param_groups", "params", "class", "given"
_OF_OTHERS = frozenset(
    {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "initial_momentum", "swa_lr", "param_names"}
)
"""Keys that the schedulers of torch, and names of parameters, add to a group."""
_NAMES_MAX = 3
_NOT_OURS = "a parameter that is not the model's"


@dataclass(frozen=True, kw_only=True)
class Given:
    """An optimizer as the script gives it: its class, and the plain values in its groups before the first step."""

    kind: str
    groups: Sequence[Group]

    @classmethod
    def of(cls, optimizer: Optimizer) -> "Given":
        """Return that of this moment."""
        kind = type(optimizer)
        groups = [{key: value for key, value in _settings(group) if _is_plain(value)} for group in _groups(optimizer)]
        return cls(kind=f"{kind.__module__}.{kind.__qualname__}", groups=groups)

    def after(self, saved: Mapping[str, Any]) -> "Given":
        """Return what later checkpoints have: the settings of the first attempt, if the resumed checkpoint has them."""
        return Given(kind=self.kind, groups=saved.get(_GIVEN, self.groups))

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {_CLASS: self.kind, _GIVEN: codec.split(list(self.groups), _GIVEN)[0]}


def optimizers_of(value: Any) -> tuple[Optimizer, ...]:
    """Return the optimizers that a thing is, one or several; none if it is something else."""
    items = value if isinstance(value, list | tuple) else (value,)
    return tuple(items) if items and all(isinstance(item, Optimizer) for item in items) else ()


def wrapped_in(value: Any) -> list[Optimizer]:
    """Return the optimizers inside of a thing that steps and is none itself; none if it does not step."""
    steps = hasattr(value, "__dict__") and all(callable(getattr(value, name, None)) for name in ("step", "zero_grad"))
    return [inner for part in vars(value).values() for inner in optimizers_of(part)] if steps else []


def parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield the parameters of all groups."""
    return chain.from_iterable(group[_PARAMS] for group in _groups(optimizer))


def names_of(documents: Iterable[Any]) -> frozenset[str]:
    """Return the names of the parameters of several optimizers; some have numbers only."""
    groups = (group[_PARAMS] for states in documents for saved in states for group in saved[_GROUPS])
    return frozenset(param for group in groups for param in group if isinstance(param, str))


def stateless(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the state dict of an optimizer without state: by the names of its parameters, by `id`, if all have one."""
    found: dict[str, Any] = optimizer.state_dict()
    if not all(id(parameter) in names for parameter in parameters_of(optimizer)):
        return found
    fqns = [[names[id(parameter)] for parameter in group[_PARAMS]] for group in _groups(optimizer)]
    return {**found, _GROUPS: [{**group, _PARAMS: own} for group, own in zip(found[_GROUPS], fqns, strict=True)]}


def templates(model: nn.Module, optimizer: Optimizer, document: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    """Return tensors like those of the saved state, by key: sharded like their parameters, or on the same device.

    Where the optimizer has stepped, they are its own. `key` is the prefix of its keys. There are none where all can be
    new tensors on the CPU.
    """
    if all(map(_is_ordinary, parameters_of(optimizer))):
        return {}
    is_new = not optimizer.state
    found = codec.split(get_optimizer_state_dict(model, optimizer), key)[1]
    if is_new:  # torch has made it take an empty step; that is undone, and the tensors are ours
        optimizer.state.clear()
    # The live optimizer has no state of a frozen parameter, and none of one whose group the script adds later.
    parameters, kinds, missing = parameters_by_name(model), dict[str, torch.dtype](), list[tuple[str, str, Tensor]]()
    odd = set[str]()  # parts of another shape than their parameter, as Adafactor's: they can be new tensors
    for name, entry in document[_STATE].items():
        for part, value in entry.items() if name in parameters else ():
            for saved in codec.keys(value):
                if saved not in found:
                    missing.append((part, saved, parameters[name]))
                elif found[saved].shape == parameters[name].shape:
                    kinds[part] = found[saved].dtype
                else:
                    odd.add(part)
    like_their_parameter = kinds.keys() - odd
    made = {saved: torch.zeros_like(p, dtype=kinds[part]) for part, saved, p in missing if part in like_their_parameter}
    wanted = set(codec.keys(document))
    return {name: tensor for name, tensor in found.items() if name in wanted} | made


def restore(
    optimizer: Optimizer,
    saved: Mapping[str, Any],
    *,
    name: str,
    given: Given,
    parameters: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
    strides: Mapping[str, Sequence[int]],
    trained: Iterable[str],
    load: Callable[[Optimizer, dict[str, Any]], None] = load,
) -> list[str]:
    """Put a saved state into an optimizer; return what is to be told.

    Args:
        optimizer: it has not stepped.
        saved: the joined document.
        name: what the script calls it.
        given: what the script gives it in this attempt.
        parameters: those of the model, by all of their names.
        dtypes: of the model's parameters in the checkpoint, by name.
        strides: of the model's parameters in the checkpoint, by name, unless they lay by rows.
        trained: names of the parameters of all optimizers in the checkpoint. Those that another one has leave this one.
        load: puts a state dict by numbers into it.

    Raises:
        ValueError: it is a state of another kind of optimizer, or of other parameters.
    """
    _expect_same_kind(optimizer, saved, name)
    is_by_name = all(isinstance(param, str) for group in saved[_GROUPS] for param in group[_PARAMS])
    if not is_by_name:
        _expect_same_sizes(optimizer, saved, name)
        load(optimizer, {_STATE: saved[_STATE], _GROUPS: saved[_GROUPS]})
        entries = dict(enumerate(parameters_of(optimizer)))
        values = {id(entries[number]): entry for number, entry in saved[_STATE].items()}
        keep_types(optimizer, values, changed=set())
        keep_strides(optimizer, values, {})
        return []
    groups, told = _arrange(optimizer, saved, name, parameters, trained)
    told += _changes(saved, name, given)
    places = {id(parameter): number for number, parameter in enumerate(parameters_of(optimizer))}
    held = {fqn: parameters[fqn] for fqn in saved[_STATE]}
    state = {places[id(parameter)]: saved[_STATE][fqn] for fqn, parameter in held.items()}
    numbered = [{**group, _PARAMS: [places[id(parameter)] for parameter in group[_PARAMS]]} for group in groups]
    load(optimizer, {_STATE: state, _GROUPS: numbered})
    changed = {id(parameter) for fqn, parameter in held.items() if dtypes.get(fqn, parameter.dtype) != parameter.dtype}
    values = {id(parameter): saved[_STATE][fqn] for fqn, parameter in held.items()}
    keep_types(optimizer, values, changed=changed)
    there = {id(parameter): tuple(strides.get(fqn, by_rows(parameter.shape))) for fqn, parameter in held.items()}
    keep_strides(optimizer, values, there)
    return told


def _arrange(
    optimizer: Optimizer,
    saved: Mapping[str, Any],
    name: str,
    parameters: Mapping[str, Tensor],
    trained: Iterable[str],
) -> tuple[list[Group], list[str]]:
    """Give the optimizer the groups of the checkpoint; what only the script has stays, in groups after them.

    Returns:
        The groups with the settings of the checkpoint, and what is to be told.
    """
    live, groups = _groups(optimizer), list[Group]()
    owners = {id(parameter): group for group in live for parameter in group[_PARAMS]}
    named = chain(chain.from_iterable(group[_PARAMS] for group in saved[_GROUPS]), saved[_STATE])
    unknown = next((fqn for fqn in named if fqn not in parameters), None)
    if unknown is not None:
        raise InputError(f"{name}: the checkpoint trains {unknown}, which the model does not have")
    for group in saved[_GROUPS]:
        members = [parameters[fqn] for fqn in group[_PARAMS]]
        like = next((owners[id(parameter)] for parameter in members if id(parameter) in owners), {})
        groups.append({**_defaults(optimizer), **like, **group, _PARAMS: members})
    theirs = {id(parameter) for group in groups for parameter in group[_PARAMS]}
    known = theirs | {id(parameters[fqn]) for fqn in trained if fqn in parameters}
    rests = [[parameter for parameter in group[_PARAMS] if id(parameter) not in known] for group in live]
    groups += [{**group, _PARAMS: rest} for group, rest in zip(live, rests, strict=True) if rest]
    before = [list(map(id, group[_PARAMS])) for group in live]
    is_same = list(map(set, before)) == [set(map(id, group[_PARAMS])) for group in groups]
    told = (
        [] if is_same and not any(rests) else [_regrouped(name, saved, before, parameters, chain.from_iterable(rests))]
    )
    if is_same:  # the lists of the script stay, in the order of the checkpoint: LBFGS has one state for a whole list
        for group, own in zip(groups, live, strict=True):
            own[_PARAMS][:] = group[_PARAMS]
            group[_PARAMS] = own[_PARAMS]
    else:
        live[:] = groups
    if theirs - owners.keys():
        _take_no_group_twice(optimizer, theirs)
    return groups, told


def _regrouped(
    name: str,
    saved: Mapping[str, Any],
    before: Sequence[Sequence[int]],
    parameters: Mapping[str, Tensor],
    rest: Iterable[Tensor],
) -> str:
    fqns = {id(parameter): fqn for fqn, parameter in reversed(list(parameters.items()))}
    there = [list(group[_PARAMS]) for group in saved[_GROUPS]]
    here = [[fqns.get(place, _NOT_OURS) for place in group] for group in before]
    new = [fqns.get(id(parameter), _NOT_OURS) for parameter in rest]
    told = (
        f"{name}: its parameter groups are {_shown(there)} in the checkpoint, and {_shown(here)} in the script; "
        "training goes on with the checkpoint's"
    )
    return f"{told}, and with {_some(new)} as the script has them, without any state" if new else told


def _changes(saved: Mapping[str, Any], name: str, given: Given) -> list[str]:
    """Return which settings the script gives otherwise than in the first attempt, and in vain."""
    first, now, used = saved.get(_GIVEN, ()), given.groups, saved[_GROUPS]
    if len(first) != len(now):
        return []
    found: dict[str, str] = {}
    for then, group, current in zip(first, now, used, strict=False):
        for key in sorted(then.keys() & group.keys() & current.keys()):
            if then[key] != group[key] != current[key]:
                found.setdefault(key, f"{key} is {group[key]} in the script and {current[key]} in the checkpoint")
    if not found:
        return []
    told = "; ".join(found.values())
    cure = "to use the script's, set it in optimizer.param_groups after session.restore()"
    return [f"{name}: {told}; training goes on with the checkpoint's: {cure}"]


def _expect_same_kind(optimizer: Optimizer, saved: Mapping[str, Any], name: str) -> None:
    """Refuse the state of an optimizer whose step would look for other settings and other momenta.

    Raises:
        ValueError: it is one.
    """
    there = {key for group in saved[_GROUPS] for key in group} - _OF_OTHERS - {_PARAMS}
    here = {key for group in _groups(optimizer) for key in group} - _OF_OTHERS - {_PARAMS}
    lacks, extra = sorted(_defaults(optimizer).keys() - there), sorted(there - here - _defaults(optimizer).keys())
    kind, live = saved.get(_CLASS), Given.of(optimizer).kind
    is_other = bool(lacks and extra) if kind is None else kind != live and bool(lacks or extra)
    if not is_other or not there:
        return
    other = f"of another optimizer, with {_some(extra)}" if kind is None else f"a {kind.rpartition('.')[2]}'s"
    raise InputError(
        f"{name}: the checkpoint's state is {other}, and the script has a {live.rpartition('.')[2]}"
        f"{f', with {_some(lacks)}' if lacks else ''}; take the optimizer of the first attempt, or begin a new run"
    )


def _expect_same_sizes(optimizer: Optimizer, saved: Mapping[str, Any], name: str) -> None:
    """Refuse groups without names that are not as large as the live ones.

    Raises:
        ValueError: they are.
    """
    there = [len(group[_PARAMS]) for group in saved[_GROUPS]]
    here = [len(group[_PARAMS]) for group in _groups(optimizer)]
    if there != here:
        raise InputError(
            f"{name}: the checkpoint has groups of {_listed(there)} parameters, and the script has groups of "
            f"{_listed(here)}; give it the same groups before session.restore(), or call the model `model` there, so "
            "that parameters have names"
        )


def _take_no_group_twice(optimizer: Optimizer, theirs: Iterable[int]) -> None:
    """Let the script add a group that the checkpoint has brought: it is there, and torch would refuse it."""
    there, add = set(theirs), optimizer.add_param_group

    def add_unless_there(group: Group) -> None:
        given = group[_PARAMS]
        members = [given] if isinstance(given, Tensor) else list(given)
        tensors = [member[1] if isinstance(member, tuple) else member for member in members]
        if tensors and there.issuperset(map(id, tensors)):
            logger.info("the parameter group that the script adds is there already, from the checkpoint")
            return
        add({**group, _PARAMS: members})

    optimizer.add_param_group = add_unless_there  # type: ignore[method-assign, assignment]


def _is_ordinary(parameter: Tensor) -> bool:
    """True if what belongs to a parameter can be a new tensor on the CPU, with its numbers in rows."""
    return not isinstance(parameter, DTensor) and parameter.device.type == "cpu" and parameter.is_contiguous()


def _defaults(optimizer: Optimizer) -> Group:
    """Return the settings of a group that says none; some wrappers of optimizers have not any."""
    return getattr(optimizer, "defaults", {})


def _groups(optimizer: Optimizer) -> list[Group]:
    groups: list[Group] = optimizer.param_groups
    return groups


def _settings(group: Group) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in group.items() if key != _PARAMS)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _shown(groups: Sequence[Sequence[str]]) -> str:
    return " and ".join(f"[{_some(group)}]" for group in groups) or "none"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_MAX
    return ", ".join(names[:_NAMES_MAX]) + (f" and {more} more" if more > 0 else "")


def _listed(sizes: Sequence[int]) -> str:
    return " and ".join(map(str, sizes)) or "no"
