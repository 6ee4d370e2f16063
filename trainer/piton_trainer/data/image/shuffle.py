"""An order that is random enough to learn from and sequential enough to read from a disk. Pure.

    pages      runs of neighbouring records, in random order
    windows    so many records of consecutive pages, mixed

What is read at any time lies in one window, so that much of the file has to be in memory and not all of it. The idea is
FFCV's `QUASI_RANDOM`. A file that is not larger than one window is shuffled wholly.
"""

import numpy as np
from numpy.typing import NDArray

PAGE = 64
"""Records in a page: some megabytes of ImageNet, which a disk reads in one go."""


def shuffled(count: int, *, window: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of so many records in one epoch: each of them once."""
    rng = np.random.default_rng([seed, epoch])
    if count <= window:
        return rng.permutation(count)
    pages = rng.permutation(-(-count // PAGE))
    order: NDArray[np.int64] = (pages[:, None] * PAGE + np.arange(PAGE)).ravel()
    order = order[order < count]
    for first in range(0, count, window):
        rng.shuffle(order[first : first + window])
    return order
