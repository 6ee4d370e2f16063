"""The tests that `make test` leaves out, by the times that were measured."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from hack.suites.slow_tests import main, mean_seconds, slow_tests, unmeasured

_MEASURED = """
<testsuites><testsuite>
<testcase classname="tests.a.test_mixed" name="test_quick" time="0.5"/>
<testcase classname="tests.a.test_mixed" name="test_slow[1]" time="0.1"/>
<testcase classname="tests.a.test_mixed" name="test_slow[2]@group" time="1.3"/>
<testcase classname="tests.a.test_slow" name="test_longer" time="9"/>
<testcase classname="tests.a.test_slow" name="test_quick" time="0.1"/>
<testcase classname="tests.a.test_class.TestWorld" name="runTest" time="7"/>
<testcase classname="tests.a.test_class" name="test_other" time="0.4"/>
<testcase classname="tests.a.test_class" name="test_another" time="0.6"/>
<testcase classname="tests.a.test_quick" name="test_nothing" time="0.0"/>
</testsuite></testsuites>
"""


def test_a_test_is_slow_by_the_mean_of_its_cases_and_a_file_by_most_of_its_time() -> None:
    seconds = mean_seconds([ET.fromstring(_MEASURED)])

    assert slow_tests(seconds) == [
        "tests/a/test_class.py",
        "tests/a/test_mixed.py::test_slow",
        "tests/a/test_slow.py",
    ]


def test_a_listed_test_without_a_time_is_named() -> None:
    seconds = mean_seconds([ET.fromstring(_MEASURED)])
    measured = ["tests/a/test_slow.py", "tests/a/test_mixed.py::test_slow"]
    gone = ["tests/a/test_mixed.py::test_gone", "tests/b.py"]

    assert unmeasured([*measured, *gone], seconds) == gone


@pytest.mark.parametrize("measured", ["", "<testsuites", None])
def test_the_list_stays_as_it_is_where_tests_were_not_measured(
    measured: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, junit = tmp_path / "slow.txt", tmp_path / "test.xml"
    slow.write_text("# a comment\ntests/a/test_slow.py\n")
    monkeypatch.setattr("hack.suites.slow_tests.SLOW", slow)
    if measured is not None:
        junit.write_text(measured or "<testsuites/>")

    assert main([str(junit)]) == 2
    assert slow.read_text().endswith("\ntests/a/test_slow.py\n")
    assert capsys.readouterr().err.startswith("JUNIT_FILE: ")
