"""Fixtures for tests that train in this process: torch is quiet, and nothing of a real run is around them.

A conftest.py that imports them has them for all of its tests.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="module")
def quiet_torch() -> Iterator[None]:
    """It logs each save in hundreds of lines, which would bury what a test that fails has to say."""
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def outside_piton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test writes into the working tree, and none sees the environment of a real run."""
    for name in list(os.environ):
        if name.startswith(("PITON_", "KUBEFLOW_", "AWS_")) or name in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
