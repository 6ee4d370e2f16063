"""The list of the presubmit's stories names what there is, and leaves out no promise and no neighbour."""

import ast
import re
from pathlib import Path

import pytest

from support.presubmit import LIST, stories

ROOT = Path(__file__).parents[2]
STORIES = stories()
ON_A_CLUSTER = re.compile(r"tests/(?:e2e|neighbours)/test_\w+\.py")


@pytest.mark.parametrize("story", STORIES)
def test_a_story_exists(story: str) -> None:
    file, _, test = story.partition("[")[0].partition("::")
    assert (ROOT / file).exists(), f"{LIST.name}: {file} does not exist; name a file of stories"
    tree = ast.parse((ROOT / file).read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    defined |= {
        name.asname or name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assert not test or test in defined, f"{LIST.name}: {file} has no {test}"


def test_no_story_is_listed_twice() -> None:
    assert len(STORIES) == len(set(STORIES))


def test_every_guarantee_that_a_cluster_shows_has_a_story() -> None:
    table = (ROOT / "README.md").read_text().partition("## Guarantees")[2].partition("\n## ")[0]
    shown_by = [files for line in table.splitlines() if (files := set(ON_A_CLUSTER.findall(line)))]
    files = {story.partition("::")[0] for story in STORIES}

    assert shown_by
    assert [found for found in shown_by if not found & files] == []


@pytest.mark.parametrize("neighbour", ["karpenter", "kueue", "kubeflow"])
def test_every_neighbour_has_a_story(neighbour: str) -> None:
    assert any(f"tests/neighbours/test_{neighbour}" in story for story in STORIES)
