"""The style that a linter cannot see."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hack import failures
from piton.crd import KINDS, crd

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "operator" / "piton").rglob("*.py"), *(ROOT / "trainer" / "piton_trainer").rglob("*.py")]
CLOCKS = {"operator/piton/clock.py", "trainer/piton_trainer/clock.py"}
"""The only files that read the time of day."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("folder", ["operator", "trainer", "tests"])
def test_plain_folders_are_no_packages(folder: str) -> None:
    """An `operator/__init__.py` would replace Python's own `operator`."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_crds_are_the_models() -> None:
    for kind in KINDS:
        written = yaml.safe_load((ROOT / "crds" / kind.file_name).read_text())
        assert written == crd(kind), "run `make crd`"


def test_only_the_clocks_read_the_time_of_day() -> None:
    readers = {relative(path) for path in SOURCES for name in clock_reads(path) if relative(path) not in CLOCKS}

    assert readers == set()


def clock_reads(path: Path) -> Iterator[str]:
    """Calls of datetime.now, datetime.utcnow and time.time; monotonic clocks only measure."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ("datetime.now", "datetime.utcnow", "time.time", "time.time_ns"):
                yield name


def test_new_tensors_name_their_device() -> None:
    """A script may have set another default device than the CPU. Recipes have no other script than the project's."""
    recipes = ROOT / "trainer" / "piton_trainer" / "recipes"
    found = {place for path in SOURCES if recipes not in path.parents for place in tensors_without_device(path)}

    assert found == set()


def tensors_without_device(path: Path) -> Iterator[str]:
    """Calls of torch's functions that make a tensor on the default device."""
    makers = (
        "arange asarray as_tensor empty eye full linspace ones rand randint randn randperm scalar_tensor tensor zeros"
    )
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {f"torch.{maker}" for maker in makers.split()}
            and "device" not in {keyword.arg for keyword in node.keywords}
        ):
            yield f"{relative(path)}:{node.lineno}"


def test_exports_are_sorted() -> None:
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
            ):
                exports = ast.literal_eval(node.value)
                assert exports == sorted(exports), relative(path)


def test_the_operator_starts_without_torch() -> None:
    program = "import sys, piton.kube.app, piton.cli, piton.rendering.pytorchjob; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "False"


def test_decisions_need_neither_torchx_nor_kubernetes() -> None:
    program = "import sys, piton.core.decide; print(bool({'torchx', 'kubernetes', 'kopf', 'yaml'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "False"


def test_a_recipe_is_checked_without_torch() -> None:
    program = (
        "import sys, piton_trainer.recipes.catalog as c; "
        "[(c.config_model(name), c.part(name, 'size')) for name in c.RECIPES]; "
        "print(bool({'numpy', 'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert found.stdout.strip() == "False", found.stderr


def test_the_page_of_failures_is_what_the_code_says() -> None:
    assert failures.PAGE.read_text() == failures.page(), "python -m hack.failures"


def test_the_page_of_reasons_has_every_reason_with_its_meaning() -> None:
    """`docs/reasons.md` is written for readers; what a reason means is said in `api/reasons.py`."""
    page = (ROOT / "docs" / "reasons.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {row[0].removeprefix("| `").removesuffix("`"): row[1] for row in rows}

    assert told == {str(reason): meaning for reason, meaning in failures.meanings().items()}
    waiting = page.partition("## Why nothing happens yet")[2].partition("\n## ")[0]
    without = [line for line in waiting.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert not without, "say what to do"
