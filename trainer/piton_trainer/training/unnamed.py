"""Optimizers, schedules, metrics and attributes of a model that train and that the checkpoint lacks.

A script that builds its schedule after `restore`, and does not name it, begins it anew with each attempt. torch tells
of each step of an optimizer, and marks the step of one that a schedule has been made for. It is told once, and ends
nothing: a script may well set them to where they were by itself.
"""

import logging
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

from piton_trainer.state.held_optimizers import parts_of
from piton_trainer.state.module_attributes import attribute_sketches
from piton_trainer.state.refusals import forgetful_metrics, values_outside
from piton_trainer.state.tracked_objects import LOADER

logger = logging.getLogger(__name__)

_SEEN = 2
"""The step of an optimizer at which it is looked at."""
_DEEP, _MANY = 3, 64
"""Wrappers around wrappers in which an optimizer or a schedule is looked for, and parts of one."""


@contextmanager
def telling_of_unnamed(objects: Mapping[str, Any], *, tells: bool) -> Iterator[None]:
    """Tell of optimizers and schedules in the block that are not among these objects, nor inside of one of them.

    A metric inside of a model, whose values are not in its state, is told at once. Whatever cannot be looked at, as it
    is made by code of the user's, is no reason to end.
    """
    handle = None
    with suppress(Exception):
        handle = register_optimizer_step_post_hook(_Look(objects)) if tells else None
        _tell_of_metrics(objects if tells else {})
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _tell_of_metrics(objects: Mapping[str, Any]) -> None:
    found = [
        f"{name}.{path}"
        for name, value in objects.items()
        if isinstance(value, nn.Module)
        for path in forgetful_metrics(value)
        if path
    ]
    if found:
        logger.warning(
            "%s%s: a metric that leaves its values out of the model's state, so what it has counted before a resume is "
            "lost; say %s.persistent(True), unless each step resets it",
            found[0],
            f" and {len(found) - 1} more" if found[1:] else "",
            found[0],
        )
    modules = [(name, value) for name, value in objects.items() if isinstance(value, nn.Module)]
    outside = [f"{name}.{path}" for name, value in modules for path in values_outside(value)]
    if outside:
        logger.warning(
            "%s%s: a value of a metric outside of its state, so after a resume it begins anew; keep it in an object of "
            "your own with state_dict() and load_state_dict(), and name that in session.restore()",
            outside[0],
            f" and {len(outside) - 1} more" if outside[1:] else "",
        )


class _Look:
    """Looks at each optimizer at its second step: some scripts make one for a single step, and throw it away."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        named = list(_inside([value for name, value in objects.items() if name != LOADER], _DEEP))
        self._optimizers = {id(value) for value in named if isinstance(value, Optimizer)}
        self._scheduled = {id(value.optimizer) for value in named if isinstance(value, LRScheduler)}
        modules = [value for value in named if isinstance(value, nn.Module)]
        self._trained = {id(weight) for module in modules for weight in module.parameters()}
        self._steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._told: set[str] = set()
        self._attributes = _Attributes(objects)

    def __call__(self, optimizer: Optimizer, *_: object) -> None:
        with suppress(Exception):
            self._attributes.look()
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        if self._steps[optimizer] != _SEEN:
            return
        weights = (weight for group in optimizer.param_groups for weight in group["params"])
        kind = type(optimizer).__name__
        if id(optimizer) not in self._optimizers and any(id(weight) in self._trained for weight in weights):
            self._tell(f"optimizer {kind} trains weights of the checkpoint", "its state", "optimizer=[…]")
        elif id(optimizer) in self._optimizers - self._scheduled and hasattr(optimizer.step, "_wrapped_by_lr_sched"):
            self._tell(f"a schedule changes the rates of optimizer {kind}", "how far it is", "scheduler=…")

    def _tell(self, what: str, lost: str, argument: str) -> None:
        if what not in self._told:
            logger.warning(
                "%s, and session.restore() was not given it: a resume begins without %s, unless the script sees to it; "
                "say session.restore(…, %s) before the first step",
                what,
                lost,
                argument,
            )
        self._told.add(what)


class _Attributes:
    """Tells of attributes of the modules that change, at the steps 1, 2, 4, 8, … of optimizers."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._modules = {name: value for name, value in objects.items() if isinstance(value, nn.Module)}
        self._first: dict[str, Any] = {}
        self._steps = 0
        self._told: set[str] = set()

    def look(self) -> None:
        """Count a step, and compare the attributes at the steps that are powers of two."""
        self._steps += 1
        if self._steps.bit_count() != 1:
            return
        for key, value in chain.from_iterable(
            attribute_sketches(name, module) for name, module in self._modules.items()
        ):
            if self._first.setdefault(key, value) != value and key not in self._told:
                self._told.add(key)
                logger.warning(
                    "%s: it changes in the training and is in no checkpoint, so after a resume it begins anew; keep it "
                    "in a buffer, or give its module get_extra_state and set_extra_state",
                    key,
                )


def _inside(values: Iterable[Any], depth: int) -> Iterator[Any]:
    """Yield the values and what they hold in attributes, lists and dicts; of modules and tensors nothing."""
    for value in values:
        yield value
        if depth and not isinstance(value, nn.Module | Tensor | str):
            yield from _inside(_parts_of(value), depth - 1)


def _parts_of(value: Any) -> list[Any]:
    if isinstance(value, Optimizer):  # those that it holds are saved with it
        return list(parts_of(value))
    if type(value) in (list, tuple):
        return list(value) if len(value) <= _MANY else []
    held = value if type(value) is dict else getattr(value, "__dict__", {})
    return list(held.values()) if type(held) is dict and len(held) <= _MANY else []
