"""Recipes train on one thread: forked ranks must not hang, and equal runs must add up in one order."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _outside_piton(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the environment of a real run."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PITON_CONFIG", "PITON_ATTEMPT", "PITON_CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)
