"""A place among ranks for a recipe that is looked at without a session."""

from dataclasses import dataclass
from pathlib import Path

import torch

from piton_trainer.run_cache import FOLDER, RunCache
from piton_trainer.runtime.process_group import Ranks

CPU = torch.device("cpu")


@dataclass(frozen=True)
class FakeRankContext:
    """A place, on a volume where that matters."""

    directory: Path = Path()
    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    @property
    def run_cache(self) -> RunCache:
        return RunCache(self.directory / FOLDER, Ranks())
