"""Samplers that several tests give to their loaders."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class Placed(Sampler[int]):
    """A sampler that counts its place while it is asked, and begins at it."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.epoch = self.place = 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        while self.place < self.rows:
            self.place += 1
            yield order[self.place - 1]
        self.epoch, self.place = self.epoch + 1, 0
