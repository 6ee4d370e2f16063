"""Schedules over a training, as functions of the fraction that is done. Pure: a resume has nothing to load."""

import math
from collections.abc import Sequence

from piton_trainer.recipes.resnet50.config import ResnetConfig


def rate_at(config: ResnetConfig, fraction: float, *, warmup: float) -> float:
    """The learning rate after this fraction of the training, of which `warmup` is the part in which it rises."""
    peak = config.peak_rate
    first, last = peak * config.start_factor, peak * config.end_factor
    done = min(max(fraction, 0.0), 1.0)
    if done < warmup:
        return _between(first, peak, done / warmup, config.annealing)
    return _between(peak, last, (done - warmup) / (1.0 - warmup), config.annealing)


def _between(start: float, end: float, share: float, annealing: str) -> float:
    if annealing == "cosine":
        share = (1.0 - math.cos(math.pi * share)) / 2.0
    return start + (end - start) * share


def size_at(sizes: Sequence[tuple[float, int]], fraction: float) -> int:
    """Height and width of the images after this fraction of the training."""
    return next(size for start, size in reversed(sizes) if fraction >= start)


def mean_over_sizes(sizes: Sequence[tuple[float, int]], values: Sequence[float]) -> float:
    """The mean over the training of what has a value for each size."""
    ends = [start for start, _ in sizes[1:]] + [1.0]
    return sum((end - start) * value for (start, _), end, value in zip(sizes, ends, values, strict=True))
