"""Memory of samplers from epoch to epoch: a count of them, an order that is shuffled in place, or a whole state.

An epoch that is resumed is begun again, so a sampler has to be as it was when the epoch began, and once the batches
that are done are passed over, as it was at the save. Seen are attributes that are numbers, texts, or rows of numbers
(lists, arrays, tensors), as far as they are not as the script has made them; those with a seed in their name, since a
script may draw one; and the state of a sampler with `state_dict` and `load_state_dict` in a loader without these.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from piton_trainer.checkpoint.format import codec
from piton_trainer.state.batch_skipping import has_state
from piton_trainer.state.own_generators import parts_of

logger = logging.getLogger(__name__)

_ROW_MAX = 2**24
"""Numbers in a row that is looked at: to compare a longer one takes too long for a save."""
_STATE = "state_dict()"
"""Name of the whole state of a sampler, among the names of attributes."""
_ARRAY, _LIST = "array", "list"
"""Keys of the numbers of an array of numpy, and of a list that is long."""
_SHORT = 64
_EXACT = {int: torch.int64, float: torch.float64}

Memory = Mapping[str, Mapping[str, Any]]
"""Attributes by name, by the names of the samplers."""


class Samplers:
    """The samplers of loaders, by names that are the same in each attempt."""

    def __init__(self, loaders: Iterable[object] = ()) -> None:
        self._samplers = dict(_samplers_of(loaders))
        self._made = {name: {} if has_state(part) else _attributes(part) for name, part in self._samplers.items()}
        """As the script has made them; one with a state may have been given a saved one since."""
        self._told: set[str] = set()

    def capture(self) -> Memory:
        """Return what is not as the script has made it."""
        found = {name: self._changed(name, part) for name, part in self._samplers.items()}
        return {name: changed for name, changed in found.items() if changed}

    def restore(self, memory: Memory, *, is_begun: bool) -> None:
        """Make the samplers what they were at a capture.

        `is_begun`: the epoch has been opened since, so that a sampler is on its way and takes no state any more.
        """
        for name, part in self._samplers.items():
            held, made = dict(memory.get(name, {})), self._made[name]
            state = held.pop(_STATE, None)
            saved = {key: _unpacked(value) for key, value in held.items()}
            for key in _attributes(part).keys() - saved.keys():  # those that hold something else by now stay
                if key in made:
                    _put(part, key, made[key])
                else:
                    del vars(part)[key]
            for key, value in saved.items():
                if _is_seed(key) and not _is_same(made.get(key, value), value):
                    self._tell(f"{name}.{key}", value, made[key])
                _put(part, key, value)
            if state is not None and not is_begun and not _says(part, state):
                part.load_state_dict(state)

    def _tell(self, name: str, saved: Any, made: Any) -> None:
        if name not in self._told:
            logger.warning(
                "loader: its %s is %s in the checkpoint and %s in the script; training goes on with the checkpoint's",
                name,
                saved,
                made,
            )
        self._told.add(name)

    def _changed(self, name: str, part: Any) -> dict[str, Any]:
        made = self._made[name]
        own = {key: value for key, value in vars(part).items() if not _is_as_made(made, key, value)}
        found = {key: _packed(value) for key, value in own.items() if _is_plain(value)}
        state = _plain_state(part) if has_state(part) else None
        return found if state is None else {**found, _STATE: state}


def _samplers_of(loaders: Iterable[object]) -> Iterator[tuple[str, Any]]:
    """Yield each sampler once; not one with a state in a loader that has one too, of which it is a part."""
    known: list[object] = []
    for number, loader in enumerate(loaders):
        for name, part in parts_of(loader).items():
            if "sampler" not in name or not hasattr(part, "__dict__") or any(part is other for other in known):
                continue
            known.append(part)
            if not (has_state(part) and has_state(loader)):
                yield f"{number}.{name}" if number else name, part


def _is_seed(key: str) -> bool:
    return "seed" in key


def _is_as_made(made: Mapping[str, Any], key: str, value: Any) -> bool:
    return key in made and not _is_seed(key) and _is_same(value, made[key])


def _plain_state(part: Any) -> Any:
    """Return what a sampler says of itself; None if a checkpoint could not hold it."""
    state, flaws = part.state_dict(), dict[str, str]()
    codec.split(state, "sampler", flaws=flaws)
    return None if flaws else state


def _says(part: Any, state: Any) -> bool:
    """True if that is what a sampler says of itself by now: its attributes are all that its state is made of."""
    (now, tensors), (then, others) = (codec.split(value, "sampler", flaws={}) for value in (part.state_dict(), state))
    return bool(now == then) and all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())


def _attributes(part: Any) -> dict[str, Any]:
    return {key: _copy(value) for key, value in vars(part).items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    """True for a number, a text, or a row of numbers."""
    if value is None or isinstance(value, bool | int | float | str):
        return True
    if isinstance(value, list | tuple):
        return len(value) <= _ROW_MAX and set(map(type, value)) <= {bool, int, float}
    if isinstance(value, Tensor):
        return type(value) is Tensor and value.device.type == "cpu" and value.ndim == 1 and len(value) <= _ROW_MAX
    return _is_array(value) and value.ndim == 1 and value.dtype.kind in "biuf" and len(value) <= _ROW_MAX


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _copy(value: Any) -> Any:
    """Return a value of its own: a sampler may change its rows in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if _is_array(value) else list(value) if isinstance(value, list) else value


def _packed(value: Any) -> Any:
    """Return a copy as a checkpoint holds it: long rows as tensors."""
    if _is_array(value):
        return {_ARRAY: torch.from_numpy(value.copy())}
    kinds = set(map(type, value)) if isinstance(value, list) and len(value) > _SHORT else set()
    for kind, dtype in _EXACT.items():
        if kinds == {kind}:
            with suppress(OverflowError, RuntimeError):  # a number that is too large
                return {_LIST: torch.tensor(value, dtype=dtype)}
    return _copy(value)


def _unpacked(saved: Any) -> Any:
    if isinstance(saved, dict):
        return saved[_LIST].tolist() if _LIST in saved else saved[_ARRAY].numpy()
    return saved


def _is_same(value: Any, other: Any) -> bool:
    if type(value) is not type(other):
        return False
    if isinstance(value, Tensor):
        return value.dtype == other.dtype and torch.equal(value, other)
    if _is_array(value):
        return value.dtype == other.dtype and value.shape == other.shape and bool((value == other).all())
    return bool(value == other)


def _put(part: Any, key: str, value: Any) -> None:
    """Set an attribute; a list in place, which others may hold too."""
    own = vars(part)
    if key in own and _is_same(own[key], value):
        return
    if isinstance(value, list) and isinstance(own.get(key), list):
        own[key][:] = value
    else:
        own[key] = _copy(value)
