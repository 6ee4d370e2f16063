"""Characters as numbers. A checkpoint carries its vocabulary: without it the weights mean nothing."""

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from piton_trainer.errors import BadConfig

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CODE_POINTS = 0x110000


class Vocabulary:
    """A fixed, sorted list of symbols. Number 0 is the replacement symbol, which stands for all that is not listed."""

    def __init__(self, characters: str) -> None:
        """Take the characters other than the replacement symbol."""
        self.symbols = REPLACEMENT + "".join(sorted(set(characters) - {REPLACEMENT}))

    @classmethod
    def of(cls, text: str, *, rare_below: int = 1) -> Self:
        """The characters of a text that it has at least `rare_below` times."""
        counts = np.bincount(_code_points(text), minlength=1)
        return cls("".join(chr(point) for point in np.flatnonzero(counts >= max(1, rare_below))))

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def uniform_bits(self) -> float:
        """Bits per character of a model that knows the symbols and nothing else."""
        return math.log2(len(self))

    def encode(self, text: str) -> Tensor:
        """The numbers of a text's characters, in as few bytes as they need."""
        dtype = np.uint8 if len(self) <= 2**8 else np.int32
        table = np.zeros(_CODE_POINTS, dtype=dtype)
        table[_code_points(self.symbols)] = np.arange(len(self), dtype=dtype)
        return torch.from_numpy(table[_code_points(text)])

    def decode(self, numbers: Tensor) -> str:
        """The text of such numbers."""
        return "".join(self.symbols[number] for number in numbers.tolist())

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"symbols": self.symbols}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make sure that the checkpoint's numbers mean what ours do.

        Raises:
            BadConfig: they do not.
        """
        if state["symbols"] != self.symbols:
            changed = sorted(set(state["symbols"]) ^ set(self.symbols))
            raise BadConfig(
                f"trainer.config.data: the text has other characters than the checkpoint's ({changed[:5]}); "
                "bring that text back or start a new run"
            )


def _code_points(text: str) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
