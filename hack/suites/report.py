"""What a part of a suite came to: counts and failures from pytest's JUnit file, and the table of all parts."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from hack.suites.plan import Part, Suite, longest_path


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many tests passed, failed and were skipped; a command without tests counts as one."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one part ended."""

    part: Part
    seconds: float | None
    """How long it ran; None if it did not run."""
    counts: Counts
    failures: tuple[str, ...] = ()
    """Commands that repeat what failed, one line each."""

    @property
    def passed(self) -> bool:
        """True if the part ran and nothing failed."""
        return not self.counts.failed


def read(part: Part, *, seconds: float, code: int, junit: Path, suite: str) -> Result:
    """Return the result of a part that has ended.

    Args:
        part: The part.
        seconds: How long it ran.
        code: Its exit code.
        junit: The file that pytest wrote; it does not exist where the command ran no pytest, or pytest was killed.
        suite: The name of the suite, for the command that repeats the whole part.
    """
    cases, is_whole = _cases(junit)
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    failures = list(dict.fromkeys(_command(part, case) for case in failed))  # one that fails in its teardown too
    if not failures and (code or not is_whole):
        failures = [f"make nightly PART={part.name}" if suite == "nightly" else part.command]
    passed = len(cases) - len(failed) - skipped if cases else int(not failures)
    return Result(
        part=part,
        seconds=seconds,
        counts=Counts(passed=passed, failed=len(failures), skipped=skipped),
        failures=tuple(failures),
    )


def _cases(junit: Path) -> tuple[list[ET.Element], bool]:
    """Return the tests of a JUnit file, and False if the file was cut off; a command without pytest writes none."""
    try:
        return list(ET.parse(junit).iter("testcase")), True  # noqa: S314 - our own file
    except FileNotFoundError:
        return [], True
    except ET.ParseError:
        return [], False


def not_run(part: Part, why: str) -> Result:
    """Return the result of a part that could not start; it counts as failed."""
    return Result(part=part, seconds=None, counts=Counts(failed=1), failures=(f"not run: {why}",))


def file_and_test(case: ET.Element) -> tuple[str, str]:
    """Return the file and the name of a case as pytest spells them: `tests/test_a.py`, `TestB::test_c[1]`.

    The name is empty for a file that could not be collected. pytest's own attribute `file` is not used: for the tests
    that Hypothesis makes it names a file of Hypothesis.
    """
    owner, name = case.get("classname", ""), case.get("name", "")
    if not owner:
        return case.get("file") or f"{name.replace('.', '/')}.py", ""
    parts = owner.split(".")
    classes = [part for part in parts if part[:1].isupper()]
    return f"{'/'.join(parts[: len(parts) - len(classes)])}.py", "::".join([*classes, name])


def _command(part: Part, case: ET.Element) -> str:
    """Return the command that runs this test alone, with the environment of its part; or the part's, and the test."""
    words = [f"{key}={shlex.quote(value)}" for key, value in part.environment.items()]
    test = "::".join(filter(None, file_and_test(case)))
    if part.is_one_case:
        return " ".join([*words, part.command, f"# {test}"])
    return " ".join([*words, ".venv/bin/pytest", "-q", shlex.quote(test)])


def table(suite: Suite, results: Sequence[Result], *, seconds: float) -> Iterator[str]:
    """Yield the lines of the table: each part with its minutes as planned and as taken, and its counts."""
    row = "{:<18}{:>6}{:>6}{:>9}{:>8}{:>8}{:>9}".format
    yield row("part", "warm", "cold", "minutes", "passed", "failed", "skipped")
    for result in results:
        part, counts = result.part, result.counts
        took = "not run" if result.seconds is None else minutes(result.seconds)
        planned = f"{part.warm:g}", f"{part.minutes_cold:g}"
        yield row(part.name, *planned, took, counts.passed, counts.failed, counts.skipped)
    planned = f"{longest_path(suite.parts, cold=False):g}", f"{longest_path(suite.parts, cold=True):g}"
    totals = [sum(getattr(result.counts, name) for result in results) for name in ("passed", "failed", "skipped")]
    yield row("all", *planned, minutes(seconds), *totals)


def failures(results: Iterable[Result]) -> Iterator[str]:
    """Yield a line for each failure: the command that repeats it."""
    for result in results:
        for line in result.failures:
            yield f"FAILED {result.part.name}: {line}"


def minutes(seconds: float) -> str:
    """Return a duration as minutes and seconds: 12:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
