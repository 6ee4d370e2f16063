"""The wait of a save or a stop for an optimizer that a framework's module steps by hand.

    gradients wait for a step     the save is left to the batch of the step, so that none are lost
    the step does not come        the save is made without them, and the log says so
    a stop is asked for           the same much sooner: the machine may be gone before the step

A step that comes each few batches is known by the longest accumulation of the run. An optimizer that has not stepped
while another one has may be in a warm-up of epochs: it is waited for shortly, once in a run. All of this is in the
checkpoint, or each attempt on machines that live shortly would wait anew.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

from piton_trainer.clock import Clock

logger = logging.getLogger(__name__)

FIRST = 128
"""Batches for which the first step of a run is waited for."""
FEW = 16
"""Batches for which any other step is waited for, unless an earlier one has used more, and any at all before a stop."""
STOP_SECONDS = 10.0
"""Seconds that a stop waits at most: some machines leave 15 s for all of it."""


class StepPatience:
    """The optimizers of this rank whose gradients wait, by their numbers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._longest: dict[int, int] = {}
        """Batches of the longest accumulation of each optimizer that has stepped."""
        self._given_up: set[int] = set()
        self._waited: dict[int, int] = {}
        """Batches in a row after which gradients have waited."""
        self._stop_since: float | None = None
        self._has_told = False

    def state_dict(self) -> dict[str, Any]:
        """Return what the next attempt is to know of the optimizers."""
        if not self._longest and not self._given_up:
            return {}
        return {"longest": sorted(map(list, self._longest.items())), "given_up": sorted(self._given_up)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what earlier attempts have seen."""
        self._longest = {int(number): int(batches) for number, batches in state.get("longest", ())}
        self._given_up = set(state.get("given_up", ()))
        for number in sorted(self._given_up):
            logger.warning(
                "the checkpoint is without gradients that waited for the step of optimizer %d; if that step uses them, "
                "it has those of fewer batches",
                number,
            )

    def count(self, *, waiting: Collection[int], stepped: Collection[int]) -> None:
        """Count a batch: after it the gradients of some optimizers wait, and in it some have stepped."""
        for number in stepped:
            used = 1 if number in self._given_up else self._waited.get(number, 0) + 1
            self._longest[number] = max(self._longest.get(number, 1), used)
            self._given_up.discard(number)
            self._waited.pop(number, None)
        self._waited = {number: self._waited.get(number, 0) + 1 for number in waiting}
        for number in self._held():
            batches = self._waited[number]
            if batches >= self._limit(number):
                self._given_up.add(number)
                logger.warning(
                    "gradients have waited for the step of optimizer %d for %d batches; they are taken as not used, "
                    "and checkpoints are without them until it steps",
                    number,
                    batches,
                )
            elif batches >= FEW and not self._has_told:
                self._has_told = True
                logger.warning(
                    "gradients have waited for the step of optimizer %d for %d batches, and saves wait for it as well",
                    number,
                    batches,
                )

    @property
    def holds_save(self) -> bool:
        """True if a save now would lose gradients that a step may still use."""
        return bool(self._held())

    def holds_stop(self) -> bool:
        """Return True if a stop that has been asked for may wait for the step; count its time from the first call."""
        now = self._clock.monotonic()
        if self._stop_since is None:
            self._stop_since = now
            for number in self._held():
                logger.warning(
                    "the stop waits for the step of optimizer %d, whose gradients of %d batches no checkpoint holds; "
                    "for %.0f s at most",
                    number,
                    self._waited[number],
                    STOP_SECONDS,
                )
        if now - self._stop_since >= STOP_SECONDS:
            return False
        return any(self._waited[number] < max(FEW, self._longest.get(number, 0)) for number in self._held())

    def tell_of_loss(self) -> None:
        """Say which gradients a stop loses."""
        for number in self._held():
            logger.warning(
                "the training stops before the step of optimizer %d; its gradients of %d batches are not in the "
                "checkpoint",
                number,
                self._waited[number],
            )

    def _held(self) -> list[int]:
        return [number for number in self._waited if number not in self._given_up]

    def _limit(self, number: int) -> int:
        if number in self._longest:
            return max(FEW, 2 * self._longest[number])
        return FEW if self._longest else FIRST
