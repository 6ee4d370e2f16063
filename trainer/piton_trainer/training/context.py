"""The context of a process of a run, for recipes and users: ranks, device, volume.

A session is one that trains, an evaluation one that looks. The recipes' `DataContext` is this, as a protocol.
"""

from pathlib import Path

import torch

from piton.contract.assignment import Assignment
from piton_trainer.config import Config
from piton_trainer.run_cache import FOLDER, RunCache
from piton_trainer.runtime.process_group import Ranks


class RankContext:
    """The context of this process. A subclass may join other ranks later."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self._config = config
        self._ranks = ranks

    @property
    def rank(self) -> int:
        """This process among all ranks."""
        return self._ranks.rank

    @property
    def local_rank(self) -> int:
        """This process among those on the same node; the number of its GPU."""
        return self._ranks.local_rank

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self._ranks.world_size

    @property
    def is_main(self) -> bool:
        """True if this is rank 0."""
        return self._ranks.is_main

    @property
    def device(self) -> torch.device:
        """This rank's GPU, or the CPU."""
        return self._ranks.device

    @property
    def assignment(self) -> Assignment:
        """The run's orders."""
        return self._config.assignment

    @property
    def directory(self) -> Path:
        """The directory of the run's checkpoints."""
        return self._config.checkpoint_dir

    @property
    def run_cache(self) -> RunCache:
        """For what is made once and every attempt needs."""
        return RunCache(self.directory / FOLDER, self._ranks)
