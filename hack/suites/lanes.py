"""Runs the parts of a suite as processes, side by side as far as their order allows."""

import asyncio
import os
import shlex
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hack.suites import report
from hack.suites.plan import Part, Suite
from hack.suites.report import Result

ROOT = Path(__file__).parents[2]
REQUIRED = "PITON_TESTS_SKIP_NOTHING"
"""The variable by which a part that is missing fails the tests that need it: a suite of skipped tests is not green."""
_STOP_SECONDS = 90.0
"""How long a part may take to stop what it started, before it is killed."""
_IN_ITS_PLACE = '{ echo "$1" > /proc/self/autogroup; } 2> /dev/null; exec nice -n "$1" bash -c "$2"'
"""Linux may share the CPU between sessions. Then a process is only nice to others of its own session: see sched(7)."""

Say = Callable[[str], None]


async def run(suite: Suite, logs: Path, *, say: Say, print_logs: bool) -> list[Result]:
    """Run all parts; return their results, in the order of the suite. A suite that is cancelled stops its processes.

    Args:
        suite: The parts.
        logs: The folder for what each part prints, and for pytest's JUnit files.
        say: Prints a line.
        print_logs: True if the output of each part is to be printed when the part ends.
    """
    run_of_suite = _Run(suite, logs, say, print_logs)
    tasks = {part.name: asyncio.ensure_future(run_of_suite.one(part)) for part in suite.parts}
    run_of_suite.tasks.update(tasks)
    try:
        await asyncio.wait(tasks.values())
    except asyncio.CancelledError:
        for task in tasks.values():
            task.cancel()
    ended = await asyncio.gather(*tasks.values(), return_exceptions=True)
    return [_result(part, found) for part, found in zip(suite.parts, ended, strict=True)]


def _result(part: Part, ended: Result | BaseException) -> Result:
    """Return the result of a part; one that was cancelled before it started did not run."""
    if isinstance(ended, asyncio.CancelledError):
        return report.not_run(part, "the suite was stopped before")
    if isinstance(ended, BaseException):
        raise ended
    return ended


class _Run:
    """One run of a suite."""

    def __init__(self, suite: Suite, logs: Path, say: Say, print_logs: bool) -> None:
        self.tasks: dict[str, asyncio.Future[Result]] = {}
        self._suite = suite
        self._logs = logs
        self._say = say
        self._print_logs = print_logs

    async def one(self, part: Part) -> Result:
        """Wait for the parts before this one, run it, and return its result."""
        for name in (*part.needs, *part.after):
            if name not in self.tasks:
                continue  # the rest of the suite was not chosen
            earlier = await asyncio.shield(self.tasks[name])
            if name in part.needs and not earlier.passed:
                return self._not_run(part, f"{name} has failed")
        try:
            return await self._start(part)
        except OSError as error:  # a full disk, no process left: the table of the others is wanted all the same
            return self._not_run(part, str(error))

    def _not_run(self, part: Part, why: str) -> Result:
        self._say(f"{part.name} does not run: {why}")
        return report.not_run(part, why)

    async def _start(self, part: Part) -> Result:
        log, junit = self._logs / f"{part.name}.log", self._logs / f"{part.name}.xml"
        junit.unlink(missing_ok=True)
        settings = f"--junitxml={shlex.quote(str(junit))} -o junit_family=xunit1"  # the user's own would choose tests
        environment = {**os.environ, **part.environment, "PYTEST_ADDOPTS": settings, REQUIRED: "1"}
        self._say(f"{part.name} starts, {part.warm:g} to {part.minutes_cold:g} min: {part.command}")
        began = time.monotonic()
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                "env", "--default-signal=INT",  # a shell ignores it in background jobs
                "bash", "-c", _IN_ITS_PLACE, "bash", str(part.niceness), part.command,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            code = await _stop(process)
        seconds = time.monotonic() - began
        result = report.read(part, seconds=seconds, code=code, junit=junit, suite=self._suite.name)
        word = "passed" if result.passed else f"FAILED (exit code {code})"
        self._say(f"{part.name} {word} in {report.minutes(seconds)}; {log}")
        if self._print_logs:
            self._say(log.read_text(errors="replace"))
        return result


async def _stop(process: asyncio.subprocess.Process) -> int:
    """Stop a part as Ctrl-C does, so that tests stop what they started; kill it where that takes too long."""
    for kind, patience in ((signal.SIGINT, _STOP_SECONDS), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), patience)
            break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what its shell has left behind
    return process.returncode or 1
