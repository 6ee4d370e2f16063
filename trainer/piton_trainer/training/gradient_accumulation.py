"""Detection of gradients that wait for an optimizer step. A checkpoint holds none, so a save there would lose them.

    for batch in session.steps(loader):             boundaries of four batches that make one step
        loss(batch).backward()                      |       |       |       |
        if every fourth batch:                      wait    wait    wait    whole
            optimizer.step(); optimizer.zero_grad()

That `.grad` is set says nothing by itself: who calls `zero_grad` at the start of a step has gradients at all times, and
the last step has used them. So gradients wait if they are there, their optimizer has not stepped in this batch, and
they are not the ones that it stepped with last. Where `GradScaler` leaves out a step, they wait for the next one.

An optimizer inside a wrapper that is none itself counts too, as long as the wrapper seems to use it.
"""

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from piton_trainer.errors import BadConfig

logger = logging.getLogger(__name__)

LIMIT = 512
"""Batches in a row after which gradients that still wait are no accumulation that anybody could have meant."""


@dataclass(frozen=True, kw_only=True)
class _Used:
    """The gradient of one parameter, as the optimizer's last step has left it."""

    parameter: Tensor
    gradient: "weakref.ref[Tensor]"
    version: int

    @property
    def is_unchanged(self) -> bool:
        """True if nothing was added to it since; a tensor that is new has another identity."""
        gradient = self.parameter.grad
        return gradient is not None and gradient is self.gradient() and _version(gradient) == self.version


class Gradients:
    """The gradients of the optimizers that a checkpoint holds, on this rank."""

    def __init__(
        self, optimizers: Sequence[Optimizer], wrapped: Sequence[Optimizer] = (), *, accumulate: int | None
    ) -> None:
        """Watch these optimizers, and those inside of wrappers or of a framework's loop.

        `accumulate` is how many batches make a step, where the user has said it.
        """
        self._optimizers = optimizers
        self._wrapped = wrapped
        self._accumulate = accumulate
        self._limit = max(LIMIT, accumulate or 0)
        self._postponed = 0
        """Boundaries in a row at which gradients waited for a step."""
        self._stepped: set[int] = set()
        self._used: dict[int, _Used] = {}

    @classmethod
    @contextmanager
    def watched(
        cls, optimizers: Sequence[Optimizer], wrapped: Sequence[Optimizer] = (), *, accumulate: int | None
    ) -> Iterator[Self]:
        """Be told of each step of an optimizer.

        Of all of them, as an optimizer that the user has wrapped may be known here by its wrapper only.
        """
        gradients = cls(optimizers, wrapped, accumulate=accumulate)
        handle = register_optimizer_step_post_hook(gradients._note)
        try:
            yield gradients
        finally:
            handle.remove()

    def next_batch(self) -> None:
        """A batch begins."""
        self._stepped.clear()

    def wait(self, step: int) -> bool:
        """True if gradients wait for a step after so many batches, over all attempts."""
        if self._accumulate is not None:
            return step % self._accumulate != 0
        return any(key not in self._stepped and self._are_new(key, optimizer) for key, optimizer in self._keyed())

    def waiting(self) -> list[int]:
        """Return the numbers of the wrapped optimizers whose gradients wait for a step."""
        numbered = ((number, _key(optimizer), optimizer) for number, optimizer in enumerate(self._wrapped))
        return [number for number, key, each in numbered if key not in self._stepped and self._are_new(key, each)]

    def stepped_in_batch(self) -> list[int]:
        """Return the numbers of the wrapped optimizers that have stepped in this batch."""
        return [number for number, optimizer in enumerate(self._wrapped) if _key(optimizer) in self._stepped]

    def postpone(self) -> None:
        """Count a boundary at which a save or a stop is left to the next one.

        Raises:
            BadConfig: the optimizer's step does not seem to come.
        """
        self._postponed += 1
        if self._postponed < self._limit:
            return
        if not self._wrapped:
            raise BadConfig(
                f"gradients have waited for an optimizer's step for {self._postponed} batches, and nothing can be "
                "saved before it: say session.steps(loader, accumulate=k) if k batches make a step, and accumulate=1 "
                "if those gradients are not used"
            )
        logger.warning(
            "gradients have waited for the step of an optimizer for %d batches; they are taken as not used, and "
            "checkpoints are without them: if they are used, a loop of your own can say "
            "session.steps(loader, accumulate=k)",
            self._postponed,
        )
        self._wrapped, self._postponed = (), 0

    def stepped(self) -> None:
        """Note a boundary without gradients that wait."""
        self._postponed = 0

    def _keyed(self) -> Iterator[tuple[int, Optimizer]]:
        return ((_key(optimizer), optimizer) for optimizer in chain(self._optimizers, self._wrapped))

    def _are_new(self, key: int, optimizer: Optimizer) -> bool:
        used = self._used.get(key)
        return not (used and used.is_unchanged) and _first_with_gradient(optimizer) is not None

    def _note(self, optimizer: Optimizer, _: tuple[Any, ...], __: dict[Any, Any]) -> None:
        """An optimizer has stepped. One gradient stands for all of its: a backward pass adds to them together."""
        key = _key(optimizer)
        self._stepped.add(key)
        parameter = _first_with_gradient(optimizer)
        if parameter is None or parameter.grad is None:
            self._used.pop(key, None)
            return
        gradient = parameter.grad
        self._used[key] = _Used(parameter=parameter, gradient=weakref.ref(gradient), version=_version(gradient))


def _version(tensor: Tensor) -> int:
    return tensor._version  # noqa: SLF001 - torch's count of changes; documented, if not by its name


def _key(optimizer: Optimizer) -> int:
    """Its first parameter, by which a wrapper and what it wraps are one."""
    return id(next(_parameters(optimizer), None))


def _first_with_gradient(optimizer: Optimizer) -> Tensor | None:
    return next((parameter for parameter in _parameters(optimizer) if parameter.grad is not None), None)


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
