"""`resnet50`: ResNets on images from one file of records. `config` needs no torch; `model` and `recipe` do."""

from piton_trainer.recipes.resnet50.config import ResnetConfig as Config

__all__ = ["Config"]
