"""Texts by their numbers, as what the model takes: tokens where the base model learns, else its cached vectors."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from piton_trainer.recipes.common.text_encoder import Embedded, Tokens
from piton_trainer.recipes.retrieval.model import Inputs


class Readable(Protocol):
    """Texts that can be put into the model."""

    def of(self, numbers: NDArray[np.int64]) -> Inputs:
        """Those with these numbers."""


class TokenInputs:
    """Tokens, made when they are asked for."""

    def __init__(self, texts: Sequence[str], tokens: Tokens, device: torch.device) -> None:
        self._texts = texts
        self._tokens = tokens
        self._device = device

    def of(self, numbers: NDArray[np.int64]) -> Inputs:
        """Padded to the longest of them."""
        return self._tokens([self._texts[int(number)] for number in numbers], self._device)


class VectorInputs:
    """Vectors of the base model as it came."""

    def __init__(self, embedded: Embedded, device: torch.device) -> None:
        self._embedded = embedded
        self._device = device

    def of(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """As they are: of length 1."""
        return self._embedded.of(torch.from_numpy(numbers)).to(self._device)
