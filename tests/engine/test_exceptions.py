"""The exceptions of the differential test are those that the conformance page lists, and few."""

import re
from pathlib import Path

from support.differential_compare import ADMISSION, RULES

PAGE = (Path(__file__).parents[2] / "docs" / "pytorchjob-conformance.md").read_text()
MOST = 11


def test_the_page_lists_every_exception_and_no_other() -> None:
    section = PAGE.partition("## Exceptions of the differential test")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)

    assert sorted(listed) == sorted({rule.name for rule in RULES} | {ADMISSION})
    assert len(listed) <= MOST
