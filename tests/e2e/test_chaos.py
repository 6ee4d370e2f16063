"""Three runs at once in a storm: nodes die, are reclaimed and cut off, the operator and the API server are killed.

make chaos SEED=7    the storm of that seed, again
"""

import os

import pytest

from hack.cluster.layout import VOLUMES
from support import audit, chaos
from support.live import DigestOf, LiveCluster, NewTraining, paced, wait_for

STORM_SECONDS = 45.0
SPOT_NODES = 2
STEPS = 250
RUNS = 3
SEEDS = [int(word) for word in os.environ.get("CHAOS_SEEDS", "1 2 3").split()]

pytestmark = [pytest.mark.box, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("seed", SEEDS)
def test_all_runs_survive_the_storm(
    seed: int, cluster: LiveCluster, drilled: None, training: NewTraining, namespace: str, digest_of: DigestOf
) -> None:
    wanted = digest_of(STEPS)
    volumes_before = set(VOLUMES.iterdir())
    runs = [training(f"run-{number}") for number in range(RUNS)]
    for run in runs:
        run.apply(paced(STEPS, 0.1, save_every=20))

    print(f"the storm of seed {seed}; again with: make chaos SEED={seed}")
    chaos.strike(chaos.plan(seed, seconds=STORM_SECONDS, nodes=SPOT_NODES), cluster, print)

    ends = [run.wait_for_phase("Succeeded", seconds=900) for run in runs]
    print("attempts, preemptions, infrastructure failures, lost steps:")
    for status in ends:
        print(status["attempt"], status["preemptions"], status["infrastructureFailures"], status["lost"]["steps"])
    assert [status["result"]["weightsDigest"] for status in ends] == [wanted] * RUNS
    assert [run.complete().weights_digest for run in runs] == [wanted] * RUNS
    assert [status["failures"] for status in ends] == [0] * RUNS  # nothing of this was the user's fault

    made = audit.creations(namespace)
    attempts = {
        f"{run.name}-{number}" for run, end in zip(runs, ends, strict=True) for number in _up_to(end["attempt"])
    }
    assert set(made["pytorchjobs"]) <= attempts
    assert max(made["pytorchjobs"].values()) == 1
    assert sum(made["persistentvolumeclaims"].values()) == RUNS
    assert sum(made["pods"].values()) <= 2 * len(attempts)  # one that never began is made again

    for run in runs:
        run.delete()
    wait_for(lambda: not any(run.leftovers() for run in runs), "nothing is left", seconds=120)
    wait_for(lambda: set(VOLUMES.iterdir()) <= volumes_before, "the volumes are gone", seconds=120)


def _up_to(number: int) -> range:
    return range(1, number + 1)
