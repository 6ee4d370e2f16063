"""Optimizers and schedules that train what a checkpoint holds, and that it lacks: `restore` was not given them.

A script that builds its schedule after `restore`, and does not name it, begins it anew with each attempt. torch tells
of each step of an optimizer, and marks the step of one that a schedule has been made for. It is told once, and ends
nothing: a script may well set them to where they were by itself.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

logger = logging.getLogger(__name__)

_DEEP, _MANY = 3, 64
"""Wrappers around wrappers in which an optimizer or a schedule is looked for, and parts of one."""


@contextmanager
def telling_of_unnamed(objects: Mapping[str, Any], *, tells: bool) -> Iterator[None]:
    """Tell of optimizers and schedules in the block that are not among these objects, nor inside of one of them."""
    named = list(_inside(list(objects.values()), _DEEP))
    optimizers = {id(value) for value in named if isinstance(value, Optimizer)}
    scheduled = {id(value.optimizer) for value in named if isinstance(value, LRScheduler)}
    trained = {id(weight) for value in named if isinstance(value, nn.Module) for weight in value.parameters()}
    looked_at: set[int] = set()
    told: set[str] = set()

    def tell(what: str, lost: str, argument: str) -> None:
        if what not in told:
            logger.warning(
                "%s, and session.restore() was not given it: a resume begins without %s, unless the script sees to it; "
                "say session.restore(…, %s) before the first step",
                what,
                lost,
                argument,
            )
        told.add(what)

    def look(optimizer: Optimizer, *_: object) -> None:
        if id(optimizer) in looked_at:
            return
        looked_at.add(id(optimizer))
        weights = (weight for group in optimizer.param_groups for weight in group["params"])
        if id(optimizer) not in optimizers and any(id(weight) in trained for weight in weights):
            tell(f"optimizer {type(optimizer).__name__} trains weights of the checkpoint", "its state", "optimizer=[…]")
        elif id(optimizer) in optimizers - scheduled and hasattr(optimizer.step, "_wrapped_by_lr_sched"):
            tell(
                f"a schedule changes the rates of optimizer {type(optimizer).__name__}", "how far it is", "scheduler=…"
            )

    handle = register_optimizer_step_post_hook(look) if tells else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _inside(values: Iterable[Any], depth: int) -> Iterator[Any]:
    """Yield the values and what they hold in attributes, lists and dicts; of modules and data nothing."""
    for value in values:
        yield value
        if depth and not isinstance(value, nn.Module | Tensor | str):
            yield from _inside(_parts_of(value), depth - 1)


def _parts_of(value: Any) -> list[Any]:
    if isinstance(value, Optimizer):  # its state is none of our business
        return [part for part in vars(value).values() if isinstance(part, Optimizer)]
    if isinstance(value, list | tuple):
        parts = value
    else:
        held = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
        parts = list(held.values()) if len(held) <= _MANY else []
    return list(parts) if len(parts) <= _MANY else []
