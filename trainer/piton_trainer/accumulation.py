"""Whether a step boundary lies inside a gradient accumulation, where nothing can be saved.

Gradients are no part of a checkpoint: a loop that calls `backward` on several batches for each step of its optimizer
would lose those of the batches before a save. Such a boundary is one without a step of an optimizer since the one
before, and with gradients that wait for it.
"""

import logging
from collections.abc import Sequence

from torch.optim import Optimizer

logger = logging.getLogger(__name__)

BATCHES_MAX = 1000
"""Batches without a step of an optimizer after which there is none to wait for, such as one that is not used yet."""


class Accumulation:
    """Sees the steps of the optimizers that a session was given. Without any there is nothing to wait for."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers
        self._has_stepped = False
        self._batches = 0
        self._hooks = [optimizer.register_step_post_hook(self._stepped) for optimizer in optimizers]

    def is_under_way(self) -> bool:
        """Whether gradients wait for their optimizer. Asked once at each boundary."""
        has_stepped, self._has_stepped = self._has_stepped, False
        if has_stepped or not self._has_gradients():
            self._batches = 0
            return False
        self._batches += 1
        if self._batches == BATCHES_MAX:
            logger.warning(
                "no optimizer has stepped for %d batches; checkpoints are saved without the gradients", BATCHES_MAX
            )
        return self._batches < BATCHES_MAX

    def release(self) -> None:
        """Leave the optimizers as they were."""
        for hook in self._hooks:
            hook.remove()

    def _stepped(self, *_: object) -> None:
        self._has_stepped = True

    def _has_gradients(self) -> bool:
        groups = (group for optimizer in self._optimizers for group in optimizer.param_groups)
        return any(parameter.grad is not None for group in groups for parameter in group["params"])
