"""The state dicts of modules and optimizers as torch gives them, without torch's walk through the model at every save.

torch looks up the name of each parameter from the root of the model, once for the model and again for each optimizer.
With thousands of small parameters that takes many times as long as to copy them. The names depend only on how the model
is built, so they are kept, and looked up again when it is built differently:

    built differently   the names anew, and the state by these names compared with torch's: if they differ, torch is
                        asked at every save
    built as before     the names that are known, and the tensors that modules and optimizers hold now

No tensor is kept from one capture to the next: one that was replaced meanwhile is saved like any other.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress, repeat
from operator import attrgetter, is_, methodcaller
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from piton_trainer.checkpoint.format import codec, strides

Captured = tuple[Any, dict[str, Tensor]]
"""A state as JSON, and its tensors by key, as `codec.split` gives it; but the tensors are not detached."""

WRAPPED = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
"""Parts of names that torch.compile and activation checkpointing add, and that torch's state dicts omit."""
_EXTRA_STATE = "_extra_state"
_STATE_METHODS = ("state_dict", "_save_to_state_dict", "get_extra_state")
_CONTAINERS = _PARAMETERS, _BUFFERS, _CHILDREN = [attrgetter(name) for name in ("_parameters", "_buffers", "_modules")]
_VALUES = methodcaller("values")
_PRE_HOOKS = attrgetter("_state_dict_pre_hooks")
_HOOKS = attrgetter("_state_dict_hooks")
_OPTIMIZER_HOOKS = attrgetter("_optimizer_state_dict_pre_hooks", "_optimizer_state_dict_post_hooks")
_NOT_SAVED = attrgetter("_non_persistent_buffers_set")


class ModuleState:
    """The state of one module, again and again."""

    def __init__(self, module: nn.Module, key: str, flaws: dict[str, str]) -> None:
        self._module = module
        self._key = key
        self._flaws = flaws
        self._structure: _Structure | None = None
        self.names: Mapping[int, str] | None = None
        """The parameters of the newest capture by `id`, each with its first name; None when only torch knows names."""
        self.parameters: Mapping[str, Tensor] = {}
        """The parameters of the newest capture, by all of their names."""

    def capture(self) -> Captured:
        """As `codec.split` gives it of `get_model_state_dict`."""
        structure = self._structure
        tensors = None if structure is None else structure.tensors()
        if structure is None or tensors is None:
            self._structure = structure = _Structure(self._module, self._key, self._flaws)
            tensors = structure.tensors()
        if tensors is None or not structure.is_known:
            self.names, self.parameters = None, parameters_by_name(self._module)
            return split_module(self._module, self._key, self._flaws)
        self.parameters = structure.parameters(tensors)
        self.names = {id(parameter): name for name, parameter in reversed(self.parameters.items())}
        return structure.document, dict(zip(structure.keys, tensors, strict=True))


class OptimizerState:
    """The state of one optimizer, again and again."""

    def __init__(self, optimizer: Optimizer, key: str, flaws: dict[str, str]) -> None:
        self.key = key
        """Prefix of the keys of its tensors."""
        self._flaws = flaws
        self._optimizer = optimizer
        self._signature: object = None
        self._is_known = False
        self._document = codec.Fixed()
        self._keys: Sequence[str] | None = None
        """Of the tensors of all parameters; None: there is more than tensors."""

    def capture(self, names: Mapping[int, str], read: Callable[[], Any]) -> Captured:
        """As `codec.split` gives it of what torch says when asked; `names` are those of the model's parameters, by id.

        Raises:
            KeyError: the optimizer holds a parameter that is not the model's.
        """
        optimizer = self._optimizer
        groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
        entries = {names[id(parameter)]: entry for parameter, entry in optimizer.state.items()}
        values = list(chain.from_iterable(entry.values() for entry in entries.values()))
        kinds = list(map(isinstance, values, repeat(Tensor)))
        states = {
            "state": entries,
            "param_groups": [
                {**group, "params": fqns} for group, fqns in zip(optimizer.param_groups, groups, strict=True)
            ],
        }
        signature = [_is_plain_optimizer(optimizer), groups, list(entries), list(map(tuple, entries.values())), kinds]
        signature.append(_strides_of(values) if all(kinds) else None)
        if signature != self._signature:
            self._is_known = _is_plain_optimizer(optimizer) and _is_same(states, read())
            document, tensors = self.split(entries, "/state") if all(kinds) else ({}, {})
            self._document, self._keys = codec.Fixed(document), list(tensors) if len(tensors) == len(values) else None
            self._signature = signature
        if not self._is_known:
            return self.split(read())
        if self._keys is None:
            return self.split(states)
        document, tensors = self.split(states["param_groups"], "/param_groups")
        own = dict(zip(self._keys, values, strict=True))
        return {"state": self._document, "param_groups": document}, own | tensors

    def split(self, state: Any, part: str = "") -> Captured:
        """Split this optimizer's state, or a part of it, as `codec.split` does."""
        return codec.split(state, f"{self.key}{part}", flaws=self._flaws)


