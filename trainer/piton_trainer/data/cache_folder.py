"""Where what is fetched for trainings is kept on this machine. Nothing of S3: most who ask fetch nothing from it."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from piton.contract import names


def cache_folder() -> Path:
    """Where PITON_DATA_CACHE says, else with the user's other caches."""
    if folder := os.environ.get(names.ENV_DATA_CACHE):
        return Path(folder)
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "piton" / "data"
    return Path(tempfile.gettempdir(), "piton", "data")  # a user without a home
