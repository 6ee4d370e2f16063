"""Changes of samplers and data sets from epoch to epoch that no checkpoint holds: each is told of, once.

Looked at are the first numbers and items of a value, so that it costs little: what is longer may change unseen. Random
number generators and samplers inside are seen elsewhere. An iterator is told of if
it goes on from one epoch into the next: where it is cannot be saved.
"""

import logging
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from piton_trainer.state.built_parts import iterators_in, place_of, says_state
from piton_trainer.state.own_generators import is_generator
from piton_trainer.state.plain_values import is_plain, is_small
from piton_trainer.state.row_makers import is_data
from piton_trainer.state.sketches import sketch

logger = logging.getLogger(__name__)

_KEPT = frozenset({Counter, deque, set, frozenset})
"""Kinds of values in makers of rows that are told of: other objects, such as tokenizers, change as they like."""


class UnseenChanges:
    """The samplers of a loader, looked at whenever an epoch begins."""

    def __init__(
        self, samplers: Mapping[str, object], others: Collection[object], makers: Mapping[str, object] | None = None
    ) -> None:
        """Look at those samplers, and at what makes rows, but not at its data; `others` are seen by themselves."""
        self._samplers = samplers
        self._makers = makers or {}
        self._others = others
        self._before: dict[str, Any] = {}
        self._iterators: list[tuple[str, Any, Any]] = []
        """Those that have something left as an epoch begins, and where they are."""
        self._told: set[str] = set()

    def begin_epoch(self) -> None:
        """Tell of what is not what it was when the epoch before began."""
        now = {
            f"{name}.{key}": sketch(value)
            for name, sampler in self._samplers.items()
            for key, value in list(vars(sampler).items())
            if not is_plain(value) and not self._is_seen(value)
        }
        now |= {
            f"{name}.{key}": sketch(value, deep=1)
            for name, maker in self._makers.items()
            for key, value in list(vars(maker).items())
            if type(value) in _KEPT and not is_small(value) and not self._is_seen(value) and not is_data(key, value)
        }
        for name in now.keys() & self._before.keys() - self._told:
            if now[name] != self._before[name]:
                self._told.add(name)
                logger.warning(
                    "loader: its %s changes from epoch to epoch and is not in the checkpoint, so after a resume "
                    "batches may be others; keep it in numbers, texts, or lists, dicts, arrays or tensors of them",
                    name,
                )
        self._before = now
        found = [(name, iterator, place_of(iterator)) for name, iterator in self._iterators_now()]
        self._iterators = [(name, iterator, place) for name, iterator, place in found if place is not None]

    def see_save(self) -> None:
        """Tell of iterators from the epoch before that the one of a save goes on with."""
        now = list(self._iterators_now()) if self._iterators else []
        for name, iterator, place in self._iterators:
            goes_on = any(iterator is other for _, other in now) and place_of(iterator) != place
            if goes_on and (word := f"place of {name}") not in self._told:
                self._told.add(word)
                logger.warning(
                    "loader: its %s is an iterator that goes on from epoch to epoch, and its place is not in the "
                    "checkpoint, so after a resume rows may be trained again; keep a place in numbers, or draw the "
                    "order of each epoch anew",
                    name,
                )

    def _iterators_now(self) -> Iterator[tuple[str, Any]]:
        for name, sampler in {**self._samplers, **self._makers}.items():
            yield from ((f"{name}.{key}", iterator) for key, iterator in iterators_in(vars(sampler)))

    def _is_seen(self, value: object) -> bool:
        return is_generator(value) or says_state(value) or any(value is other for other in self._others)