class _Structure:
    """The structure of a module, and the names that follow from it."""

    def __init__(self, module: nn.Module, key: str, flaws: dict[str, str]) -> None:
        walked = list(_walk(module, "", ""))
        self._modules = [part for part, *_ in walked]
        self._places = [(part, prefix) for part, prefix, _ in walked]
        self._is_plain = all(map(_is_plain_module, self._modules))
        self.is_known = False
        """True if the state by these names is what torch says."""
        if not self._is_plain:
            return
        self._run_hooks()
        self._signature, values = self._look()
        places = [(fqn + name, True) for part, _, fqn in walked for name in _PARAMETERS(part)]
        self._parameters = sum(value is not None for value in values[: len(places)])
        places += [(fqn + name, name not in _NOT_SAVED(part)) for part, _, fqn in walked for name in _BUFFERS(part)]
        self._is_saved = [lasts and value is not None for (_, lasts), value in zip(places, values, strict=True)]
        self._fqns = list(compress((fqn for fqn, _ in places), self._is_saved))
        state = dict(zip(self._fqns, compress(values, self._is_saved), strict=True))
        document, tensors = codec.split(state, key, flaws=flaws, in_place=True)
        self.document, self.keys = codec.Fixed(document), list(tensors)
        self.is_known = len(state) == len(self._fqns) and _is_same(state, state_of_module(module))

    def tensors(self) -> list[Tensor] | None:
        """Those of this moment, one for each of `keys`; None when the module is built differently, or not plainly."""
        if not self._is_plain:
            return None
        self._run_hooks()
        signature, values = self._look()
        return list(compress(values, self._is_saved)) if signature == self._signature else None

    def parameters(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The parameters among the tensors by their names; one that is shared has several."""
        return dict(zip(self._fqns, tensors[: self._parameters], strict=False))

    def _run_hooks(self) -> None:
        """Run the modules' hooks before their state is taken; a sharded module gathers its shards."""
        for part, prefix in compress(self._places, map(_PRE_HOOKS, self._modules)):
            for hook in _PRE_HOOKS(part).values():
                hook(part, prefix, False)

    def _look(self) -> tuple[list[Any], list[Any]]:
        """All that names depend on, and what is in the places that have names, a tensor or None: parameters first."""
        modules, types = self._modules, list(map(type, self._modules))
        contents = [list(map(container, modules)) for container in _CONTAINERS]
        parameters, buffers, children = (list(chain.from_iterable(map(_VALUES, kind))) for kind in contents)
        values = parameters + buffers
        signature: list[Any] = [list(map(len, kind)) for kind in contents]
        signature += [list(chain.from_iterable(kind)) for kind in contents]
        signature += [children, types, list(map(is_, values, repeat(None)))]
        signature += [list(map(frozenset, map(_NOT_SAVED, modules))), list(map(len, map(_HOOKS, modules)))]
        signature += [
            list(map(_has_no_own_state, modules)),
            _strides_of([value for value in values if value is not None]),
        ]
        signature += [[getattr(kind, name) for kind in dict.fromkeys(types) for name in _STATE_METHODS]]
        return signature, values


def split_module(module: nn.Module, key: str, flaws: dict[str, str]) -> Captured:
    """Ask torch for the state of a module, and split it as `codec.split` does."""
    return codec.split(dict(state_of_module(module)), key, flaws=flaws, in_place=True)


def state_of(value: Any) -> Any:
    """Return the state of an object of any kind that is tracked."""
    if isinstance(value, nn.Module):
        return state_of_module(value)
    return {"generator": value.get_state()} if isinstance(value, torch.Generator) else value.state_dict()


def state_of_module(module: nn.Module) -> dict[str, Any]:
    """Return a module's state as torch says it; nothing of one without any, such as a loss: torch takes that amiss."""
    if next(module.parameters(), None) is None and not module.state_dict():
        return {}
    state: dict[str, Any] = get_model_state_dict(module)
    return state


def lazy_part(module: nn.Module) -> str | None:
    """Return the name of the first parameter or buffer that has no shape yet; None if all have."""
    named = chain(module.named_parameters(), module.named_buffers())
    return next((name for name, tensor in named if is_lazy(tensor)), None)


def parameters_by_name(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a module by the names that they have in checkpoints; one that is shared has several."""
    return {
        fqn + name: value
        for part, _, fqn in _walk(module, "", "")
        for name, value in _PARAMETERS(part).items()
        if value is not None
    }


def frozen_names(parameters: Mapping[str, Tensor]) -> list[str]:
    """Return the names of those that are not trained."""
    return [name for name, value in parameters.items() if not value.requires_grad]


def freeze_as(name: str, module: nn.Module, frozen: Collection[str]) -> list[str]:
    """Let all parameters of a module but these be trained; return what is to be told where the script says otherwise.

    `name` is that of the module.
    """
    known = {
        key: value
        for key, value in parameters_by_name(module).items()
        if value.is_floating_point() or value.is_complex()
    }
    thawed = [key for key in frozen_names(known) if key not in frozen]
    stopped = [key for key in known if key in frozen and known[key].requires_grad]
    for key in (*thawed, *stopped):
        known[key].requires_grad_(key not in frozen)
    sides = ((thawed, "the script", "the checkpoint"), (stopped, "the checkpoint", "the script"))
    return [
        f"{name}: {keys[0]}{f' and {len(keys) - 1} more' if keys[1:] else ''}: frozen in {here}, trained in {there}; "
        "training goes on as in the checkpoint; to change that, say requires_grad_() in the loop"
        for keys, here, there in sides
        if keys
    ]


def in_place(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a module whose parameters and buffers are filled where they are, with their strides."""
    return {
        name: part if name.rpartition(".")[2] == _EXTRA_STATE else codec.without_strides(part)
        for name, part in document.items()
    }


def lay_out_buffers(module: nn.Module, document: Mapping[str, Any]) -> None:
    """Give the buffers of a module the strides that they had at the save; a script may have replaced them since."""
    for part, _, fqn in _walk(module, "", ""):
        for name, buffer in _BUFFERS(part).items():
            own = codec.strides_in(document.get(fqn + name))
            if isinstance(buffer, Tensor) and own is not None and len(own) == buffer.dim():
                laid_out = strides.laid_out(buffer, own)
                if laid_out is not buffer:  # the object stays: others may hold it, such as DistributedDataParallel
                    buffer.data = laid_out


def walked_names(modules: Iterable[nn.Module]) -> dict[int, str]:
    """Return the names of parameters by `id`, as a restore finds them, also where only torch knows those of a state."""
    return {id(value): fqn for module in modules for fqn, value in reversed(parameters_by_name(module).items())}


def _walk(module: nn.Module, prefix: str, fqn: str) -> Iterator[tuple[nn.Module, str, str]]:
    """All modules, parents first; what their keys begin with in torch's own state dict, and in one for checkpoints."""
    yield module, prefix, fqn
    for name, child in _CHILDREN(module).items():
        if child is not None:
            is_wrapped = isinstance(module, DistributedDataParallel) or name in WRAPPED
            yield from _walk(child, f"{prefix}{name}.", fqn if is_wrapped else f"{fqn}{name}.")


def _is_plain_module(module: nn.Module) -> bool:
    """True if its state is what it holds, by name."""
    has_own = any(getattr(type(module), name) is not getattr(nn.Module, name) for name in _STATE_METHODS)
    holds = all(isinstance(container(module), dict) for container in _CONTAINERS)
    return holds and not has_own and not _HOOKS(module) and _has_no_own_state(module)


def _has_no_own_state(module: nn.Module) -> bool:
    """True if it says its state as its class does; it may have been given a method of its own."""
    return vars(module).keys().isdisjoint(_STATE_METHODS)


def _is_plain_optimizer(optimizer: Optimizer) -> bool:
    """True if its state is what it holds, by parameter."""
    has_own = type(optimizer).state_dict is not Optimizer.state_dict or "state_dict" in vars(optimizer)
    return not has_own and not any(_OPTIMIZER_HOOKS(optimizer))


def _strides_of(tensors: Sequence[Tensor]) -> list[int | None]:
    """Return a hash of each tensor's strides, which are a part of its document; None for a tensor without strides.

    The hashes are kept until the next save. The strides themselves would add thousands of tuples for the garbage
    collector to scan.
    """
    try:
        return list(map(hash, map(Tensor.stride, tensors)))
    except (RuntimeError, TypeError):  # a tensor has no strides, or none that are known
        return [hash(tensor.stride()) if _has_strides(tensor) else None for tensor in tensors]


def _has_strides(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def _is_same(one: object, other: object) -> bool:
    """True if two states have the same names, and the very same tensors under them."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _place(one) == _place(other) is not None
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one is other or (type(one) is type(other) and bool(one == other))


@torch.no_grad()
def _place(tensor: Tensor) -> object:
    """Describe the storage and layout of a tensor; None if it is more than a strided tensor."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if type(local) not in (Tensor, nn.Parameter) or local.layout is not torch.strided or local.is_nested:
        return None
    spread = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
    return local.data_ptr(), local.dtype, local.stride(), local.shape, tensor.shape, spread
