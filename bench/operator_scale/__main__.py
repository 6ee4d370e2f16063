"""Costs of the operator by the number of runs, on a real API server with nodes and pods that kwok plays.

For each number the box's control plane is brought up anew, with its real node cordoned. Piton's operator runs as a
process of its own, with the bundled PyTorchJob controller. Each run has one pod.

    make bench-operator RUNS="100 400 1000"     root only; prints tables, one JSON line, and what got worse
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.operator_scale import (
    cluster,
    disturbances,
    floor,
    harness,
    plot,
    process,
    recorded,
    reporters,
    steady,
    table,
    waiting,
)
from bench.operator_scale.comparison import compare
from bench.operator_scale.harness import Harness
from bench.operator_scale.run_watch import LateError
from hack.cluster import box, programs
from hack.cluster.shell import BoxError
from hack.neighbours import kwok
from piton.ports import PortError

PICTURE = cluster.ROOT / "build" / "bench-operator.svg"

Scenario = Callable[[Harness], Awaitable[dict[str, Any]]]


async def _without_operator(bench: Harness) -> dict[str, Any]:
    """Measure the same as while idle, with the operator stopped."""
    process.stop_operator()
    return await steady.rest(bench)


SCENARIOS: dict[str, Scenario] = {
    "bring_up": steady.bring_up,
    "idle": steady.idle,
    "new_runs": disturbances.new_runs,
    "notices": disturbances.notices,
    "lost_nodes": disturbances.lost_nodes,
    "reporters": reporters.reporters,
    "without_operator": _without_operator,
    "restart": disturbances.restart,
    "deletion": disturbances.deletion,
    "waiting": waiting.for_gpus,
    "waiting_quota": waiting.for_quota,
    "waiting_queue": waiting.in_queue,
}
"""In their order. `restart` needs the operator to be stopped; those that wait need no other runs."""
WAITING = {"waiting", "waiting_quota", "waiting_queue"}


def scenarios(only: list[str]) -> dict[str, Scenario]:
    """Return the scenarios that were asked for, and those that they need."""
    needed = set(only)
    needed |= {"bring_up"} if needed - WAITING else set()
    needed |= {"without_operator"} if {"idle", "restart"} & needed else set()
    needed |= {"deletion"} if WAITING & needed and "bring_up" in needed else set()
    needed |= {"restart"} if {"deletion", "without_operator"} <= needed else set()
    return {name: scenario for name, scenario in SCENARIOS.items() if not only or name in needed}


async def measure(results: dict[str, Any], scenarios: dict[str, Scenario]) -> None:
    """Run the scenarios, one after the other. One that is late ends them, and its sentence is its result."""
    async with harness.connected(results["runs"]) as bench:
        bench.say(f"{bench.count:,} runs: floor")
        results["floor"] = await floor.measure(bench.client)
        name = "start"
        try:
            await bench.start_operator()
            await steady.warm_up(bench)
            for name, scenario in scenarios.items():
                bench.say(f"{bench.count:,} runs: {name}")
                began = time.monotonic()
                results[name] = await scenario(bench)
                bench.say(f"{bench.count:,} runs: {name} took {time.monotonic() - began:.0f} s")
        except (LateError, PortError, BoxError) as error:
            results[name] = {"late": str(error)}
            bench.say(f"{name}: {error}")
        finally:
            process.stop_operator()


def measured_alone(results: dict[str, Any], scenarios: dict[str, Scenario]) -> None:
    """Bring up a control plane, add what is measured to the results, and stop all of it."""
    began = time.monotonic()
    with ExitStack() as ends:  # each of them even if one before fails
        ends.callback(lambda: results.update(wall_seconds=round(time.monotonic() - began)))
        ends.enter_context(box.use_alone())
        ends.callback(box.down)
        box.up(spot_nodes=0, say=harness.say)
        ends.callback(kwok.stop)
        kwok.start(say=harness.say)
        ends.callback(waiting.stop_kueue)
        ends.callback(process.stop_operator)
        asyncio.run(measure(results, scenarios))


def report(results: dict[int, dict[str, Any]], *, picture: Path, record: bool) -> None:
    """Print tables, notes, the picture's path, one JSON line, and what got worse."""
    known = recorded.load()
    compared = {runs: compare(found, known.get(runs)) for runs, found in results.items()}
    for runs, found in results.items():
        print(table.table(runs, compared[runs]), *table.notes(found, found["cores"]), "", sep="\n")
    plot.draw(picture, results, known)
    print(f"picture: {picture}")
    print(json.dumps({str(runs): found for runs, found in results.items()}))
    print(table.last_sentence(compared, known))
    kept = {runs: found for runs, found in results.items() if recorded.may_replace(found, known.get(runs))}
    if record and kept:
        recorded.save(kept)
        print(f"Recorded in {recorded.PATH} for {', '.join(f'{runs:,}' for runs in kept)} runs.")


def main() -> int:
    """Measure, and print; return 1 if a scenario did not get to its end: a table with holes is no success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100], help="numbers of runs, one after the other")
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=[], help="these, and what they need")
    parser.add_argument("--record", action="store_true", help="keep the figures, to compare later ones with")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    if box.is_up():
        sys.exit("the box is up, perhaps for somebody else: make cluster-down, and again")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what it runs in the background
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # asyncio ends in order by this one
    results: dict[int, dict[str, Any]] = {}
    is_whole = False
    try:
        if "waiting_queue" in scenarios(given.only):
            programs.need(["kueue"], harness.say)  # now, for it takes minutes, once
        for runs in given.runs:
            results[runs] = {"runs": runs, "cores": os.cpu_count()}
            measured_alone(results[runs], scenarios(given.only))
        is_whole = all(map(recorded.is_whole, results.values()))
    except KeyboardInterrupt:
        print("bench: stopped; what was measured before follows", file=sys.stderr)
    except BoxError as error:
        print(f"bench: {error}; what was measured before follows", file=sys.stderr)
    if begun := {runs: found for runs, found in results.items() if "floor" in found}:
        report(begun, picture=given.picture, record=given.record)
    return int(not is_whole)


if __name__ == "__main__":
    sys.exit(main())
