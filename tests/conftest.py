"""What holds for every test: the process that runs it computes on one thread, and no generated example is timed.

Ranks are forked from it, and of a pool of threads only the bookkeeping would survive that. Nor have two workers on two
cores a core for one.
"""

import os

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

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
