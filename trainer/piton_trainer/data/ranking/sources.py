"""Judgments from the places that a config names: read once on the volume that all attempts share, then mapped.

A file of sixteen million rows takes a minute to read and longer to fetch, which no later attempt should pay again.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from piton_trainer.data.ranking import movielens
from piton_trainer.data.ranking.judgments import Collector, Judgments
from piton_trainer.data.ranking.rows import CsvReading, csv_rows
from piton_trainer.data.stream import version_of
from piton_trainer.run_cache import RunCache

_FORMAT = 1
"""Changes when the same rows make other judgments."""


def judgments_of(sources: Mapping[str, CsvReading], run_cache: RunCache) -> Judgments:
    """All rows of these sources, read by one rank and kept for everybody and every later attempt.

    Raises:
        BadConfig: one is not there, or has a wrong row.
    """
    name = run_cache.on_main(lambda: f"judgments-{_key(sources, run_cache.directory)}")
    return Judgments.load(run_cache.folder(name, lambda folder: collected(sources).save(folder)))


def collected(sources: Mapping[str, CsvReading]) -> Judgments:
    """Read them all."""
    collector = Collector()
    for source, reading in sources.items():
        if source in (movielens.MOVIELENS, movielens.WEAK):
            for row in movielens.rows(source, reading.gains):
                collector.add(row)
        else:
            csv_rows(source, reading, collector.add)
    return collector.judgments(" and ".join(sources))


def _key(sources: Mapping[str, CsvReading], memory: Path) -> str:
    """Changes with the rows and with how they are understood."""
    parts = [
        [source, _version(source, memory), sorted(reading.gains.items()), reading.source]
        for source, reading in sources.items()
    ]
    return hashlib.sha256(json.dumps([_FORMAT, parts]).encode()).hexdigest()[:16]


def _version(source: str, memory: Path) -> str:
    if source in (movielens.MOVIELENS, movielens.WEAK):
        return version(movielens.PACKAGE)
    return version_of(source, memory)
