"""Rare garbage collection: a process with many lasting objects must not look at all of them every few seconds.

Reference counts free nearly everything. What is left are cycles, and Python looks for those among all objects once
70,000 more were made than freed. With 1,000 trainers connected that was every 3 s, and each time the process stood
still for 0.2 s: `make bench-operator RUNS=1000 ARGS="--only reporters"`.
"""

import gc

THRESHOLDS = (10_000, 10, 50)
"""Objects made and not freed before the youngest are collected; such collections before one of the next generation
(https://docs.python.org/3/library/gc.html#gc.set_threshold). All objects: once in 5,000,000."""


def collect_rarely() -> None:
    """Collect rarely from now on, and never what is there already: modules, classes, and the constants in them."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
