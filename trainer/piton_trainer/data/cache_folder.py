"""The folder in which downloads for trainings are cached on this machine. It imports nothing of S3."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from piton.contract import names


def cache_folder() -> Path:
    """Return PITON_DATA_CACHE, else the folder for it among the user's caches."""
    if folder := os.environ.get(names.ENV_DATA_CACHE):
        return Path(folder)
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "piton" / "data"
    return Path(tempfile.gettempdir(), "piton", "data")  # a user without a home
