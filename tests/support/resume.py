"""What a resume does, told where a test shows it: `docs/resume.md` is made of these words.

    @resume.exact("optimizers: groups that are added, split or merged in the middle")
    @resume.refused("loaders: streams and loaders around loaders", "nobody knows their place; at the start, on Piton")
    @resume.approximate("ranks: another number of them", "new ones have rank 0's state")

`python -m support.resume` prints the table. Decorators are read as text: nothing is imported for it.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., object])
VERDICTS = ("exact", "approximate", "refused")
TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "resume.md"
_HEAD = """# What a resume does

Each row is shown by the test that it names, which says so itself: `make resume-table` collects them. *Exact* is bit for
bit on a CPU. *Approximate* goes on, with a line in the log that says how it differs. *Refused* ends the attempt as
`BadConfig`, with a sentence that names the object and the line to write: after the first step of a run at the latest,
or at the restore where the script has changed. A run that has resumed already is never ended by a rule that its first
attempt did not have: it is warned.

| what | resume | why, or how | shown by |
| --- | --- | --- | --- |
"""


def exact(what: str, how: str = "") -> Callable[[Test], Test]:
    """Mark a test that shows an exact resume."""
    return lambda test: test


def exact_each(names: str) -> Callable[[Test], Test]:
    """Mark a test that shows an exact resume for each key of a dictionary of its module."""
    return lambda test: test


def approximate(what: str, how: str) -> Callable[[Test], Test]:
    """Mark a test that shows how a resume differs, and that it says so."""
    return lambda test: test


def refused(what: str, how: str) -> Callable[[Test], Test]:
    """Mark a test that shows a refusal."""
    return lambda test: test


@dataclass(frozen=True, order=True)
class Row:
    """One line of the table."""

    what: str
    verdict: str
    how: str
    test: str


def rows() -> Iterator[Row]:
    """Yield the rows that tests tell."""
    for path in TESTS.rglob("test_*.py"):
        text = path.read_text()
        if "@resume." not in text:
            continue
        found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        for test, call in ((node, call) for node in found for call in node.decorator_list):
            if not isinstance(call, ast.Call):
                continue
            name = ast.unparse(call.func).removeprefix("resume.")
            place = f"{path.relative_to(TESTS)}::{test.name}"
            if name in VERDICTS:
                what, *how = map(ast.literal_eval, call.args)
                yield Row(what, name, "".join(how), place)
            elif name == exact_each.__name__:
                (names,) = map(ast.literal_eval, call.args)
                yield from (Row(what, "exact", "", place) for what in _keys(text, names))


def _keys(text: str, name: str) -> Iterator[str]:
    """Yield the keys of a dictionary of a module, as its text has them."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and isinstance(node.value, ast.Dict):
            yield from (ast.literal_eval(key) for key in node.value.keys if key is not None)


def table() -> str:
    """Return the document."""
    lines = [f"| {row.what} | {row.verdict} | {row.how} | `{row.test}` |" for row in sorted(rows())]
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(table())
    sys.stdout.write(f"{DOCUMENT}: {len(list(rows()))} rows\n")
