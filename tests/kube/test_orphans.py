"""A run that is deleted with cascade=orphan: its job has no owner any more, and is stopped nevertheless."""

import pytest

from piton.api.status_base import Phase
from piton.contract import names
from support.apiserver import JOBS, PODS, RUNS
from support.builders import a_manifest
from support.cluster import Runs
from support.pilot import Pilot


async def _orphaned(pilot: Pilot, **metadata: object) -> None:
    """What the garbage collector does before it lets the run go."""
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    job = pilot.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    job["metadata"] |= {"ownerReferences": [], **metadata}
    await pilot.server.put(JOBS, job)
    await pilot.server.delete(RUNS, "ragcun", "team")
    for _ in range(30):
        await pilot.turn()


async def test_an_orphaned_job_is_stopped_before_the_run_goes(pilot: Pilot) -> None:
    await _orphaned(pilot)
    assert pilot.server.find(RUNS, "ragcun", "team") is None
    assert not pilot.server.all(JOBS)
    assert not pilot.server.all(PODS)


@pytest.mark.parametrize(
    "metadata",
    [
        {"annotations": {}},  # of an older operator, or of nobody
        {"annotations": {names.ANNOTATION_RUN_UID: "uid-of-another-run"}},
    ],
)
async def test_a_job_that_is_not_known_to_be_the_runs_is_left_alone(pilot: Pilot, metadata: dict[str, object]) -> None:
    """A name proves nothing."""
    await _orphaned(pilot, **metadata)
    assert pilot.server.find(RUNS, "ragcun", "team") is None
    assert [job["metadata"]["name"] for job in pilot.server.all(JOBS)] == ["ragcun-1"]
