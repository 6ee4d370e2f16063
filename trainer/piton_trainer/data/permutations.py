"""A shuffled, endless order of things that can start anywhere.

epoch:      0                    1                    2
position:   0 .... length-1  |   length .... 2l-1  |  2l ....       each epoch is its own permutation
"""

import numpy as np
import torch
from torch import Tensor


class Permutations:
    """Numbers below `length`, each once per epoch; any stretch of it follows from its position alone."""

    def __init__(self, length: int, *seed: int) -> None:
        """Equal seeds, of one or more numbers, give equal orders."""
        self.length = length
        self.seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long, device="cpu")

    def numbers(self, position: int, count: int) -> Tensor:
        """The numbers at `count` positions; a stretch may begin in one epoch and end in another."""
        parts = []
        while count:
            epoch, place = divmod(position, self.length)
            part = self._permutation(epoch)[place : place + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = np.random.default_rng([*self.seed, epoch]).permutation(self.length)
            self._order, self._epoch = torch.from_numpy(order), epoch
        return self._order
