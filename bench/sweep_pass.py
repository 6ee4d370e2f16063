"""CPU time of one pass over a sweep whose runs all train, on the emulated API server of the tests.

The event loop serves nothing else meanwhile, so a pass has to be short.

    PYTHONPATH=tests python -m bench.sweep_pass --runs 200
"""

import argparse
import asyncio
import statistics
import time

from support import pilot as pilots
from support.cluster import Runs
from support.pilot import a_cluster, a_pilot
from support.sweeps import a_sweep

SEEDS = 5
PASSES = 20


async def measure(runs: int) -> list[float]:
    """Return the milliseconds of CPU of some passes that change nothing."""
    async with a_cluster() as cluster, a_pilot(cluster) as pilot:
        cluster.script = {1: Runs()}
        variants = [{"name": f"v{number}"} for number in range(runs // SEEDS)]
        await cluster.apply(a_sweep(variants=variants, seeds=list(range(SEEDS)), parallelism=runs))
        for _ in range(3):
            await pilot.settle_sweeps()
            await cluster.step()
            pilot.advance(5)
        found = []
        for _ in range(PASSES):
            began = time.process_time()
            await pilot.sweeps.reconcile(("team", "ragcun"))
            found.append(1000 * (time.process_time() - began))
        return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    pilots.PASSES_MAX = 50 * given.runs
    found = asyncio.run(measure(given.runs))
    print(f"{given.runs} runs: {statistics.median(found):.1f} ms of CPU per pass, {max(found):.1f} ms at most")


if __name__ == "__main__":
    main()
