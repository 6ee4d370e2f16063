"""`twotower`: ranks known ids for a text that nobody has judged. `config` needs no torch; the rest does."""

from piton_trainer.recipes.twotower.config import TwoTowerConfig as Config

__all__ = ["Config"]
