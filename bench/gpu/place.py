"""A place for a recipe that is measured without a session: one rank on the device, with a folder."""

from pathlib import Path

import torch

from bench.gpu.setting import Setting
from piton_trainer.distributed import Ranks
from piton_trainer.shelf import FOLDER, Shelf


class Bench:
    """See `piton_trainer.recipes.protocol.Workplace`."""

    rank = 0
    world_size = 1

    def __init__(self, setting: Setting) -> None:
        self.device: torch.device = setting.device
        self.directory: Path = setting.folder

    @property
    def shelf(self) -> Shelf:
        """For what is made once."""
        return Shelf(self.directory / FOLDER, Ranks())
