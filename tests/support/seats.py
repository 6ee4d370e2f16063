"""A place among ranks for a recipe that is looked at without a session."""

from dataclasses import dataclass
from pathlib import Path

import torch

from piton_trainer.distributed import Ranks
from piton_trainer.shelf import FOLDER, Shelf

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Seat:
    """A place, on a volume where that matters."""

    directory: Path = Path()
    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    @property
    def shelf(self) -> Shelf:
        return Shelf(self.directory / FOLDER, Ranks())
