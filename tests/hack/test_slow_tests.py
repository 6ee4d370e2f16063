"""The tests that `make test` leaves out, by the times that were measured."""

from xml.etree import ElementTree as ET

from hack.suites.slow_tests import mean_seconds, slow_tests

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
