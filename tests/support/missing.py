"""What to do where a part of the real world is not there."""

import os
from typing import NoReturn

import pytest

from hack.suites.lanes import REQUIRED


def missing(reason: str) -> NoReturn:
    """Fail in CI and in a suite, which have to have it; skip elsewhere, with the reason."""
    if os.environ.get("CI") or os.environ.get(REQUIRED):
        pytest.fail(f"this has to run here: {reason}")
    pytest.skip(reason)
