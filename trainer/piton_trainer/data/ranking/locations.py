"""Checks that judgments exist where a config names them.

No torch or numpy here: a config is checked on machines that do not train.
"""

from importlib.util import find_spec
from pathlib import Path

from piton_trainer.data.ranking import movielens
from piton_trainer.s3 import S3_SCHEME


def check_source(source: str) -> str | None:
    """Return the missing part, as far as it shows without reading; None: nothing is missing."""
    if source.startswith(S3_SCHEME):
        return None
    if source in (movielens.MOVIELENS, movielens.WEAK):
        return None if find_spec(movielens.PACKAGE) else f"{source} is not installed here; say {movielens.INSTALL}"
    if Path(source).is_file():
        return None
    return f"there is no file {source}; give a CSV file, s3://bucket/key.csv, or {movielens.MOVIELENS}"
