"""Recipes are trained in the process of the tests."""

import pytest


@pytest.fixture(autouse=True)
def _outside_piton(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the environment of a real run."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PITON_CONFIG", "PITON_ATTEMPT", "PITON_CHECKPOINT_DIR"):
        monkeypatch.delenv(name, raising=False)
