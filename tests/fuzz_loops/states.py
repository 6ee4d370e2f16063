"""Objects of a script that have a state, by their words."""

import datetime as dt
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Pair(NamedTuple):
    """A tuple with names."""

    best: float
    steps: int


class Metric:
    """What a rank has seen, in numbers and in a tensor."""

    def __init__(self, first: int) -> None:
        self.calls, self.total, self.rows = first, 0.0, torch.zeros(3)

    def see(self, x: Tensor) -> float:
        self.calls += 1
        self.total += float(x.sum())
        self.rows += x.float().sum(dim=0)[:3]
        return 1e-3 * (self.total + self.calls)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "total": self.total, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls, self.total, self.rows = state["calls"], state["total"], state["rows"]


class Box:
    """A value of some type, and what a script does to it in each step, which another type would not take."""

    def __init__(self, value: Any, grow: Callable[[Any, int], Any]) -> None:
        self.value, self.calls, self._grow = value, 0, grow

    def see(self, x: Tensor) -> float:
        self.calls += 1
        self.value = self._grow(self.value, self.calls)
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.calls = state["value"], state["calls"]


def _moved(value: OrderedDict[str, int], calls: int) -> OrderedDict[str, int]:
    value[f"k{calls % 3}"] = calls
    value.move_to_end(f"k{calls % 3}", last=False)
    return value


def _grouped(value: defaultdict[str, list[int]], calls: int) -> defaultdict[str, list[int]]:
    value[f"k{calls % 4}"].append(calls)
    return value


def _queued(value: deque[int], calls: int) -> deque[int]:
    value.append(calls)
    return value


def _counted(value: Counter[Any], calls: int) -> Counter[Any]:
    value.update(["odd" if calls % 2 else "even", calls % 3])
    return value


def _keyed(value: dict[Any, Any], calls: int) -> dict[Any, Any]:
    return {**value, 1: calls, "1": -calls, (1, 2): [calls], None: True, True + 1: 0.5}


def _slashed(value: dict[Any, Any], calls: int) -> dict[Any, Any]:
    return {
        "a/b": torch.tensor(float(calls)),
        "a": {"b": torch.tensor(-float(calls))},
        "1": torch.ones(1),
        1: value["z"],
        "z": torch.zeros(2),
    }


def _tensors(value: list[Any], calls: int) -> list[Any]:
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3) * calls
    odd = [x.t(), x.bfloat16(), x > calls, x.to(torch.uint16), x.to(torch.complex64), x[0, 0], x[:, :0], x[:, 1:]]
    return [value[0] + 1, tuple(odd)]


BOXES: dict[str, Callable[[int], Box]] = {
    "tuple": lambda first: Box(
        (first, (0.5, ["a"])), lambda value, calls: (calls, (value[1][0] / 2, [*value[1][1], "b"]))
    ),
    "counter": lambda first: Box(Counter({"odd": first}), _counted),
    "numbers as keys": lambda first: Box({"first": first}, _keyed),
    "odd numbers": lambda first: Box(
        [first],
        lambda value, calls: [
            float("inf"),
            float("-inf"),
            -0.0,
            float("nan"),
            2**70 + calls,
            True,
            1,
            1.0,
            5e-324,
            0.1 * calls,
        ],
    ),
    "tensors": lambda first: Box([torch.tensor(first)], _tensors),
    "dollar": lambda first: Box({"$tensor": first}, lambda value, calls: {"$tensor": calls, "$tuple": ["$", calls]}),
    "none": lambda first: Box(None, lambda value, calls: None if calls % 2 else [None]),
    "empty": lambda first: Box({}, lambda value, calls: [{}, [], (), "", torch.zeros(0)][calls % 5]),
    "slashes": lambda first: Box({"z": torch.tensor(first)}, _slashed),
    "ordered": lambda first: Box(OrderedDict(first=first), _moved),
    "default": lambda first: Box(defaultdict(list, {"first": [first]}), _grouped),
    "deque": lambda first: Box(deque([first], maxlen=3), _queued),
    "named": lambda first: Box(Pair(0.5, first), lambda value, calls: value._replace(steps=value.steps + 1)),
    "numpy number": lambda first: Box(np.float32(first), lambda value, calls: np.float32(value.item() + 0.1)),
    "set": lambda first: Box({first}, lambda value, calls: value | {calls}),
    "bytes": lambda first: Box(b"a", lambda value, calls: value + b"b"),
    "complex": lambda first: Box(complex(first, 1), lambda value, calls: value * 1j),
    "array": lambda first: Box(np.zeros(3), lambda value, calls: value + calls),
    "sparse": lambda first: Box(torch.eye(3).to_sparse(), lambda value, calls: (value * 0.5).coalesce()),
    "date": lambda first: Box(dt.date(2026, 1, 1), lambda value, calls: value + dt.timedelta(days=1)),
}


def objects_of(words: tuple[str, ...], first: int) -> dict[str, Any]:
    """Return the objects that see each batch. `first` is what those of a rank begin with."""
    seeing = [word for word in words if word not in ("generator", "scaler")]
    return {word.replace(" ", "_"): Metric(first) if word == "metric" else BOXES[word](first) for word in seeing}
