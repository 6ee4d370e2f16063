"""What holds for every test: it computes on one thread, its children buffer what they print, and no example is timed.

Ranks are forked from it, and of a pool of threads only the bookkeeping would survive that. Nor have two workers on two
cores a core for one.
"""

import gc
import os
from collections.abc import Generator

import pytest

from hack.suites.listed_tests import PRESUBMIT, SLOW, listed

_THREADS = "OMP_NUM_THREADS"

_before = os.environ.get(_THREADS)
os.environ[_THREADS] = "1"  # OpenMP and OpenBLAS read it when they are loaded
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

if _before is None:
    del os.environ[_THREADS]  # what a test starts as a user would finds what a user has
else:
    os.environ[_THREADS] = _before
torch.set_num_threads(1)

os.environ.pop("PYTHONUNBUFFERED", None)  # it hides that a child ends before it has flushed what it printed

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that a list names: all of a file, all cases of a test, or one case."""
    for mark, names in ((pytest.mark.presubmit, set(listed(PRESUBMIT))), (pytest.mark.slow, set(listed(SLOW)))):
        for item in items:
            if names & {item.nodeid, item.nodeid.partition("[")[0], item.nodeid.partition("::")[0]}:
                item.add_marker(mark)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let no garbage collection look at what was imported: it stays, and each look would take a third of a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
