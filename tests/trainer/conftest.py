"""What every trainer test needs: one thread, so that forked ranks neither hang nor fight for the cores."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _quiet_torch() -> Iterator[None]:
    torch.set_num_threads(1)
    # It logs each save in hundreds of lines, which would bury what a test that fails has to say.
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def _outside_piton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test writes into the working tree, and none sees the environment of a real run."""
    for name in list(os.environ):
        if name.startswith(("PITON_", "KUBEFLOW_")) or name in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
