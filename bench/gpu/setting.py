"""Where a part runs, how large it is there, and how it tells what it found."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class CheckFailedError(Exception):
    """Something is not as it has to be."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the results."""

    what: str
    value: float
    unit: str
    """`x` for a ratio."""
    beside: str = ""
    """What the figure is to be compared with, and where that comes from."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A device, and a folder that nobody else uses."""

    dry: bool
    """On the CPU, and small: only to see that everything runs."""
    folder: Path

    @property
    def device(self) -> torch.device:
        """What is measured."""
        return torch.device("cpu") if self.dry else torch.device("cuda", 0)

    def size(self, full: T, dry: T) -> T:
        """A size on the GPU, and the one of a dry run."""
        return dry if self.dry else full

    def synchronize(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, action: Callable[[], object]) -> float:
        """How long it takes, with all that the device has to do for it."""
        self.synchronize()
        start = time.perf_counter()
        action()
        self.synchronize()
        return time.perf_counter() - start

    def median_seconds(self, action: Callable[[], object], *, warm: int = 2, times: int = 5) -> float:
        """Of several times, after some that do not count."""
        found = [self.seconds(action) for _ in range(warm + times)]
        return statistics.median(found[warm:])

    def check(self, holds: bool, what: str) -> None:
        """Fail the part unless it holds."""
        if not holds:
            raise CheckFailedError(what)


def checked(*whats: str) -> list[Row]:
    """Rows of what was found to hold."""
    return [Row(what=what, value=1, unit="holds") for what in whats]
