"""The state of a run at one moment, of all ranks; and a refusal of what would not come back from a checkpoint.

    fresh     first gather: refused        first checkpoint, read again: refused
    resumed   …           : told           …                           : told            later: told in both

A run that has resumed from a step goes on, whatever is found: it would lose what it has, and it has gone on so far.

`objects` of the JSON are rank 0's. An object without parameters whose state differs between ranks, such as a generator
or a counter, is also in the JSON of each rank.
"""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from piton.contract import InputError
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.load.read_back import ReadBack
from piton_trainer.errors import BadConfig
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state.agreement import Agreement, Digests
from piton_trainer.state.data_position import Randomness
from piton_trainer.state.tracked_objects import LOADER, TrackedObjects
from piton_trainer.training.run_restore import OBJECTS

logger = logging.getLogger(__name__)

Flaws = Mapping[str, str]
"""Parts of the state that would not come back, and what to do, by key."""
_READ_BACK = "the first checkpoint"
"""Key of what was found when it was read again."""


class RunState:
    """Gathers the state of a run, again and again. All ranks call `gather` together."""

    def __init__(self, ranks: Ranks) -> None:
        self.has_resumed = False
        """True if the run goes on from a checkpoint."""
        self._ranks = ranks
        self._agreement = Agreement()
        self._told: Flaws | None = None
        """None before the first capture."""
        self._read_back: ReadBack | None = None
        """Of the first save, on rank 0."""

    @property
    def warning(self) -> str | None:
        """A part of the state that would not come back; None without any."""
        return next(iter((self._told or {}).values()), None)

    def gather(
        self, objects: TrackedObjects, feed: Randomness, *, is_finished: bool = False
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the JSON of all ranks' objects, and the tensors of this one's.

        Where an object differs between ranks for the first time, all of them gather once more.

        Raises:
            BadConfig: something of it could not be saved, or would not come back.
        """
        while True:
            tensors: dict[str, Tensor] = {}
            documents: dict[str, Any] = {}
            found = self._ranks.together(partial(self._capture, objects, feed, documents, tensors))
            self._judge({key: flaw for _, _, flaws in found for key, flaw in flaws.items()}, is_finished=is_finished)
            if self._agreement.settle([digests for _, digests, _ in found]):
                return {"objects": documents, "ranks": [part for part, _, _ in found]}, tensors

    def keep(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a part of what is being saved as of this step, to compare it later; the first time only."""
        if self._ranks.is_main and self._read_back is None:
            self._read_back = ReadBack(step, tensors)

    def look_back(self, saved: Saved | None) -> None:
        """Begin to compare, once the newest checkpoint that is durable is that of the first save."""
        if self._read_back is not None and saved is not None and saved.step == self._read_back.step:
            self._read_back.begin(saved.folder)

    def close(self) -> None:
        """Stop comparing."""
        if self._read_back is not None:
            self._read_back.stop()

    @property
    def _has_just_begun(self) -> bool:
        """True at the first capture of a run that has resumed from nothing."""
        return self._told is None and not self.has_resumed

    def _judge(self, flaws: Flaws, *, is_finished: bool) -> None:
        """Refuse what would not come back, as long as nothing is lost by that; else warn. The same on all ranks.

        Raises:
            BadConfig: the run has just begun, or its first checkpoint is not what was to be saved.
        """
        told = self._told or {}
        news = [flaw for key, flaw in flaws.items() if key not in told]
        is_other = _READ_BACK in flaws and not self.has_resumed and not is_finished
        more = f", and {len(news) - 1} more like it" if news[1:] else ""
        if news and (self._has_just_begun or is_other):
            raise BadConfig(f"nothing could resume from a checkpoint of this: {news[0]}{more}")
        self._told = {**told, **flaws}
        if news and self._ranks.is_main:
            logger.warning("what is saved will not come back as it is: %s%s; training goes on", news[0], more)

    def _capture(
        self, objects: TrackedObjects, feed: Randomness, documents: dict[str, Any], tensors: dict[str, Tensor]
    ) -> tuple[dict[str, Any], Digests, Flaws]:
        """Add this rank's state to `documents` and `tensors`.

        Returns:
            The state that only this rank has, for rank 0, digests of the objects that may differ between ranks, and
            the flaws.
        """
        is_first, prefix = self._has_just_begun, f"rank{self._ranks.rank}"
        if is_first and objects.flaws:
            return {}, {}, objects.flaws
        try:
            shared, shared_tensors = objects.capture(is_first=is_first)
            own = {"rng": feed.rng(), "epoch_rng": feed.epoch_rng, LOADER: objects.capture_loader()}
            part, part_tensors = objects.split(own, prefix)
        except InputError as error:
            raise BadConfig(str(error)) from error
        if is_first and objects.flaws:
            return {}, {}, objects.flaws
        digests: Digests = {}
        if self._ranks.world_size > 1:
            if self._agreement.per_rank:
                part[OBJECTS], more = objects.capture_own(self._agreement.per_rank, f"{prefix}/{OBJECTS}")
                part_tensors |= more
            digests = self._agreement.digests(objects.plain, shared, shared_tensors)
            if not self._ranks.is_main:
                replicated = objects.replicated(shared_tensors)
                shared_tensors = {key: tensor for key, tensor in shared_tensors.items() if key in replicated}
        documents.update(shared)
        tensors.update(shared_tensors | part_tensors)
        problem = None if self._read_back is None else self._read_back.problem
        return part, digests, objects.flaws if problem is None else {_READ_BACK: problem, **objects.flaws}
