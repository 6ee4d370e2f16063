"""Makes a loop that fails as simple as it can be and still fails in the same way."""

from collections.abc import Callable

from fuzz_loops.draw import is_right
from fuzz_loops.loop import Loop, simpler

TRIES_MAX = 80
"""Loops that are tried at most; each takes a second or two."""


def smallest(loop: Loop, fails: Callable[[Loop], bool]) -> Loop:
    """Drop parts of a loop as long as it fails."""
    tries = 0
    while tries < TRIES_MAX:
        for smaller in filter(is_right, simpler(loop)):
            tries += 1
            if fails(smaller):
                loop = smaller
                break
            if tries == TRIES_MAX:
                return loop
        else:
            return loop
    return loop
