"""Optimizers, their groups and their schedules, by their words."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer
from torch.optim.swa_utils import SWALR

from fuzz_loops.loop import Loop

MOVES_AT = 3
"""The step in which groups change that change in the middle."""


class Wide(Optimizer):
    """Momentum for weights in bfloat16, with everything of its own in float32."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights by a copy of them that is not rounded."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["master"], state["momentum"] = weight.float(), torch.zeros_like(weight, dtype=torch.float32)
                state["momentum"].lerp_(weight.grad.float(), 0.1)
                state["master"].add_(state["momentum"], alpha=-group["lr"])
                weight.copy_(state["master"])


MAKERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": optim.SGD,
    "SGD momentum": lambda given, lr: optim.SGD(given, lr=lr, momentum=0.9, nesterov=True),
    "Adam": optim.Adam,
    "AdamW": optim.AdamW,
    "AdamW amsgrad": lambda given, lr: optim.AdamW(given, lr=lr, amsgrad=True),
    "AdamW tensor lr": lambda given, lr: optim.AdamW(given, lr=torch.tensor(lr), foreach=False),
    "AdamW fused": lambda given, lr: optim.AdamW(given, lr=lr, fused=True),
    "Adagrad": optim.Adagrad,
    "Adadelta": optim.Adadelta,
    "Adamax": optim.Adamax,
    "Adafactor": optim.Adafactor,
    "ASGD": lambda given, lr: optim.ASGD(given, lr=lr, t0=3),
    "NAdam": optim.NAdam,
    "RAdam": optim.RAdam,
    "RMSprop": lambda given, lr: optim.RMSprop(given, lr=lr, momentum=0.5, centered=True),
    "Rprop": optim.Rprop,
    "LBFGS": lambda given, lr: optim.LBFGS(given, lr=lr, max_iter=3, history_size=3),
    "wide": Wide,
}


def optimizers_of(loop: Loop, net: nn.Sequential) -> list[Optimizer]:
    """Return the optimizers of a loop."""
    named = dict(net.named_parameters())
    if loop.backwards:
        named = dict(reversed(named.items()))
    weights = list(named.values())
    if loop.optimizer == "Muon":
        flat = [weight for weight in weights if weight.ndim != 2]
        return [
            optim.Muon([weight for weight in weights if weight.ndim == 2], lr=loop.lr),
            optim.AdamW(flat, lr=loop.lr),
        ]
    if loop.optimizer == "pair":
        return [optim.SGD(weights[:2], lr=loop.lr, momentum=0.9), optim.Adam(weights[2:], lr=loop.lr)]
    return [MAKERS[loop.optimizer](_groups(loop, net, named), lr=loop.lr)]


def _groups(loop: Loop, net: nn.Sequential, named: dict[str, nn.Parameter]) -> Any:
    weights = list(named.values())
    if loop.groups == "named":
        return list(named.items())
    if loop.groups == "each":
        return [{"params": [weight], "lr": loop.lr / (1 + number)} for number, weight in enumerate(weights)]
    if loop.groups in ("decay", "merged"):
        return _by_shape(weights)
    if loop.groups == "added":
        head = set(net[-1].parameters())
        return [weight for weight in weights if weight not in head]
    return weights


def _by_shape(weights: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for weight in weights:
        (matrices if weight.ndim > 1 else others).append(weight)
    return [{"params": matrices, "lr": 0.03}, {"params": others}]


def move_groups(loop: Loop, net: nn.Sequential, optimizer: Optimizer) -> None:
    """Change the groups, as a script does that unfreezes a part."""
    groups = optimizer.param_groups
    if loop.groups == "added":
        optimizer.add_param_group({"params": list(net[-1].parameters()), "lr": 0.01, "initial_lr": 0.01})
    elif loop.groups == "split":
        matrices, others = (part["params"] for part in _by_shape(groups[0]["params"]))
        groups[0]["params"] = matrices
        optimizer.add_param_group({"params": others, "lr": 0.01, "initial_lr": 0.01})
    elif loop.groups == "merged":
        groups[0]["params"] += groups.pop()["params"]


SCHEDULERS: dict[str, Callable[[Optimizer, int], Any]] = {
    "StepLR": lambda optimizer, _: lr_scheduler.StepLR(optimizer, 2, gamma=0.7),
    "LambdaLR": lambda optimizer, _: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "OneCycleLR": lambda optimizer, steps: lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.05, total_steps=3 * steps + 3, cycle_momentum=False
    ),
    "CosineAnnealingWarmRestarts": lambda optimizer, _: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
    "ReduceLROnPlateau": lambda optimizer, _: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.5),
    "SequentialLR": lambda optimizer, _: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.3, total_iters=3), lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[3],
    ),
    "ChainedScheduler": lambda optimizer, _: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=4), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
    "CyclicLR": lambda optimizer, _: lr_scheduler.CyclicLR(optimizer, 0.01, 0.05, step_size_up=2, cycle_momentum=False),
    "MultiplicativeLR": lambda optimizer, _: lr_scheduler.MultiplicativeLR(optimizer, lambda step: 0.95),
    "SWALR": lambda optimizer, _: SWALR(optimizer, swa_lr=0.005, anneal_epochs=4),
}


def scheduler_of(loop: Loop, optimizer: Optimizer) -> LRScheduler | None:
    """Return the schedule of a loop."""
    return SCHEDULERS[loop.scheduler](optimizer, loop.steps) if loop.scheduler else None


_OF_OTHERS = ("params", "param_names", "initial_lr")
"""Keys of a group that are no settings of an optimizer; schedulers add the last one when they are made."""


def spelled(optimizer: Optimizer, names: dict[int, str]) -> list[Any]:
    """Return settings and state of each group, by the names of its parameters and in their order."""
    found = []
    for group in optimizer.param_groups:
        settings = {key: value for key, value in sorted(group.items()) if key not in _OF_OTHERS}
        states: dict[str, Any] = {names[id(weight)]: optimizer.state.get(weight, {}) for weight in group["params"]}
        found.append([settings, dict(sorted(states.items()))])
    return found
