"""Attributes that the parts of a Lightning training have beyond those of their frameworks."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from piton_trainer.integrations.lightning_values import Unseen, pack
from piton_trainer.integrations.own_parts import names_in_code, place_of, sample_of
from piton_trainer.state.built_parts import outline

OF_LIGHTNING = ("lightning.", "pytorch_lightning.", "piton_trainer.")
"""Packages whose classes are no user's."""
_OF_A_STEP = 2**10
"""Numbers of a tensor with a graph, as an attribute: a larger one is what a layer has computed, not what it keeps."""


def registered(part: Any) -> set[str]:
    """Return the names of what a module has in its state: a script may have made a buffer of an attribute."""
    kinds = (part._parameters, part._buffers, part._modules) if isinstance(part, nn.Module) else ()  # noqa: SLF001
    return {name for kind in kinds for name in kind}


def saves_itself(part: Any) -> bool:
    """True if hooks of a part save what they like."""
    if isinstance(part, nn.Module) and type(part).get_extra_state is not nn.Module.get_extra_state:
        return True
    own = next((base for base in (LightningModule, LightningDataModule, Callback) if isinstance(part, base)), None)
    name = "state_dict" if own is LightningDataModule else "on_save_checkpoint"
    return own is not None and getattr(type(part), name, None) is not getattr(own, name, None)


def own_attributes(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that a part has beyond those of its framework."""
    hidden = _hidden(part)
    return ((key, value) for key, value in list(vars(part).items()) if key not in hidden)


def _hidden(part: Any) -> frozenset[str]:
    if isinstance(part, Metric):
        return _names(Metric).union(part._defaults)  # noqa: SLF001 - they are saved as the metric's states
    bases = (MetricCollection, LightningModule, LightningDataModule, nn.Module)
    base = next((base for base in bases if isinstance(part, base)), None)
    kind: Any = type(part)
    return names_in_code(kind, OF_LIGHTNING) if base is None else _names(base)


_NAMES: dict[type, frozenset[str]] = {}


def _names(kind: type) -> frozenset[str]:
    """Return the names of the attributes that any object of a kind has."""
    if kind not in _NAMES:
        special: dict[Any, Callable[[], Any]] = {Metric: _Bare, MetricCollection: lambda: MetricCollection([])}
        _NAMES[kind] = frozenset(vars(special.get(kind, kind)())) | frozenset(vars(nn.Module()))
    return _NAMES[kind]


class _Bare(Metric):
    """A metric with nothing of its own."""

    def update(self, *_: Any, **__: Any) -> None:
        """Take nothing."""

    def compute(self) -> Any:
        """Return nothing."""


def attributes(part: Any, places: Collection[int]) -> dict[str, Any]:
    """Return copies of the attributes that are seen, as a checkpoint holds them; not of views of those places."""
    found: dict[str, Any] = {}
    for key, value in own_attributes(part):
        if not _is_of_step(value):
            with suppress(Exception):  # it is no such value, or a thread or a class of the user's is in the way
                found[key] = pack(value, places)
    for key, value in _passing(part):
        with suppress(Unseen):
            found[key] = pack(value, ())
    return found


def large_tensors(part: Any, seen: Collection[str], places: Collection[int]) -> dict[str, Any]:
    """Return outlines of the tensors that are too much for a checkpoint by themselves."""
    tensors = ((key, value) for key, value in chain(own_attributes(part), _passing(part)) if type(value) is Tensor)
    others = ((key, value) for key, value in tensors if key not in seen and place_of(value) not in places)
    return {key: (outline(key, value), sample_of(value)) for key, value in others if not _is_of_step(value)}


def _is_of_step(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and value.numel() > _OF_A_STEP


def _passing(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the buffers of a module that are in no checkpoint, such as tables that grow."""
    names = getattr(part, "_non_persistent_buffers_set", ()) if isinstance(part, nn.Module) else ()
    return ((name, part._buffers[name]) for name in list(names) if part._buffers.get(name) is not None)  # noqa: SLF001
