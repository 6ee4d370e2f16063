"""A place for a recipe that is measured without a session: one rank on the device, with a folder."""

from pathlib import Path

import torch

from bench.gpu.setting import Setting
from piton_trainer.run_cache import FOLDER, RunCache
from piton_trainer.runtime.process_group import Ranks


class Bench:
    """See `piton_trainer.recipes.protocol.Workplace`."""

    rank = 0
    world_size = 1

    def __init__(self, setting: Setting) -> None:
        self.device: torch.device = setting.device
        self.directory: Path = setting.folder

    @property
    def run_cache(self) -> RunCache:
        """For what is made once."""
        return RunCache(self.directory / FOLDER, Ranks())
