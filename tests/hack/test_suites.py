"""The two suites: what waits for what, what is said of a failure, and that nothing goes on after the end."""

import asyncio
import os
import signal
import subprocess
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hack.suites import lanes, report
from hack.suites.plan import PRESUBMIT, Part, Suite, longest_path, nightly
from hack.suites.report import Counts, Result

ROOT = Path(__file__).parents[2]
TODAY = date(2026, 11, 25)
SUITES = [PRESUBMIT, nightly(TODAY)]
TEST = """
import pytest

def test_right() -> None: pass
def test_left_out() -> None: pytest.skip("not here")
@pytest.mark.parametrize("word", ["a b"])
def test_wrong(word: str) -> None: assert word == "c"
class TestInAClass:
    def test_wrong(self) -> None: assert False
@pytest.fixture
def broken() -> None: raise ValueError
def test_with_a_broken_fixture(broken: None) -> None: pass
"""
TWICE = """
import pytest

@pytest.fixture
def broken():
    yield
    raise ValueError
def test_wrong(broken) -> None: assert False
"""


def suite_of(*parts: Part) -> Suite:
    return Suite(name="nightly", parts=parts, warm=1, cold=1, limit=1)


def part(name: str, command: str = "true", *, needs: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> Part:
    return Part(name=name, command=command, warm=1, needs=needs, after=after)


def run(tmp_path: Path, *parts: Part) -> dict[str, Result]:
    said: list[str] = []
    results = asyncio.run(lanes.run(suite_of(*parts), tmp_path, say=said.append, print_logs=False))
    return {result.part.name: result for result in results}


def test_a_part_stands_back_behind_other_sessions_as_well(tmp_path: Path) -> None:
    """Linux may share the CPU between sessions: a nice process alone in its own has as much as any."""
    told = "cut -d ' ' -f 19 /proc/self/stat; grep -so 'nice .*' /proc/self/autogroup || echo nice 5"
    run(tmp_path, replace(part("slow", told), niceness=5), part("quick", told))
    own = os.nice(0)
    assert (tmp_path / "slow.log").read_text() == f"{min(19, own + 5)}\nnice 5\n"
    assert (tmp_path / "quick.log").read_text().startswith(f"{own}\n")


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_a_suite_is_planned_within_its_limits(suite: Suite) -> None:
    assert longest_path(suite.parts, cold=False) <= suite.warm
    assert longest_path(suite.parts, cold=True) <= suite.cold < suite.limit


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_a_part_waits_only_for_parts_before_it(suite: Suite) -> None:
    names: list[str] = []
    for found in suite.parts:
        assert {*found.needs, *found.after} <= set(names), found.name
        names.append(found.name)
    assert len(names) == len(set(names))


def test_the_seeds_of_a_night_are_those_of_its_date() -> None:
    assert nightly(TODAY) == nightly(TODAY) != nightly(TODAY.replace(day=26))


def test_a_part_comes_with_what_it_needs_and_nothing_else() -> None:
    suite = suite_of(part("a"), part("b", needs=("a",)), part("c", needs=("b",), after=("d",)), part("d", after=("a",)))

    assert [found.name for found in suite.only("c").parts] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="PART: nightly has no part 'e'; choose one of a, b, c, d"):
        suite.only("e")


def test_a_failure_stops_only_the_parts_that_need_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    results = run(
        tmp_path,
        part("fails", f"test ! -e {mark}; exit 3"),
        part("needs", f"touch {mark}", needs=("fails",)),
        part("follows", after=("fails", "needs")),
    )

    assert {name: result.passed for name, result in results.items()} == {
        "fails": False,
        "needs": False,
        "follows": True,
    }
    assert results["fails"].failures == ("make nightly PART=fails",)
    assert results["needs"].failures == ("not run: fails has failed",)
    assert not mark.exists()


def test_the_tests_of_a_part_are_counted_and_each_failure_has_a_command_that_repeats_it(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TEST)
    tests = f"cd {tmp_path} && {ROOT}/.venv/bin/python -m pytest -q -p no:cacheprovider test_it.py"

    result = run(tmp_path, replace(part("tests", tests), environment={"SEEDS": "1 2"}))["tests"]

    assert result.counts == Counts(passed=1, failed=3, skipped=1)
    assert result.failures == (
        "SEEDS='1 2' .venv/bin/pytest -q 'test_it.py::test_wrong[a b]'",
        "SEEDS='1 2' .venv/bin/pytest -q test_it.py::TestInAClass::test_wrong",
        "SEEDS='1 2' .venv/bin/pytest -q test_it.py::test_with_a_broken_fixture",
    )


def test_a_file_that_cannot_be_collected_is_named_and_one_test_that_fails_twice_is_one_failure(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name")
    (tmp_path / "test_twice.py").write_text(TWICE)
    tests = (
        f"cd {tmp_path} && {ROOT}/.venv/bin/python -m pytest -q -p no:cacheprovider --continue-on-collection-errors ."
    )

    assert run(tmp_path, part("tests", tests))["tests"].failures == (
        ".venv/bin/pytest -q test_broken.py",
        ".venv/bin/pytest -q test_twice.py::test_wrong",
    )


@pytest.mark.parametrize("code", [0, 1])
def test_a_junit_file_that_was_cut_off_is_a_failure_of_the_part(tmp_path: Path, code: int) -> None:
    found = run(tmp_path, part("killed", f"echo '<testsuites><test' > {tmp_path}/killed.xml; exit {code}"))["killed"]

    assert (found.counts, found.failures) == (Counts(failed=1), ("make nightly PART=killed",))


def test_a_part_whose_seed_is_in_its_command_is_repeated_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_wrong() -> None: assert False")
    tests = f"cd {tmp_path} && SEED=7 {ROOT}/.venv/bin/python -m pytest -q -p no:cacheprovider test_it.py"

    result = run(tmp_path, replace(part("worlds", tests), is_one_case=True))["worlds"]

    assert result.failures == (f"{tests} # test_it.py::test_wrong",)


def test_a_part_that_cannot_start_leaves_the_others_their_table(tmp_path: Path) -> None:
    (tmp_path / "full.log").mkdir()  # as little to be opened as a file on a full disk

    results = run(tmp_path, part("full"), part("other", after=("full",)))

    assert results["full"].failures[0].startswith("not run: [Errno 21] Is a directory")
    assert results["other"].passed


def test_a_suite_of_tests_that_were_skipped_for_a_missing_part_fails(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from support.missing import missing\ndef test_it() -> None: missing('no box')"
    )
    tests = f"cd {tmp_path} && PYTHONPATH={ROOT}:{ROOT}/tests {ROOT}/.venv/bin/pytest -q -p no:cacheprovider test_it.py"

    assert run(tmp_path, part("tests", tests))["tests"].counts == Counts(failed=1)


def test_what_the_user_has_set_for_pytest_chooses_no_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k nothing")
    (tmp_path / "test_it.py").write_text("def test_right() -> None: pass")
    tests = f"cd {tmp_path} && {ROOT}/.venv/bin/python -m pytest -q -p no:cacheprovider test_it.py"

    assert run(tmp_path, part("tests", tests))["tests"].counts == Counts(passed=1)


def test_pytest_that_ends_without_a_failed_test_has_failed_by_its_exit_code(tmp_path: Path) -> None:
    tests = f"cd {tmp_path} && {ROOT}/.venv/bin/python -m pytest -q -p no:cacheprovider ."  # collects nothing: 5

    assert run(tmp_path, part("tests", tests))["tests"].failures == ("make nightly PART=tests",)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background job"])
def test_a_suite_that_is_stopped_stops_its_parts_as_by_ctrl_c_and_says_what_did_not_run(
    tmp_path: Path, request: pytest.FixtureRequest, handler: Any
) -> None:
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, handler)))
    begun, cleaned = tmp_path / "begun", tmp_path / "cleaned"
    slow = f"trap 'touch {cleaned}; exit 130' INT; touch {begun}; while true; do read -t 0.05 <> <(:) || true; done"

    async def stopped() -> list[Result]:
        parts = suite_of(part("slow", slow), part("later", after=("slow",)))
        running = asyncio.ensure_future(lanes.run(parts, tmp_path, say=lambda _: None, print_logs=False))
        while not begun.exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)
        running.cancel()
        return await running

    slow_result, later = asyncio.run(stopped())

    assert cleaned.exists()
    assert not slow_result.passed
    assert later.failures == ("not run: the suite was stopped before",)


def test_the_table_has_a_row_for_each_part_and_their_sums() -> None:
    first, second = part("first"), replace(part("second", needs=("first",)), cold=3)
    results = [
        Result(part=first, seconds=61, counts=Counts(passed=5)),
        report.not_run(second, "first has failed"),
    ]

    rows = [line.split() for line in report.table(suite_of(first, second), results, seconds=125)]

    assert rows[1:] == [
        ["first", "1", "1", "1:01", "5", "0", "0"],
        ["second", "1", "3", "not", "run", "0", "1", "0"],
        ["all", "2", "4", "2:05", "5", "1", "0"],
    ]


def test_an_unknown_part_is_refused_with_the_names_of_all() -> None:
    done = subprocess.run(["make", "-s", "nightly", "PART=clutser"], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode != 0
    assert "PART: nightly has no part 'clutser'; choose one of setup, build," in done.stderr
