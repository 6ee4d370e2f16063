"""Fixtures for tests that do harm to checkpoints: `directory` has two good ones, and is a copy for one test alone."""

import shutil
from pathlib import Path

import pytest

from support import tiny

OLDER, NEWER = 4, 6


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two good checkpoints, which nobody changes."""
    directory = tmp_path_factory.mktemp("pristine")
    tiny.train(directory, at={NEWER: tiny.terminate})
    return directory


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints"))
