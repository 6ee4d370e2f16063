"""The lists of tests name what there is; that of the presubmit leaves out no promise and no neighbour."""

import ast
import re
from pathlib import Path

import pytest

from hack.suites.listed_tests import PRESUBMIT, SLOW, listed

ROOT = Path(__file__).parents[2]
STORIES = listed(PRESUBMIT)
LISTED = [(path, test) for path in (PRESUBMIT, SLOW) for test in listed(path)]
ON_A_CLUSTER = re.compile(r"tests/(?:e2e|neighbours)/test_\w+\.py")


@pytest.mark.parametrize(("path", "name"), LISTED, ids=[f"{path.stem}-{name}" for path, name in LISTED])
def test_a_listed_test_exists(path: Path, name: str) -> None:
    file, _, test = name.partition("[")[0].partition("::")
    assert (ROOT / file).exists(), f"{path.name}: {file} does not exist; name a file of tests"
    tree = ast.parse((ROOT / file).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    defined |= {
        name.asname or name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assert not test or set(test.split("::")) <= defined, f"{path.name}: {file} has no {test}"


def test_no_test_is_listed_twice() -> None:
    assert len(LISTED) == len(set(LISTED))


def test_no_story_is_slow_as_well() -> None:
    assert not set(STORIES) & set(listed(SLOW))


def test_every_guarantee_that_a_cluster_shows_has_a_story() -> None:
    table = (ROOT / "README.md").read_text().partition("## Guarantees")[2].partition("\n## ")[0]
    shown_by = [files for line in table.splitlines() if (files := set(ON_A_CLUSTER.findall(line)))]
    files = {story.partition("::")[0] for story in STORIES}

    assert shown_by
    assert [found for found in shown_by if not found & files] == []


@pytest.mark.parametrize("neighbour", ["karpenter", "kueue", "kubeflow"])
def test_every_neighbour_has_a_story(neighbour: str) -> None:
    assert any(f"tests/neighbours/test_{neighbour}" in story for story in STORIES)
