"""The key-value cache of a block, so that the next character costs no more than itself."""

import torch
from torch import Tensor

from piton_trainer.recipes.charlm.config import CharlmConfig


class Memory:
    """Keys and values of one block, for as many characters as the model sees at once."""

    def __init__(self, config: CharlmConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        shape = (2, 1, config.heads, config.sequence_length, config.head_dim)
        self._both = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0
        """Characters that it holds."""

    @property
    def is_full(self) -> bool:
        """True if there is no room for another one."""
        return self.length == self._both.shape[-2]

    def add(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take those of further characters (1, heads, characters, dim); all that it holds then."""
        end = self.length + key.shape[-2]
        for kept, new in zip(self._both, (key, value), strict=True):
            kept[:, :, self.length : end] = new
        self.length = end
        keys, values = self._both[:, :, :, :end]
        return keys, values
