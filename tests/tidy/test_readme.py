"""What the README shows is right: its example is accepted, and what it links to exists."""

import re
from pathlib import Path

import pytest
import yaml

from piton.api.parse import parse_file
from support import resume
from support.builders import NOW

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def test_the_run_of_the_readme_is_accepted() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    assert parse_file(yaml.safe_load(example), now=NOW).spec is not None


def test_the_table_of_what_a_resume_does_is_that_of_the_tests() -> None:
    assert resume.DOCUMENT.read_text() == resume.table(), "run make resume-table"


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links_between_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []
