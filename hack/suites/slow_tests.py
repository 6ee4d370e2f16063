"""Writes tests/slow.txt from the times that a suite has measured: `python -m hack.suites.slow_tests JUNIT_FILE ...`.

It needs the files of both parts, `runs/suites/nightly/test.xml runs/suites/nightly/test-slow.xml`: a test that is quick
now leaves the list, and one that was not measured would leave it too.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from xml.etree import ElementTree as ET

from hack.suites.listed_tests import SLOW, listed
from hack.suites.report import file_and_test

SLOW_SECONDS = 0.6
"""A test is slow if its cases take longer on average. In a suite other parts run beside it, at half the speed."""
_MOST = 0.8
"""A file is listed as a whole if its slow tests take more than this part of its time."""
_HEADER = """\
# The tests that `make test` leaves out, so that it ends within four minutes on two cores: `make test-slow` has them. CI
# runs both before each merge. `python -m hack.suites.slow_tests` writes this list.
"""
Seconds = Mapping[str, Mapping[str, float]]
"""The mean seconds of the cases of a test, by file and test."""


def main(paths: Iterable[str]) -> int:
    """Write the list from these JUnit files of pytest. Return 2 if a file is unreadable or a listed test is missing."""
    try:
        seconds = mean_seconds(ET.parse(path).getroot() for path in paths)  # noqa: S314 - our own files
    except (OSError, ET.ParseError) as error:
        print(f"JUNIT_FILE: {error}; name the files of the parts test and test-slow", file=sys.stderr)
        return 2
    if missing := unmeasured(listed(SLOW), seconds):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        print(
            f"JUNIT_FILE: {missing[0]}{more} of tests/slow.txt is not measured; name the files of both parts, or "
            "delete the lines of tests that are gone",
            file=sys.stderr,
        )
        return 2
    SLOW.write_text(_HEADER + "".join(f"{line}\n" for line in slow_tests(seconds)))
    return 0


def mean_seconds(suites: Iterable[ET.Element]) -> Seconds:
    """Return the mean seconds of the cases of each test in these JUnit documents."""
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in (case for suite in suites for case in suite.iter("testcase")):
        file, test = file_and_test(case)
        test = test.partition("[")[0].partition("@")[0]  # pytest-xdist adds the name of its group
        times[file][test].append(float(case.attrib["time"]))
    return {file: {test: sum(found) / len(found) for test, found in tests.items()} for file, tests in times.items()}


def unmeasured(lines: Iterable[str], seconds: Seconds) -> list[str]:
    """Return the listed files and tests that have no time."""
    return [
        line
        for line in lines
        for file, _, test in [line.partition("::")]
        if file not in seconds or (test and test not in seconds[file])
    ]


def slow_tests(seconds: Seconds) -> list[str]:
    """Return the slow tests, as pytest names them: a file where most of its time is theirs, else each test."""
    lines: list[str] = []
    for file, tests in sorted(seconds.items()):
        slow = sorted(test for test, mean in tests.items() if mean > SLOW_SECONDS)
        is_mostly_slow = sum(tests[test] for test in slow) > _MOST * sum(tests.values())
        lines += [file] if slow and is_mostly_slow else [f"{file}::{test}" for test in slow]
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
