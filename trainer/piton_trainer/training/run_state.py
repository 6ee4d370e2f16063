"""The state of a run at one moment, of all ranks; and a refusal of what would not come back from a checkpoint.

    fresh     first gather: refused        first checkpoint, read again: refused
    resumed   …           : told           …                           : told            later: told in both

A run that has resumed from a step goes on, whatever is found: it would lose what it has, and it has gone on so far.

`objects` of the JSON are rank 0's. An object without parameters whose state differs between ranks, such as a generator
or a counter, is also in the JSON of each rank, and so are `buffers` of modules that differ. Weights that differ would
come back as a mixture of the ranks' own: they are refused up to the first save, and told later. With `per_rank` each
rank has all objects of its own.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from piton.contract import InputError
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.format import codec
from piton_trainer.checkpoint.format.layout import PER_RANK
from piton_trainer.checkpoint.load.read_back import ReadBack
from piton_trainer.errors import BadConfig
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.state import agreement
from piton_trainer.state.agreement import Agreement, Digests
from piton_trainer.state.data_position import Randomness
from piton_trainer.state.tracked_objects import LOADER, TrackedObjects
from piton_trainer.training.run_restore import BUFFERS, FROZEN, OBJECTS

logger = logging.getLogger(__name__)

Flaws = Mapping[str, str]
"""Parts of the state that would not come back, and what to do, by key."""
_READ_BACK = "the first checkpoint"
"""Key of what was found when it was read again."""


class _Word(NamedTuple):
    """Words of a rank to the others about its state."""

    part: dict[str, Any]
    """The state that only this rank has, for rank 0."""
    digests: Digests
    flaws: Flaws


@dataclass(kw_only=True)
class _Captured:
    """The state of this rank."""

    documents: dict[str, Any] = field(default_factory=dict)
    """JSON of the objects."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Those of the objects."""
    own: dict[str, Tensor] = field(default_factory=dict)
    """Those that only this rank has."""


