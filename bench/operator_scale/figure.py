"""A figure: one number of the results that is compared, and how it is read. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Results = Mapping[str, Any]


class Scale(StrEnum):
    """The part of the floor by which a figure grows with the slowness of the machine."""

    TIME = "seconds_per_patch"
    CPU = "server_cpu_ms_per_patch"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table. Less is better, for all."""

    name: str
    words: str
    read: Callable[[Results], float]
    slack: float
    """A difference below this is nothing, whatever its ratio."""
    scale: Scale = Scale.NONE
    goal: Callable[[int], float] | None = None
    """By the number of runs."""


def at(*path: str) -> Callable[[Results], float]:
    """Return what reads the number there."""

    def read(results: Results) -> float:
        found: Any = results
        for part in path:
            found = found[part]
        return float(found)

    return read


def above(scenario: tuple[str, ...], without: tuple[str, ...], key: str) -> Callable[[Results], float]:
    """Return what reads by how much a rate is above that of the same minute without an operator."""
    return lambda results: max(0.0, at(*scenario, key)(results) - at(*without, key)(results))


def fixed(value: float) -> Callable[[int], float]:
    """Return a goal that is the same for all numbers of runs."""
    return lambda _: value
