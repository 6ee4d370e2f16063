"""Muon for many matrices of few shapes: one Newton-Schulz iteration for all matrices of a shape.

`torch.optim.Muon` takes one matrix after another. At the sizes of `depth: 12` the CPU then launches kernels for longer
than the GPU works: 29.0 ms per step on an H200, 6.2 ms here (docs/decisions/0070).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon

BATCH_NUMBERS = 2**26
"""In one batch of matrices, 256 MB in fp32. A matrix that is larger keeps a GPU busy by itself."""


class BatchedMuon(Muon):
    """`torch.optim.Muon` with the same settings, state and result, in fewer and larger kernels. Not for DTensors."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform a single optimization step; the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in _batches([weight for weight in group["params"] if weight.grad is not None]):
                self._move(weights, group)
        return loss

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        momenta = [self._momentum(weight) for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch.stack(momenta)
        if group["nesterov"]:
            updates = torch.stack(gradients).lerp_(updates, group["momentum"])
        moves = _orthogonal(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * _scale(weights[0], group["adjust_lr_fn"])
        torch._foreach_add_(weights, list(moves.to(weights[0].dtype).unbind()), alpha=-rate)

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def _batches(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Weights of one shape at a time, and never too many."""
    alike: dict[Any, list[Tensor]] = defaultdict(list)
    for weight in weights:
        alike[weight.shape, weight.dtype, weight.device].append(weight)
    for several in alike.values():
        count = max(1, BATCH_NUMBERS // several[0].numel())
        yield from (several[start : start + count] for start in range(0, len(several), count))


def _orthogonal(updates: Tensor, coefficients: Sequence[float], steps: int, eps: float) -> Tensor:
    """(matrices, rows, columns) -> the same in bf16, each near its closest orthogonal matrix.

    Source: Keller Jordan, https://kellerjordan.github.io/posts/muon/, as in `torch.optim.Muon`.
    """
    a, b, c = coefficients
    is_tall = updates.shape[1] > updates.shape[2]
    x = updates.bfloat16()
    if is_tall:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _scale(weight: Tensor, rule: str | None) -> float:
    """Return what the learning rate is multiplied by for a matrix of that shape; the rules are torch's."""
    rows, columns = weight.shape
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
