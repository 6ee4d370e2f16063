"""A collection to be searched: documents in the order of their names, queries, and grades of some pairs.

It is read once per volume, and mapped from then on: the documents are millions.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from piton_trainer.data.ranking.pairs import Pairs
from piton_trainer.data.retrieval.beir import Beir
from piton_trainer.data.text import mapped as texts
from piton_trainer.data.text.mapped import Texts
from piton_trainer.errors import BadConfig

BEST = 10
"""Grades of each query that are kept for its ideal ranking."""
_log = logging.getLogger(__name__)
_ARRAYS = ("own", "codes", "values", "ideal")


@dataclass(frozen=True, kw_only=True, eq=False)
class Collection:
    """Documents and queries by their numbers."""

    texts: Texts
    """Of the documents, and then of the queries."""
    documents: int
    queries: int
    grades: Pairs
    """(query, document) -> its grade, where it is more than 0."""
    own: NDArray[np.int64]
    """Of each query, the document that has its name and does not compete for it; -1: none. See `_own`."""
    ideal: NDArray[np.float32]
    """(queries, 10), the best grades of each query, those of missing documents among them; 0 where there are fewer.

    The document that does not compete is none of them.
    """

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Map the collection that `save` wrote."""
        about: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy") for name in _ARRAYS}
        grades = Pairs(codes=arrays.pop("codes"), values=arrays.pop("values"), width=about["documents"])
        return cls(texts=Texts(folder), grades=grades, **about, **arrays)


def save(found: Beir, source: str, folder: Path) -> None:
    """Write a collection into a folder that is there.

    Raises:
        BadConfig: there is nothing to search, or to search for.
    """
    if not found.documents or not found.queries:
        raise BadConfig(f"trainer.config.datasets: {source} has no documents, or no queries with judgments")
    own = _own(found, source)
    names = sorted(found.documents)
    numbers = {name: number for number, name in enumerate(names)}
    rows = [
        (query, numbers[document], grade)
        for query, name in enumerate(found.queries)
        for document, grade in found.grades[name].items()
        if grade > 0 and document in numbers
    ]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    grades = Pairs.of(columns[:, 0], columns[:, 1], columns[:, 2].astype(np.float32), width=len(names))
    arrays: dict[str, NDArray[Any]] = {
        "own": np.array([numbers[name] if name in own else -1 for name in found.queries], dtype=np.int64),
        "codes": grades.codes,
        "values": grades.values,
        "ideal": np.array([_best(found.grades[name], own & {name}) for name in found.queries], dtype=np.float32),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    texts.save([*(found.documents[name] for name in names), *found.queries.values()], folder)
    about = {"documents": len(names), "queries": len(found.queries)}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _own(found: Beir, source: str) -> set[str]:
    """Return the queries whose document of the same name does not compete for them.

    BEIR leaves such a document out, as queries may be documents of the collection. Queries and documents may also be
    counted from 1 on each. Then nobody means the same text by the same name, and the document may be the answer.
    """
    both = found.queries.keys() & found.documents.keys()
    judged = {name for name in both if found.grades[name].get(name, 0) > 0}
    answers = {name for name in judged if found.documents[name] != found.queries[name]}
    if answers:
        _log.warning(
            "%s: %d relevant judgments name the document that has the name of its query, the first %s; these documents "
            "have other texts than the queries and count as answers, which BEIR itself leaves out",
            source,
            len(answers),
            min(answers),
        )
    if itself := judged - answers:
        _log.warning(
            "%s: %d relevant judgments name the query itself, the first %s; they do not count",
            source,
            len(itself),
            min(itself),
        )
    return both - answers


def _best(grades: Mapping[str, int], without: set[str]) -> list[int]:
    relevant = (grade for name, grade in grades.items() if grade > 0 and name not in without)
    best = sorted(relevant, reverse=True)[:BEST]
    return best + [0] * (BEST - len(best))
