"""The optimizers among the user's objects: their state is captured and restored by the names that modules have.

The module of an optimizer is the one that has all of its parameters. Parameters that none has go by number.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import Optimizer

from piton.contract import InputError
from piton_trainer.checkpoint.format import codec
from piton_trainer.checkpoint.format.layout import WEIGHTS
from piton_trainer.state.held_optimizers import (
    ATTRIBUTES,
    INSIDE,
    Attributes,
    can_be_taken,
    held_by,
    held_state,
    load_in_place,
    says_otherwise,
)
from piton_trainer.state.optimizer_values import load
from piton_trainer.state.optimizers import (
    Given,
    names_of,
    optimizers_of,
    parameters_of,
    restore,
    stateless,
    templates,
)
from piton_trainer.state.roles import is_spread
from piton_trainer.state.state_dicts import (
    Captured,
    ModuleState,
    OptimizerState,
    parameters_by_name,
    walked_names,
)

logger = logging.getLogger(__name__)

MODEL = WEIGHTS[0]


class TrackedOptimizers:
    """Optimizers by the names of objects, one or several for each name."""

    def __init__(self, objects: Mapping[str, Any], modules: Mapping[str, ModuleState], flaws: dict[str, str]) -> None:
        """Find the optimizers among the objects.

        Args:
            objects: all of the user's.
            modules: states of those that are modules.
            flaws: gets parts that would not come back, and what to do, by key.
        """
        self._objects, self._modules, self._flaws = objects, modules, flaws
        known = {id(optimizer) for value in objects.values() for optimizer in optimizers_of(value)}
        self._own = {
            name: [
                _Optimizer(one, f"{name}/{number}", flaws, known=known)
                for number, one in enumerate(optimizers_of(value))
            ]
            for name, value in objects.items()
            if optimizers_of(value)
        }

    def __contains__(self, name: str) -> bool:
        return name in self._own

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def capture(self, name: str) -> Captured:
        """Return the state of the optimizers of this name; those of all modules are captured by now.

        Raises:
            ValueError: an optimizer holds what a checkpoint cannot hold.
        """
        documents, tensors = list[Any](), dict[str, Tensor]()
        for one in self._own[name]:
            document, own = self._captured(one)
            documents.append(document)
            tensors |= own
        return documents, tensors

    def momenta(self, name: str, document: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the state that cannot be created anew: momenta that are sharded like their parameters, or on a GPU.

        Raises:
            ValueError: the checkpoint has another number of optimizers.
        """
        optimizers = optimizers_of(self._objects[name])
        if len(document) != len(optimizers):
            raise InputError(
                f"the checkpoint has {len(document)} optimizers as {name}, the script has {len(optimizers)}"
            )
        live: dict[str, Tensor] = {}
        fresh: dict[str, Tensor] = {}
        for number, (optimizer, saved) in enumerate(zip(optimizers, document, strict=True)):
            home = self._home(optimizer)
            if home is None or not saved["state"] or self._is_taken(self._own[name][number]):
                continue
            like = templates(self._objects[home], optimizer, saved, f"{name}/{number}")
            (live if optimizer.state else fresh).update(like)
        return live, fresh

    def restore(
        self, name: str, states: Any, dtypes: Mapping[str, torch.dtype], documents: Mapping[str, Any]
    ) -> list[str]:
        """Put saved states into the optimizers of this name; return what is to be told.

        Args:
            name: of the object.
            states: the joined documents.
            dtypes: of tensors in the checkpoint, by key.
            documents: of all objects.

        Raises:
            ValueError: an optimizer refuses its state.
        """
        told = list[str]()
        for number, (one, saved) in enumerate(zip(self._own[name], states, strict=True)):
            called = name if len(self._own[name]) == 1 else f"{name}[{number}]"
            told += self._restore(one, saved, called, dtypes, documents)
        return told

    def _captured(self, one: "_Optimizer") -> Captured:
        is_taken = self._is_taken(one)
        document, tensors = self._taken(one) if is_taken else self._said(one)
        document = {**document, **one.given.to_document()}
        if not is_taken:
            return document, tensors
        attributes, more = one.state.split(one.attributes.capture(), f"/{ATTRIBUTES}")
        document |= {ATTRIBUTES: attributes} if attributes else {}
        parts = {path: self._captured(inner) for path, inner in one.inside.items()}
        document |= {INSIDE: {path: part for path, (part, _) in parts.items()}} if parts else {}
        return document, {**tensors, **more, **{key: value for _, own in parts.values() for key, value in own.items()}}

    def _is_taken(self, one: "_Optimizer") -> bool:
        """True if what an optimizer holds is saved, and not what it says."""
        if not one.is_taken:
            return False
        home = self._home(one.optimizer)
        return can_be_taken(None if home is None else self._objects[home])

    def _taken(self, one: "_Optimizer") -> Captured:
        home = self._home(one.optimizer)
        names = None if home is None else self._modules[home].names or walked_names([self._objects[home]])
        return one.state.split(held_state(one.optimizer, one.state.key, names or {}))

    def _said(self, one: "_Optimizer") -> Captured:
        optimizer, state, home = one.optimizer, one.state, self._home(one.optimizer)
        names = None if home is None else self._modules[home].names
        if home is None and any(map(is_spread, parameters_of(optimizer))):
            flaw = f"{state.key} holds shards of several modules; name one that has them all, as model"
            self._flaws[state.key] = flaw
        if one.inside and not one.has_told:
            one.has_told = True
            logger.warning(
                "%s: the state of %s inside of it is not saved; say session.restore(…, optimizer=[…]) with both",
                state.key,
                next(iter(one.inside)),
            )
        one.tell_of_attributes()
        if home is None or not optimizer.state:
            # Asking torch for names would make an optimizer that has not stepped yet take an empty step.
            modules = [] if home is None and MODEL not in self._modules else [self._objects[home or MODEL]]
            return state.split(stateless(optimizer, names or walked_names(modules)))
        read = partial(get_optimizer_state_dict, self._objects[home], optimizer)
        try:
            return state.split(read()) if names is None else state.capture(names, read)
        except KeyError as error:
            raise InputError(
                "an optimizer holds parameters that are not the model's; put them into the model"
            ) from error

    def _restore(
        self,
        one: "_Optimizer",
        saved: Mapping[str, Any],
        called: str,
        dtypes: Mapping[str, torch.dtype],
        documents: Mapping[str, Any],
    ) -> list[str]:
        home = self._home(one.optimizer)
        parameters = {} if home is None else parameters_by_name(self._objects[home])
        own = {} if home is None else {key: f"{home}/{key}" for key in parameters}
        there = {} if home is None else {key: codec.strides_in(documents[home].get(key)) for key in parameters}
        told = restore(
            one.optimizer,
            saved,
            name=called,
            given=one.given,
            parameters=parameters,
            dtypes={key: dtypes[place] for key, place in own.items() if place in dtypes},
            strides={key: strides for key, strides in there.items() if strides is not None},
            trained=names_of(self._saved_with(home, documents)),
            load=load_in_place if self._is_taken(one) else load,
        )
        one.given = one.given.after(saved)
        one.attributes.restore(saved.get(ATTRIBUTES, {}))
        for path, inner in one.inside.items():
            if path in saved.get(INSIDE, {}):
                told += self._restore(inner, saved[INSIDE][path], f"{called}.{path}", dtypes, documents)
            else:
                told.append(
                    f"{called}.{path}: the checkpoint, of an older trainer, has no state of it: it begins without"
                )
        return told

    def _home(self, optimizer: Optimizer) -> str | None:
        """Return the name of the module that has all parameters of an optimizer; the model's where none has."""
        held = set(map(id, parameters_of(optimizer)))
        for name in sorted(self._modules, key=lambda name: name != MODEL):
            if held.issubset(self._modules[name].names or walked_names([self._objects[name]])):
                return name
        return MODEL if MODEL in self._modules else None

    def _saved_with(self, home: str | None, documents: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the saved states of the optimizers of a module."""
        for name in self._own:
            both = zip(optimizers_of(self._objects[name]), documents[name], strict=False)
            yield [saved for optimizer, saved in both if self._home(optimizer) == home]


class _Optimizer:
    """One optimizer, and those that it holds: the outermost one has them all."""

    def __init__(
        self, optimizer: Optimizer, key: str, flaws: dict[str, str], *, known: Collection[int] | None = None
    ) -> None:
        """`known` are the ids of those that are not sought inside of it; None: nothing is sought, it is inside."""
        held = {} if known is None else held_by(optimizer, known=known)
        self.optimizer = optimizer
        self.state = OptimizerState(optimizer, key, flaws)
        self.given = Given.of(optimizer)
        self.attributes = Attributes(optimizer)
        self.inside = {path: _Optimizer(one, f"{key}/{INSIDE}/{path}", flaws) for path, one in held.items()}
        self.is_taken = known is None or bool(held) or says_otherwise(optimizer)
        """True if a checkpoint has what it holds, and not what it says."""
        self.has_told = False
        self._told: set[str] = set()

    def tell_of_attributes(self) -> None:
        """Tell once of the numbers and texts that it changes beside its state, and leaves out of its state_dict."""
        if type(self.optimizer).state_dict is not Optimizer.state_dict:
            return
        own = self.attributes.capture()
        changed = sorted(key for key in own.keys() - self._told if not key.startswith("_") and own[key] is not True)
        self._told.update(changed)
        if changed:
            logger.warning(
                "%s: its %s changes in the training and is not in its state_dict, so after a resume it begins as in "
                "the script; keep it in state or param_groups of the optimizer",
                self.state.key,
                ", ".join(changed),
            )
