"""Random number generators that the user's objects hold: attributes of a sampler, a data set, a loader or a module.

`random.Random`, numpy's `Generator` and `RandomState`, and `torch.Generator`, one level deep: what a transform inside
of a data set holds, or a closure, is not seen. `session.restore(rng=…)` names those.
"""

import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from piton.contract import InputError

TOLD = ("loader", "sampler", "batch_sampler", "batch_sampler.sampler")
"""Names of the parts of a loader that are told which epoch it is."""
_SAMPLERS = ("sampler", "batch_sampler")
_SAMPLERS_DEEP = 4
RNG = "rng"
"""The name under which a session is given generators that nobody would see."""


class OwnGenerators:
    """Generators by names that are the same in each attempt. A generator that is replaced keeps its name."""

    def __init__(
        self,
        *,
        loaders: Iterable[object] = (),
        modules: Mapping[str, nn.Module] | None = None,
        owners: Mapping[str, object] | None = None,
        named: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the generators of these loaders and modules, those in attributes of these owners, and those named."""
        self._named = dict(named or {})
        self._of_loaders: dict[str, object] = {}
        self._owners = dict(owners or {})
        self.look_up(loaders)
        # A model may have thousands of modules; which of them hold any is looked up once.
        for name, root in (modules or {}).items():
            inside = {f"{name}.{path}" if path else name: module for path, module in root.named_modules()}
            self._owners |= {path: module for path, module in inside.items() if any(_held_by(module))}

    def look_up(self, loaders: Iterable[object]) -> None:
        """Take the generators of these loaders instead."""
        self._of_loaders = {name: part for _, name, part in parts_in(loaders)}

    def capture(self) -> dict[str, Any]:
        """The state of each generator by its name, as JSON and tensors."""
        states = {name: _state_of(generator) for name, generator in self._found()}
        return {name: state for name, state in states.items() if state is not None}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Put those back that are in the states, and of the kind that they were."""
        for name, generator in self._found():
            if name in states:
                _put_back(generator, states[name])

    def _found(self) -> Iterator[tuple[str, Any]]:
        known: list[object] = []
        owners = (self._of_loaders | self._owners).items()
        of_owners = ((f"{name}.{key}", value) for name, owner in owners for key, value in _held_by(owner))
        for name, generator in (*self._named.items(), *of_owners):
            if not any(generator is other for other in known):
                known.append(generator)
                yield name, generator


def parts_of(loader: object) -> dict[str, object]:
    """Return a loader and those of its parts that may draw random numbers, by name; the deepest samplers last."""
    samplers = _samplers_in(loader, "", depth=_SAMPLERS_DEEP)
    parts = {
        "loader": loader,
        **{name: samplers.get(name) for name in TOLD[1:]},
        "dataset": getattr(loader, "dataset", None),
        "collate_fn": getattr(loader, "collate_fn", None),
        **{name: part for name, part in samplers.items() if name not in TOLD},
    }
    return {name: part for name, part in parts.items() if part is not None}


def parts_in(loaders: Iterable[object]) -> Iterator[tuple[object, str, object]]:
    """Yield each loader with its parts and their names, which begin with its number if it is not the first."""
    for number, loader in enumerate(loaders):
        prefix = f"{number}." if number else ""
        yield from ((loader, f"{prefix}{name}", part) for name, part in parts_of(loader).items())


def _samplers_in(owner: object, prefix: str, *, depth: int) -> dict[str, object]:
    """Return the samplers of a loader or a sampler: those of batches, and accelerate's, have others inside."""
    found: dict[str, object] = {}
    for name in _SAMPLERS if depth else ():
        if (part := getattr(owner, name, None)) is not None:
            found |= {f"{prefix}{name}": part, **_samplers_in(part, f"{prefix}{name}.", depth=depth - 1)}
    return found


def named_generators(value: object) -> dict[str, Any]:
    """Return the generators that `session.restore(rng=…)` names: one, or several in a list or by names.

    Raises:
        ValueError: something else is among them.
    """
    if isinstance(value, Mapping):
        found = {f"{RNG}.{name}": item for name, item in value.items()}
    elif isinstance(value, list | tuple):
        found = {f"{RNG}.{number}": item for number, item in enumerate(value)}
    else:
        found = {} if value is None else {RNG: value}
    for name, item in found.items():
        if not is_generator(item):
            raise InputError(
                f"{name}: a {type(item).__name__} is no random number generator that can be saved; give a "
                "random.Random, a generator of numpy's or a torch.Generator, or several in a list"
            )
    return found


def _held_by(owner: object) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in getattr(owner, "__dict__", {}).items() if is_generator(value))


def is_generator(value: object) -> bool:
    """True for a random number generator of a kind that can be saved."""
    return isinstance(value, (torch.Generator, random.Random, *_numpy_kinds()))


def _numpy_kinds() -> tuple[type, ...]:
    """Return the kinds of numpy; a program that has not imported it has none of its generators."""
    numpy = sys.modules.get("numpy")
    return () if numpy is None else (numpy.random.Generator, numpy.random.RandomState)


def _state_of(generator: Any) -> Any:
    """Return a generator's state; None if it cannot be saved, as that of the system's own."""
    try:
        if isinstance(generator, torch.Generator):
            return generator.get_state()
        if isinstance(generator, random.Random):
            return generator.getstate()
        bits = getattr(generator, "bit_generator", None)
        return _plain(generator.get_state(legacy=False) if bits is None else bits.state)
    except (NotImplementedError, TypeError):
        return None


def _put_back(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = _arrays(state)
    else:
        generator.set_state(_arrays(state))


def _plain(value: Any) -> Any:
    """Return a state of numpy's with lists for arrays.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        return {"array": value.tolist(), "dtype": str(value.dtype)} if value.shape else value.tolist()
    if isinstance(value, str | int | float):
        return value
    raise TypeError(type(value))


def _arrays(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"array", "dtype"}:
        return sys.modules["numpy"].array(value["array"], dtype=value["dtype"])
    return {name: _arrays(item) for name, item in value.items()}
