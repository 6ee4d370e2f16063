"""A user's callbacks of transformers, with what they keep: an average of the weights, say.

transformers brings callbacks back that are ExportableState. Besides these, one that has `state_dict` and
`load_state_dict` comes back here, and so do random number generators in attributes. What else changes in attributes,
also in those of a Trainer of the user's own class, is told of at a save.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from transformers.trainer_callback import ExportableState

from piton_trainer.checkpoint.format import codec
from piton_trainer.integrations.own_parts import SAMPLE, names_in_code, numbered, place_of, sample_of
from piton_trainer.state.module_attributes import OF_HUGGING_FACE, attribute_sketches
from piton_trainer.state.own_generators import OwnGenerators
from piton_trainer.state.sketches import sketch

logger = logging.getLogger(__name__)

_OF_FRAMEWORKS = (*OF_HUGGING_FACE, "setfit.", "trl.", "piton_trainer.")
_TRAINER, _GENERATORS = "trainer", "<generators>"
"""Name of the Trainer beside those of callbacks, and key of the generators beside their states."""


class OwnCallbacks:
    """The callbacks of a Trainer that are a user's own, by names that are the same in each attempt."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._saved: Mapping[str, Any] = {}
        self._begun: dict[str, Any] = {}
        self._has_begun = False
        self._told: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of those that have one; tell of those that change and have none."""
        self._tell_of_changes()
        states = ((name, self._state(name, item)) for name, item in self._own() if _has_state(item))
        generators = {_GENERATORS: self._generators().capture()}
        return {name: state for name, state in (*states, *generators.items()) if state}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Remember them until all callbacks have begun: they may make anew what they keep."""
        self._saved = states

    def begin(self) -> None:
        """Put their states back, and look at what the others hold, once."""
        if self._has_begun:
            return
        self._has_begun = True
        saved, self._saved = self._saved, {}
        for name, item in self._own():
            if name in saved and _has_state(item):
                try:
                    item.load_state_dict(saved[name])
                except Exception as error:  # noqa: BLE001 - it is a user's code, and trained without this before
                    logger.warning("callback %s: it does not take its state and begins anew: %s", name, error)
        self._generators().restore(saved.get(_GENERATORS, {}))
        self._begun = dict(self._objects())

    def _generators(self) -> OwnGenerators:
        return OwnGenerators(owners={**dict(self._own()), _TRAINER: self._trainer})

    def _own(self) -> Iterator[tuple[str, Any]]:
        callbacks = self._trainer.callback_handler.callbacks
        return numbered(item for item in callbacks if not type(item).__module__.startswith(_OF_FRAMEWORKS))

    def _state(self, name: str, item: Any) -> Any:
        """Return the state of a callback; None, which is told, if a checkpoint cannot hold it."""
        flaws: dict[str, str] = {}
        try:
            state = item.state_dict()
            codec.split(state, name, flaws=flaws)
        except Exception as error:  # noqa: BLE001 - it is a user's code, and trained without this before
            flaws = {name: f"its state_dict cannot be saved: {error}"}
        if flaws and name not in self._told:
            self._told.add(name)
            logger.warning("callback %s: it begins anew after a resume: %s", name, next(iter(flaws.values())))
        return None if flaws else state

    def _tell_of_changes(self) -> None:
        for name, now in self._objects():
            if name not in self._told and now != self._begun.setdefault(name, now):
                self._told.add(name)
                logger.warning(
                    "%s: it changes in the training and is in no checkpoint, so after a resume it begins anew; keep it "
                    "in a callback with state_dict and load_state_dict, and Piton saves what they say",
                    name,
                )

    def _objects(self) -> Iterator[tuple[str, Any]]:
        """Yield a sample of each attribute that no checkpoint has."""
        known = set(map(place_of, self._trainer.model.state_dict().values()))
        yield from attribute_sketches("model", self._trainer.model)
        owners = [(f"callback {name}", item) for name, item in self._own()]
        for name, item in (*owners, (_TRAINER, self._trainer)):
            if item is not self._trainer and (_has_state(item) or isinstance(item, ExportableState)):
                continue
            kind: Any = type(item)
            hidden = names_in_code(kind, _OF_FRAMEWORKS)
            for key, value in list(vars(item).items()):
                if key in hidden or f"{name}.{key}" in self._told:
                    continue
                with suppress(Exception):  # a class of the user's may refuse to be looked at
                    tensors = _tensors(value)
                    own = [tensor for tensor in tensors if place_of(tensor) not in known]
                    found = [sample_of(tensor) for tensor in own[:SAMPLE]] if tensors else sketch(value)
                    if found:
                        yield f"{name}.{key}", found


def _has_state(item: Any) -> bool:
    return callable(getattr(item, "state_dict", None)) and callable(getattr(item, "load_state_dict", None))


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of a module, a dict, a list, or any object with a `state_dict` of these."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.Module):
        value = value.state_dict()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [item for item in items if isinstance(item, Tensor)]
