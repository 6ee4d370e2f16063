"""The user's objects, as a checkpoint sees them.

Modules and optimizers go through `torch.distributed.checkpoint.state_dict`: names instead of numbers, and sharded
tensors stay sharded, so that another world size can load them. Anything else brings `state_dict` and
`load_state_dict`; `torch.Generator`s are understood as well.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import starmap
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    set_model_state_dict,
)
from torch.optim import Optimizer

from piton.contract import InputError
from piton_trainer.checkpoint.format import codec
from piton_trainer.checkpoint.format.layout import WEIGHTS
from piton_trainer.checkpoint.load.rank_loader import Targets
from piton_trainer.checkpoint.save.overlapped_copy import local_tensors
from piton_trainer.state.batch_skipping import has_state
from piton_trainer.state.optimizers import (
    optimizers_of,
    parameters_of,
    wrapped_in,
)
from piton_trainer.state.refusals import casts, checked, flaw_of, parts_of_module, rebuilt, refusing, switched
from piton_trainer.state.roles import Roles, is_spread, like_shards, steady_of
from piton_trainer.state.state_dicts import (
    Captured,
    ModuleState,
    freeze_as,
    frozen_names,
    in_place,
    lay_out_buffers,
    parameters_by_name,
    state_of,
)
from piton_trainer.state.tracked_optimizers import TrackedOptimizers

MODEL, EMA = WEIGHTS
LOADER = "loader"


class TrackedObjects:
    """Named objects that are saved and restored together."""

    def __init__(self, objects: Mapping[str, Any], *, per_rank: bool = False) -> None:
        self.per_rank = per_rank
        """True if each rank has all of them for itself."""
        self._objects = {name: checked(name, value) for name, value in objects.items() if _is_ours(name, value)}
        # In the order that all ranks give them in: some modules talk to other ranks when they say their state.
        modules = self.modules(*(name for name in self._objects if name != LOADER))
        self.flaws = dict(filter(None, starmap(flaw_of, self._objects.items())))
        """Parts of what has been captured that would not come back, and what to do, by key."""
        self._modules = {name: ModuleState(module, name, self.flaws) for name, module in modules.items()}
        self._optimizers = TrackedOptimizers(self._objects, self._modules, self.flaws)
        self._built: dict[str, Any] = {}
        """Names of the parts of modules at their first capture."""
        self._roles: Roles | None = None
        """Of the newest capture; they stay the same as long as the keys do."""
        self._frozen: dict[str, list[str]] | None = None
        self._steady: frozenset[str] = frozenset()
        self._places: tuple[list[str], list[int], list[int]] | None = None
        """Locations of tensors at the last call of `steady`, and contents of the optimizers; while both are the same,
        so is the answer."""

    def modules(self, *names: str) -> dict[str, nn.Module]:
        """Those of the named objects that are given and are modules."""
        found = {name: self._objects.get(name) for name in names}
        return {name: value for name, value in found.items() if isinstance(value, nn.Module)}

    def is_given(self, thing: object) -> bool:
        """True if this very object is one of them."""
        return any(thing is value for value in self._objects.values())

    @property
    def has_local_position(self) -> bool:
        """True if there is a loader whose state, as far as it says, means nothing to another number of ranks."""
        return LOADER in self._objects and not getattr(self._objects[LOADER], "position_is_global", False)

    @property
    def optimizers(self) -> list[Optimizer]:
        """All of them, whatever they are called."""
        return [optimizer for value in self._objects.values() for optimizer in optimizers_of(value)]

    @property
    def wrapped_optimizers(self) -> list[Optimizer]:
        """Those inside of objects that step and are no optimizers of torch themselves, such as a Lookahead."""
        return [inner for name in self.plain for inner in wrapped_in(self._objects[name])]

    @torch.no_grad()
    def steady(self, tensors: Mapping[str, Tensor]) -> frozenset[str]:
        """Return the tensors that optimizers change when they step, or that are an average of such."""
        ours = tuple(f"{name}/" for name in (*self._modules, *self._optimizers))
        tensors = {key: tensor for key, tensor in tensors.items() if key.startswith(ours)}
        held = [id(parameter) for optimizer in self.optimizers for parameter in parameters_of(optimizer)]
        places = (list(tensors), list(map(Tensor.data_ptr, local_tensors(tensors.values()))), held)
        if places != self._places:
            averages = [value for module in self.modules(EMA).values() for value in module.state_dict().values()]
            self._steady, self._places = steady_of(tensors, self.optimizers, averages), places
        return self._steady

    def capture(self, *, is_first: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the state of everything but the loader, as JSON and tensors.

        Raises:
            ValueError: it holds what a checkpoint cannot hold; or, where it is the first time, an object fails.
        """
        documents, tensors = dict[str, Any](), dict[str, Tensor]()
        others = (name for name in self._objects if name != LOADER and name not in self._modules)
        for name in (*self._modules, *others):
            with refusing(name, "say") if is_first else nullcontext():
                module = self._modules.get(name)
                documents[name], own = self._captured(name) if module is None else module.capture()
            if module is not None and (
                flaw := rebuilt(name, self._built.setdefault(name, documents[name]), documents[name])
            ):
                self.flaws[name] = flaw
            apart = len(tensors) + len(own)
            tensors |= own
            if len(tensors) < apart:
                self.flaws[name] = f"{name}: another object has a {min(own)} too; give it a name without a slash"
        if self.per_rank and (spread := [key for key, value in tensors.items() if is_spread(value)]):
            self.flaws[spread[0]] = (
                f"{spread[0]} is spread over ranks, and each has its own by per_rank=True; omit that"
            )
        return documents, tensors

    def roles(self, documents: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Roles:
        """Return what ranks have alike, and what each may have its own of, of a state that was captured."""
        if self._roles is None or self._roles.keys != list(tensors):
            self._roles = Roles(documents, tensors, self.modules(*self._modules), list(self._optimizers))
        return self._roles

    def own_parts(self, documents: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the JSON of what may differ between ranks: of plain objects, and of buffers of modules.

        An object without any state here has what rank 0 has: some gather theirs on rank 0 only.
        """
        buffers = self.roles(documents, tensors).buffers
        parts = {name: {fqn: documents[name][fqn] for fqn in fqns} for name, fqns in buffers.items()}
        return {name: documents[name] for name in self.plain if documents[name]} | parts

    def _is_shared(self, name: str) -> bool:
        """True if an object is a module or optimizers, which ranks train together."""
        return name in self._modules or name in self._optimizers

    @property
    def _has_shards(self) -> bool:
        """True if a module has parameters that are spread over ranks; then objects may have tensors like them."""
        return any(
            is_spread(value) for module in self.modules(*self._modules).values() for value in module.parameters()
        )

    @property
    def plain(self) -> frozenset[str]:
        """The names of the objects that are neither modules nor optimizers nor the loader."""
        return frozenset(name for name in self._objects if name != LOADER and not self._is_shared(name))

    def split(self, state: Any, key: str) -> Captured:
        """Split a piece of state as `codec.split` does, and remember its flaws."""
        return codec.split(state, key, flaws=self.flaws)

    def capture_loader(self) -> Any:
        """The state of the loader, which every rank has its own of; None when it has none."""
        return state_of(self._objects[LOADER]) if LOADER in self._objects else None

    def wanted(self, documents: Mapping[str, Any]) -> Targets:
        """The tensors of the saved states, so that they can be loaded; no object is changed.

        Raises:
            ValueError: an object is not in the checkpoint, or does not fit what was saved.
        """
        live: dict[str, Tensor] = {}
        fresh: dict[str, Tensor | None] = {}
        for name, value in self._objects.items():
            document = documents.get(name)
            if document is None and name == LOADER:
                continue  # whoever begins the steps says whether that matters
            if document is None:
                raise InputError(f"the checkpoint has no state of {name}; it was saved without it")
            fresh |= dict.fromkeys(codec.keys(document))
            if isinstance(value, nn.Module):
                live |= parts_of_module(name, value, document)
            elif name in self._optimizers:
                own_live, own_fresh = self._optimizers.momenta(name, document)
                live |= own_live
                fresh |= own_fresh
            elif name != LOADER and self._has_shards:
                fresh |= like_shards(state_of(value), name, fresh.keys())
        return Targets(live=live, fresh={key: tensor for key, tensor in fresh.items() if key not in live})

    def explain(self, documents: Mapping[str, Any]) -> None:
        """A tensor does not fit: see whether an object without tensors, such as a vocabulary, has a plainer reason.

        Raises:
            BadConfig: it has.
        """
        for name, value in self._objects.items():
            document = documents.get(name)
            is_plain = not isinstance(value, nn.Module | torch.Generator) and not optimizers_of(value)
            if is_plain and document is not None and not codec.keys(document):
                value.load_state_dict(codec.join(document, dict[str, Tensor]().__getitem__))

    def frozen(self) -> dict[str, list[str]]:
        """Return the names of parameters that were not trained at the newest capture, by module."""
        now = {name: frozen_names(state.parameters) for name, state in self._modules.items()}
        return now if self._frozen is None else self._frozen

    def leave_loop(self) -> None:
        """Remember which parameters were trained: after the loop a script may freeze them all."""
        modules = self.modules(*self._objects).items()
        self._frozen = {name: frozen_names(parameters_by_name(module)) for name, module in modules}

    def freeze_as(self, frozen: Mapping[str, Sequence[str]]) -> list[str]:
        """Let the parameters be trained that were trained at a save; return what is to be told of that."""
        modules = self.modules(*frozen).items()
        return [line for name, module in modules for line in freeze_as(name, module, frozenset(frozen[name]))]

    def restore(
        self, documents: Mapping[str, Any], tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
    ) -> list[str]:
        """Put the saved states into the objects; return what is to be told of them.

        Args:
            documents: the state of each object.
            tensors: those that were wanted, filled.
            dtypes: the types that they have in the checkpoint.

        Raises:
            ValueError: an object refuses its state.
        """
        told = []
        for name, value in self._objects.items():
            if documents.get(name) is None:
                continue
            document = in_place(documents[name]) if isinstance(value, nn.Module) else documents[name]
            state = codec.join(document, tensors.__getitem__)
            with refusing(name, "take"):
                if isinstance(value, nn.Module):
                    if state:
                        set_model_state_dict(value, state)
                    lay_out_buffers(value, documents[name])
                    told += casts(name, state, dtypes)
                elif name in self._optimizers:
                    told += self._optimizers.restore(name, state, dtypes, documents)
                elif isinstance(value, torch.Generator):
                    value.set_state(state["generator"])
                else:
                    told += switched(name, value, state)
                    value.load_state_dict(state)
        return told

    def _captured(self, name: str) -> Captured:
        """The state of an object that is no module; those are captured by now."""
        if name in self._optimizers:
            return self._optimizers.capture(name)
        return self.split(state_of(self._objects[name]), name)


def _is_ours(name: str, value: Any) -> bool:
    """True if an object carries state; a plain DataLoader does not, `data_position` replays it instead."""
    return value is not None and (name != LOADER or has_state(value))
