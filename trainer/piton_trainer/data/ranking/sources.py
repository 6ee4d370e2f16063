"""Judgments from the places that a config names: read once on the volume that all attempts share, then mapped.

A file of sixteen million rows takes a minute to read and longer to fetch, which no later attempt should pay again.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from piton_trainer.data.prepared import VersionOf, prepare_folder
from piton_trainer.data.ranking import movielens
from piton_trainer.data.ranking.judgments import Collector, Judgments
from piton_trainer.data.ranking.rows import CsvReading, csv_rows
from piton_trainer.data.skipped import NO_SKIPS, SkippedData, Skips
from piton_trainer.run_cache import RunCache

_FORMAT = 1
"""Changes when the same rows make other judgments."""


def judgments_of(
    sources: Mapping[str, CsvReading], run_cache: RunCache, skipped_data: SkippedData | None = None
) -> Judgments:
    """Return all rows of these sources, read by one rank and kept for everybody and every later attempt.

    Raises:
        BadConfig: one is not there, or has more wrong rows than `skipped_data` accepts of all together.
    """

    def parts(version_of: VersionOf) -> object:
        """Return what changes with the rows and with how they are understood."""
        return [
            _FORMAT,
            [
                [source, _version(source, version_of), sorted(reading.gains.items()), reading.source]
                for source, reading in sources.items()
            ],
        ]

    def make(folder: Path, skips: Skips) -> None:
        collected(sources, skips).save(folder)

    _, folder = prepare_folder("judgments", parts, make, run_cache, skipped_data)
    return Judgments.load(folder)


def collected(sources: Mapping[str, CsvReading], skips: Skips = NO_SKIPS) -> Judgments:
    """Read all rows of these sources.

    Raises:
        BadConfig: one is not there, or a row is wrong and `skips` does not take it.
    """
    collector = Collector()
    for source, reading in sources.items():
        if source in (movielens.MOVIELENS, movielens.WEAK):
            for row in movielens.rows(source, reading.gains):
                collector.add(row)
        else:
            csv_rows(source, reading, collector.add, skips)
    return collector.judgments(" and ".join(sources))


def _version(source: str, version_of: VersionOf) -> str:
    if source in (movielens.MOVIELENS, movielens.WEAK):
        return version(movielens.PACKAGE)
    return version_of(source)
