"""`charlm`: a character-level GPT after nanochat. `config` needs no torch; `model` and `recipe` do."""

from piton_trainer.recipes.charlm.config import CharlmConfig as Config

__all__ = ["Config"]
