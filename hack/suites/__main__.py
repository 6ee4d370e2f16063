"""The command line of the suites; see the package."""

import argparse
import asyncio
import os
import signal
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path

from hack.suites import lanes, report
from hack.suites.plan import PRESUBMIT, Suite, nightly
from hack.suites.report import Result

LOGS = lanes.ROOT / "runs" / "suites"


def main() -> int:
    """Run a suite and print its table; 1 if anything failed, 2 if there is no such part."""
    options = _parser().parse_args()
    suite = PRESUBMIT if options.suite == "presubmit" else nightly(options.date)
    try:
        suite = suite if options.part is None else suite.only(options.part)
    except ValueError as error:
        print(f"suites: {error}", file=sys.stderr)
        return 2
    logs = LOGS / suite.name
    logs.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    results = asyncio.run(_run(suite, logs))
    print("\n".join([*report.table(suite, results, seconds=time.monotonic() - began), *report.failures(results)]))
    return int(not all(result.passed for result in results))


async def _run(suite: Suite, logs: Path) -> list[Result]:
    """Run the suite until its end, its limit, or a signal."""
    began = time.monotonic()
    running = asyncio.ensure_future(
        lanes.run(
            suite,
            logs,
            say=lambda text: print(f"{report.minutes(time.monotonic() - began):>6}  {text}", flush=True),
            print_logs=bool(os.environ.get("CI")),
        )
    )

    def stop() -> None:
        if not running.cancelling():  # a second Ctrl-C must not cut short what the first one stops
            running.cancel()

    loop = asyncio.get_running_loop()
    for kind in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(kind, stop)
    loop.call_later(60 * suite.limit, stop)
    return await running


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hack.suites", description="All tests, in two suites.")
    parser.add_argument("suite", choices=("presubmit", "nightly"))
    parser.add_argument("--part", help="run this part only, and what it needs")
    parser.add_argument(
        "--date",
        type=date.fromisoformat,
        default=datetime.now(UTC).date(),
        help="the day that draws the nightly seeds (default: today)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
