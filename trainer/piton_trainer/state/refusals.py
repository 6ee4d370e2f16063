"""Refusals of the user's objects, and what is told of them: they do not fit a checkpoint, or would not come back."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from piton.contract import InputError
from piton_trainer.checkpoint.format import codec
from piton_trainer.runtime.device_faults import is_device_fault, is_out_of_memory
from piton_trainer.state.optimizers import optimizers_of
from piton_trainer.state.state_dicts import lazy_part, split_module


@runtime_checkable
class Stateful(Protocol):
    """Whatever can say and take its state."""

    def state_dict(self) -> dict[str, Any]:
        """The state, in tensors, numbers, strings, lists and dicts."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Become what `state_dict` described."""
        ...


def checked(name: str, value: Any) -> Any:
    """Return an object that can be saved.

    Raises:
        ValueError: it cannot.
    """
    if isinstance(value, Stateful | torch.Generator) or optimizers_of(value):
        return value
    if isinstance(value, Mapping) and any(map(optimizers_of, value.values())):
        raise InputError(
            f"{name} cannot be saved: optimizers in a dict; give a list of them, or each by a name of its own"
        )
    raise InputError(f"{name} cannot be saved: a {type(value).__name__} has no state_dict and load_state_dict")


@contextmanager
def refusing(name: str, verb: str) -> Iterator[None]:
    """Name the object that does not say, or does not take, its state: no other attempt would end otherwise.

    Raises:
        ValueError: it does not.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError) as error:
        if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error) or is_device_fault(error):
            raise
        raise InputError(
            f"{name} does not {verb} its state ({type(error).__name__}: {error}); {_CURES[verb]}"
        ) from error


_CURES = {
    "say": "mend its state_dict(), or leave it out of session.restore()",
    "take": "give session.restore() the object of the first attempt, or begin a new run",
}


def flaw_of(name: str, value: Any) -> tuple[str, str] | None:
    """Return what is known of an object before it is captured: that it could not be restored, by its name."""
    if isinstance(value, nn.Module) and (part := lazy_part(value)) is not None:
        return name, f"{name}/{part} has no shape yet; {codec.LAZY_CURE}"
    if any(isinstance(optimizer, _spread_optimizers()) for optimizer in optimizers_of(value)):
        cure = "shard the model by torch.distributed.fsdp.fully_shard, or give the optimizer inside to all ranks"
        return name, f"{name} is a ZeroRedundancyOptimizer, whose state is spread over the ranks; {cure}"
    if isinstance(value, _metrics()) and (paths := list(forgetful_metrics(value))):
        cure = _persistence(name, value, paths)
        return name, f"{name} is a metric that leaves its values out of its state; say {cure}"
    return None


def _persistence(name: str, metric: nn.Module, paths: Sequence[str]) -> str:
    """Return the line that puts the values of the metrics at these paths into the state of a metric around them."""
    of_all = getattr(_torchmetrics().Metric, "persistent", None)
    has_own = getattr(type(metric), "persistent", of_all) is not of_all  # it says so to those inside
    if has_own or paths == [""]:
        return f"{name}.persistent(True)"
    if len(paths) > 1:
        return f"part.persistent(True) for part in {name}.modules() that is a torchmetrics.Metric"
    spelled, part = name, metric
    for step in paths[0].split("."):
        is_item = isinstance(part, nn.ModuleDict)
        spelled += f"[{step}]" if step.isdigit() else f'["{step}"]' if is_item else f".{step}"
        part = part.get_submodule(step)
    return f"{spelled}.persistent(True)"


def values_outside(module: nn.Module) -> Iterator[str]:
    """Yield the names of tensors that metrics in a module keep as plain attributes, outside of its state."""
    for path, part in module.named_modules():
        if isinstance(part, _metrics()):
            known = vars(part).get("_defaults", {})
            own = (key for key, value in vars(part).items() if isinstance(value, Tensor) and not key.startswith("_"))
            yield from (f"{path}.{key}".removeprefix(".") for key in own if key not in known)


def forgetful_metrics(module: nn.Module) -> Iterator[str]:
    """Yield the names of the metrics of torchmetrics in a module that leave their values out of its state.

    A metric around another one decides itself what of that one it needs.
    """
    inside: set[int] = set()
    for name, part in module.named_modules():
        if not isinstance(part, _metrics()) or id(part) in inside:
            continue
        if set(vars(part).get("_persistent", {}).values()) == {False}:
            yield name
        if vars(part).get("_persistent"):
            inside.update(map(id, part.modules()))


def _metrics() -> tuple[Any, ...]:
    """Return the classes of torchmetrics, if somebody has imported it."""
    module = _torchmetrics()
    return () if module is None else (module.Metric, module.MetricCollection, module.MetricTracker)


def _torchmetrics() -> Any:
    return sys.modules.get("torchmetrics")


def _spread_optimizers() -> tuple[type, ...]:
    """Return the class of torch whose state no rank has, if somebody has imported it."""
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    return () if module is None else (module.ZeroRedundancyOptimizer,)


def switched(name: str, value: Any, state: Any) -> list[str]:
    """Return that a scaler of gradients was switched off, if it was. One that is off has no state.

    Raises:
        ValueError: it was switched on.
    """
    if not isinstance(value, torch.amp.GradScaler) or bool(state) == value.is_enabled():
        return []
    if not state:
        raise InputError(
            f"{name}: a GradScaler that is off in the checkpoint, and on in the script; say GradScaler(enabled=False), "
            "or begin a new run"
        )
    return [
        f"{name}: a GradScaler that is on in the checkpoint, with a scale of {state['scale']:g}, and off in the script"
    ]


def casts(name: str, state: Mapping[str, Any], dtypes: Mapping[str, torch.dtype]) -> list[str]:
    """Return that tensors of a module have another type in the checkpoint, if some do."""
    there = {key: dtypes.get(f"{name}/{key}") for key in state}
    keys = [key for key, value in state.items() if isinstance(value, Tensor) and there[key] not in (None, value.dtype)]
    if not keys:
        return []
    first, more = keys[0], f" and {len(keys) - 1} more" if keys[1:] else ""
    here = state[first].dtype
    return [f"{name}: {first}{more} is {there[first]} in the checkpoint and {here} in the script, and is converted"]


def parts_of_module(name: str, module: nn.Module, document: Any) -> dict[str, Tensor]:
    """Return the tensors of a module that a saved state of it fills where they are.

    Raises:
        ValueError: it is the state of another module.
    """
    current, tensors = split_module(module, name, {})
    if current.keys() != document.keys():
        missing, extra = sorted(current.keys() - document.keys()), sorted(document.keys() - current.keys())
        raise InputError(f"{name} does not fit the checkpoint, which {difference(missing, extra)}")
    saved = frozenset(codec.keys(document))  # buffers that are this rank's own have keys of their own
    return {key: tensor for key, tensor in tensors.items() if key in saved}


def rebuilt(name: str, first: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return that a module has other parts than when training began, if it has: a script begins with those."""
    if first.keys() == now.keys():
        return None
    missing, extra = sorted(first.keys() - now.keys()), sorted(now.keys() - first.keys())
    return (
        f"{name} {difference(missing, extra)}, compared with its first save; a resumed script has to build it as it is "
        "now before session.restore()"
    )


def difference(missing: list[str], extra: list[str]) -> str:
    """Return how the names in a checkpoint differ from those that the script has."""
    parts = [f"{verb} {_first_of(names)}" for verb, names in (("lacks", missing), ("also has", extra)) if names]
    return " and ".join(parts)


def _first_of(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if names[1:] else names[0]
