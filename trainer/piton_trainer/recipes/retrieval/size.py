"""The size of a `retrieval`, for the base models that are known here; for others only their files can tell."""

from collections.abc import Mapping
from dataclasses import dataclass

from piton_trainer.recipes.common.encoder_source import PACKAGE
from piton_trainer.recipes.retrieval.config import RetrievalConfig
from piton_trainer.recipes.sizes import FP32_BYTES, Size

_ADAM = 2
"""Momenta per weight."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model."""

    parameters: int
    width: int

    @property
    def untrained(self) -> int:
        """Of its pooler, which belongs to another task: saved with the rest, and never changed."""
        return self.width**2 + self.width


BASES: Mapping[str, Base] = {
    "all-mpnet-base-v2": Base(parameters=109_486_464, width=768),
    "all-minilm-l6-v2": Base(parameters=22_713_216, width=384),
}


def size(config: RetrievalConfig) -> Size | None:
    """Of the projection, and of the base model where it is trained; None where nobody here knows the base model."""
    base = BASES.get(config.base_model.removeprefix(PACKAGE).rpartition("/")[2].removeprefix("gt-").lower())
    if base is None:
        return None
    projection = base.width * config.output_dim + config.output_dim
    saved = projection if config.freeze_base else projection + base.parameters
    trained = projection if config.freeze_base else saved - base.untrained
    copies = 1 if config.ema is None else 2
    return Size(parameters=trained, checkpoint_bytes=FP32_BYTES * (copies * saved + _ADAM * trained))
