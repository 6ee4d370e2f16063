"""The learning rates, as a function of the moment alone: a resume has nothing to load. Pure."""

import math

from piton_trainer.recipes.retrieval.config import RetrievalConfig


def rate_at(config: RetrievalConfig, *, fraction: float, step: int) -> float:
    """The share of the highest rates after so many steps, which are this fraction of the training."""
    rising = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    left = 1.0 - min(max(fraction, 0.0), 1.0)
    falling = {"constant": 1.0, "linear": left, "cosine": (1.0 - math.cos(math.pi * left)) / 2.0}
    return rising * falling[config.schedule]
