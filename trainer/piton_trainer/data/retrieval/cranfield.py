"""The Cranfield collection in its original form: 1,400 abstracts, 225 questions, graded judgments of all pairs.

    cran.all.1400    documents        cran.qry    queries        cranqrel    query, document, grade

Its traps: the numbers in cran.qry are not those that cranqrel means, which counts the queries from 1; grade 1 is the
best and 4 the worst, 5 and -1 are irrelevant; and documents and queries have the same numbers, so that a rule against
finding oneself would delete real answers. Every third query is for the `test` split, the others for `train`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from piton_trainer.data.retrieval.beir import Beir
from piton_trainer.errors import BadConfig

CRANFIELD = "cranfield:"
_BEST = 5
"""Grades 1 to 4 become 4 to 1."""
_TEST_EVERY = 3
_FIELD = re.compile(r"^\.([A-Z])\b", re.MULTILINE)


def files(source: str) -> tuple[Path, Path, Path]:
    """Documents, queries and judgments of `cranfield:FOLDER`."""
    folder = Path(source.removeprefix(CRANFIELD))
    return folder / "cran.all.1400", folder / "cran.qry", folder / "cranqrel"


def read(source: str, split: str) -> Beir:
    """The collection; each split has all documents.

    Raises:
        BadConfig: the files cannot be read.
    """
    documents, questions, judgments = files(source)
    try:
        texts = [fields["W"] for fields in _records(questions)]
        queries = {f"q{number}": text for number, text in enumerate(texts, start=1) if _split(number) == split}
        grades: dict[str, dict[str, int]] = {}
        for line in judgments.read_text(encoding="utf-8").splitlines():
            number, document, grade = (int(field) for field in line.split())
            if f"q{number}" in queries:
                grades.setdefault(f"q{number}", {})[f"d{document}"] = _BEST - grade if 1 <= grade < _BEST else 0
        return Beir(
            documents={f"d{fields['I']}": fields["W"] for fields in _records(documents)},
            queries=queries,
            grades=grades,
        )
    except (OSError, ValueError, KeyError) as error:
        raise BadConfig(f"trainer.config.data: {source} cannot be read as Cranfield: {error}") from error


def _split(number: int) -> str:
    return "test" if number % _TEST_EVERY == 0 else "train"


def _records(path: Path) -> Iterator[dict[str, str]]:
    """The fields of each record by their letters; a document's text begins with its title."""
    for record in re.split(r"^(?=\.I )", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
        parts = _FIELD.split(record)
        if len(parts) > 1:
            yield {letter: " ".join(text.split()) for letter, text in zip(parts[1::2], parts[2::2], strict=True)}
