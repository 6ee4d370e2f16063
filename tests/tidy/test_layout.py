"""The layout of the product: sizes, names, and the map in CONTRIBUTING.md. `python tests/tidy/test_layout.py` counts.

The limits below are what the code has today. Lower one when the code has less; raise none.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = (ROOT / "operator" / "piton", ROOT / "trainer" / "piton_trainer")
LINES_MAX, LINES_MIN = 350, 60
CLAUSES = re.compile(r"(Whether|What|How|Who|Whoever|Whose|Why|Where|When|Which|That)\b")
"""First words of a docstring that is a clause, and neither a sentence with a verb nor a noun phrase."""
LIMITS = {
    "files at the trainer's root": 12,
    "modules above 350 lines": 0,
    "modules below 60 lines": 60,
    "class names with several bearers": 6,
    "docstrings that open with a clause": 0,
}


def modules() -> Iterator[Path]:
    """The modules of operator and trainer, packages' own files aside."""
    for package in PRODUCT:
        yield from (path for path in package.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def docstrings() -> Iterator[str]:
    """Of modules, classes, functions, and of the names that a string follows."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                yield node.value.value


def shared_class_names() -> dict[str, int]:
    names = Counter(
        node.name
        for path in modules()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    # Each recipe has a Config and the like; users import PitonCallback from the framework that they use.
    of_recipes = {"Config", "Recipe", "Data", "PitonCallback"}
    return {name: count for name, count in names.items() if count > 1 and name not in of_recipes}


@cache
def counted() -> dict[str, int]:
    sizes = [lines_of(path) for path in modules()]
    return {
        "files at the trainer's root": len(list(PRODUCT[1].glob("*.py"))),
        "modules above 350 lines": sum(size > LINES_MAX for size in sizes),
        "modules below 60 lines": sum(size < LINES_MIN for size in sizes),
        "class names with several bearers": len(shared_class_names()),
        "docstrings that open with a clause": sum(bool(CLAUSES.match(text)) for text in docstrings()),
    }


@pytest.mark.parametrize("what", LIMITS)
def test_the_layout_does_not_slide_back(what: str) -> None:
    found = counted()[what]

    assert found <= LIMITS[what], f"{what}: {found}, and {LIMITS[what]} is the limit"


def test_each_file_that_the_map_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:operator|trainer|charts|docs|hack|tests)/[\w./-]+?)(?:: \w+)?`", text))

    assert len(named) > 40
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_each_function_that_the_map_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([\w./-]+\.py): (\w+)`", text))

    assert named
    missing = {(file, name) for file, name in named if f"def {name}(" not in (ROOT / file).read_text()}
    assert missing == set()


if __name__ == "__main__":
    for what, number in counted().items():
        print(f"{number:6}  {what}  (limit {LIMITS[what]})")
    print(f"{sum(map(lines_of, modules())):6}  lines")
    print(", ".join(sorted(shared_class_names())))
    print("\n".join(f"{lines_of(p):6}  {p.relative_to(ROOT)}" for p in modules() if lines_of(p) > LINES_MAX))
