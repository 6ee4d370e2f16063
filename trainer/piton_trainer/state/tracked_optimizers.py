"""The optimizers among the user's objects: their state is captured and restored by the names that modules have.

The module of an optimizer is the one that has all of its parameters. Parameters that none has go by number.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import Optimizer

from piton.contract import InputError
from piton_trainer.checkpoint.format import codec
from piton_trainer.checkpoint.format.layout import WEIGHTS
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
        self._states = {
            name: [OptimizerState(one, f"{name}/{number}", flaws) for number, one in enumerate(optimizers_of(value))]
            for name, value in objects.items()
            if optimizers_of(value)
        }
        self._given = {name: list(map(Given.of, optimizers_of(objects[name]))) for name in self._states}

    def __contains__(self, name: str) -> bool:
        return name in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def capture(self, name: str) -> Captured:
        """Return the state of the optimizers of this name; those of all modules are captured by now.

        Raises:
            ValueError: an optimizer holds what a checkpoint cannot hold.
        """
        parts = [
            self._captured(optimizer, state)
            for optimizer, state in zip(optimizers_of(self._objects[name]), self._states[name], strict=True)
        ]
        given = [optimizer.to_document() for optimizer in self._given[name]]
        documents = [{**document, **own} for (document, _), own in zip(parts, given, strict=True)]
        return documents, {key: tensor for _, own in parts for key, tensor in own.items()}

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
            if home is None or not saved["state"]:
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
        told, optimizers = list[str](), optimizers_of(self._objects[name])
        for number, (optimizer, saved) in enumerate(zip(optimizers, states, strict=True)):
            called = name if len(optimizers) == 1 else f"{name}[{number}]"
            told += self._restore(optimizer, saved, called, self._given[name][number], dtypes, documents)
            self._given[name][number] = self._given[name][number].after(saved)
        return told

    def _captured(self, optimizer: Optimizer, state: OptimizerState) -> Captured:
        home = self._home(optimizer)
        names = None if home is None else self._modules[home].names
        if home is None and any(map(is_spread, parameters_of(optimizer))):
            flaw = f"{state.key} holds shards of several modules; name one that has them all, as model"
            self._flaws[state.key] = flaw
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
        optimizer: Optimizer,
        saved: Mapping[str, Any],
        called: str,
        given: Given,
        dtypes: Mapping[str, torch.dtype],
        documents: Mapping[str, Any],
    ) -> list[str]:
        home = self._home(optimizer)
        parameters = {} if home is None else parameters_by_name(self._objects[home])
        own = {} if home is None else {key: f"{home}/{key}" for key in parameters}
        there = {} if home is None else {key: codec.strides_in(documents[home].get(key)) for key in parameters}
        return restore(
            optimizer,
            saved,
            name=called,
            given=given,
            parameters=parameters,
            dtypes={key: dtypes[place] for key, place in own.items() if place in dtypes},
            strides={key: strides for key, strides in there.items() if strides is not None},
            trained=names_of(self._saved_with(home, documents)),
        )

    def _home(self, optimizer: Optimizer) -> str | None:
        """Return the name of the module that has all parameters of an optimizer; the model's where none has."""
        held = set(map(id, parameters_of(optimizer)))
        for name in sorted(self._modules, key=lambda name: name != MODEL):
            if held.issubset(self._modules[name].names or walked_names([self._objects[name]])):
                return name
        return MODEL if MODEL in self._modules else None

    def _saved_with(self, home: str | None, documents: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the saved states of the optimizers of a module."""
        for name in self._states:
            both = zip(optimizers_of(self._objects[name]), documents[name], strict=False)
            yield [saved for optimizer, saved in both if self._home(optimizer) == home]