class RunState:
    """Gathers the state of a run, again and again. All ranks call `gather` together."""

    def __init__(self, ranks: Ranks) -> None:
        self.has_resumed = False
        """True if the run goes on from a checkpoint."""
        self._ranks = ranks
        self._agreement = Agreement()
        self._told: Flaws | None = None
        """None before the first capture."""
        self._has_saved = False
        self._read_back: ReadBack | None = None
        """Of the first save, on rank 0."""

    @property
    def warning(self) -> str | None:
        """A part of the state that would not come back; None without any."""
        return next(iter((self._told or {}).values()), None)

    def gather(
        self, objects: TrackedObjects, feed: Randomness, *, step: int | None = None, is_finished: bool = False
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the JSON of all ranks' objects, and the tensors of this one's.

        Where an object differs between ranks for the first time, all of them gather once more.

        Args:
            objects: the user's objects.
            feed: where this rank is in the data, and its random numbers.
            step: the step that this is saved as; None: nothing is saved.
            is_finished: True if the training is over.

        Raises:
            BadConfig: something of it could not be saved, or would not come back.
        """
        is_first_save = step is not None and not self._has_saved
        while True:
            captured = _Captured()
            is_whole = is_first_save or self._told is None
            words = self._ranks.together(partial(self._capture, objects, feed, captured, is_whole=is_whole))
            flaws = {key: flaw for word in words for key, flaw in word.flaws.items()}
            mixed = self._mixed(words, objects, captured) if not (flaws and self._has_just_begun) else {}
            is_mixture = _READ_BACK in flaws or (is_first_save and bool(mixed))
            self._judge({**flaws, **mixed}, is_refused=is_mixture and not self.has_resumed and not is_finished)
            if self._agreement.settle([word.digests for word in words]):
                break
        tensors = captured.tensors
        if not (self._ranks.is_main or objects.per_rank):
            replicated = objects.roles(captured.documents, tensors).replicated
            tensors = {key: tensor for key, tensor in tensors.items() if key in replicated}
        tensors |= captured.own
        if step is not None:
            self._keep(step, tensors)
        return {"objects": captured.documents, "ranks": [word.part for word in words]}, tensors

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

    def _keep(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a part of what is being saved as of this step, to compare it later; the first time only."""
        if self._ranks.is_main and not self._has_saved:
            told = self._told or {}
            self._read_back = ReadBack(step, {k: v for k, v in tensors.items() if k.partition("/")[0] not in told})
        self._has_saved = True

    def _mixed(self, words: Sequence[_Word], objects: TrackedObjects, captured: _Captured) -> Flaws:
        """Return the objects whose weights turn out to differ between ranks, and what to do; all ranks together."""
        found = dict[str, str]()
        for name in self._agreement.unequal([word.digests for word in words]):
            if name not in (self._told or {}):
                roles = objects.roles(captured.documents, captured.tensors)
                weights = None if objects.per_rank else roles.weights.get(name)
                own = None if weights is None else agreement.contents(weights, captured.tensors)
                found[name] = agreement.difference(name, self._ranks.gather(own))
        return found

    def _judge(self, flaws: Flaws, *, is_refused: bool) -> None:
        """Refuse what would not come back, as long as nothing is lost by that; else warn. The same on all ranks.

        Raises:
            BadConfig: the run has just begun, or it is to be refused.
        """
        told = self._told or {}
        news = [flaw for key, flaw in flaws.items() if key not in told]
        more = f", and {len(news) - 1} more like it" if news[1:] else ""
        if news and (self._has_just_begun or is_refused):
            raise BadConfig(f"nothing could resume from a checkpoint of this: {news[0]}{more}")
        self._told = {**told, **flaws}
        if news and self._ranks.is_main:
            logger.warning("what is saved will not come back as it is: %s%s; training goes on", news[0], more)

    def _capture(self, objects: TrackedObjects, feed: Randomness, captured: _Captured, *, is_whole: bool) -> _Word:
        """Add this rank's state to `captured`, and return what the others have to know."""
        is_first, prefix = self._has_just_begun, f"rank{self._ranks.rank}"
        if is_first and objects.flaws:
            return _Word({}, Digests(), objects.flaws)
        try:
            captured.documents, captured.tensors = objects.capture(is_first=is_first)
            own = {**feed.part(), LOADER: objects.capture_loader()}
            part, captured.own = objects.split(own, prefix)
        except InputError as error:
            raise BadConfig(str(error)) from error
        if is_first and objects.flaws:
            return _Word({}, Digests(), objects.flaws)
        if self._ranks.is_main or objects.per_rank:
            part[FROZEN] = objects.frozen()
        digests = Digests()
        if objects.per_rank:
            part |= {PER_RANK: True, OBJECTS: captured.documents}
            captured.own |= {f"{prefix}/{OBJECTS}/{key}": tensor for key, tensor in captured.tensors.items()}
            captured.documents, captured.tensors = {}, {}
        elif self._ranks.world_size > 1:
            digests = self._compare(objects, captured, part, prefix, is_whole=is_whole)
        problem = None if self._read_back is None else self._read_back.problem
        return _Word(part, digests, objects.flaws if problem is None else {_READ_BACK: problem, **objects.flaws})

    def _compare(
        self, objects: TrackedObjects, captured: _Captured, part: dict[str, Any], prefix: str, *, is_whole: bool
    ) -> Digests:
        """Add what this rank has its own of to its part; return the digests of the rest."""
        documents, tensors = captured.documents, captured.tensors
        parts = objects.own_parts(documents, tensors)
        for name in sorted(self._agreement.per_rank & parts.keys()):
            kind = OBJECTS if name in objects.plain else BUFFERS
            state = codec.join(parts[name], tensors.__getitem__)
            own, more = objects.split(state, f"{prefix}/{kind}/{name}")
            part.setdefault(kind, {})[name] = own
            captured.own |= more
        weights = objects.roles(documents, tensors).weights
        return self._agreement.digests(parts, weights, tensors, is_whole=is_whole)
