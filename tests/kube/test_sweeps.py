"""Whole sweeps against an API server over HTTP: their runs are ordinary ones, served by the runs' own half."""

from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.status_base import Phase
from piton.contract import names
from piton.sweep.parse import parse
from piton.sweep.status import SweepStatus
from support.apiserver import EVENTS, PODS, RUNS, SWEEPS, Body, refusal
from support.builders import a_manifest
from support.cluster import CRASHES, Cluster, Disrupted, Ends, Runs
from support.pilot import Death, Pilot, a_pilot
from support.sweeps import a_sweep

TURNS_MAX = 80
SCORES = {"ragcun-baseline-1": 0.4, "ragcun-isotropy-1": 0.6, "ragcun-frozen-1": 0.5}


@pytest.fixture
def scored(cluster: Cluster) -> None:
    """Each variant finishes with a score of its own."""
    cluster.fates = {job: Ends(best_metric=score) for job, score in SCORES.items()}


def status_of(pilot: Pilot) -> SweepStatus:
    found = pilot.server.find(SWEEPS, "ragcun", "team")
    assert found is not None
    return parse(found).status


def runs_of(pilot: Pilot) -> list[Body]:
    return pilot.server.all(RUNS)


async def until(pilot: Pilot, phase: Phase, *, turns: int = TURNS_MAX) -> SweepStatus:
    for _ in range(turns):
        await pilot.settle_sweeps()
        if status_of(pilot).phase is phase:
            return status_of(pilot)
        await pilot.cluster.step()
        pilot.advance(5.0)
    raise AssertionError(f"not {phase} after {turns} turns: {status_of(pilot)}")


@pytest.mark.usefixtures("scored")
async def test_a_sweep_is_applied_and_its_runs_succeed_two_at_a_time(pilot: Pilot) -> None:
    sweep = await pilot.cluster.apply(a_sweep(parallelism=2, placement="Pack"))
    await pilot.settle_sweeps()
    first = runs_of(pilot)

    status = await until(pilot, Phase.SUCCEEDED)

    assert [run["metadata"]["name"] for run in first] == ["ragcun-baseline", "ragcun-isotropy"]
    owner = first[0]["metadata"]["ownerReferences"][0]
    assert (owner["uid"], owner["kind"], owner["controller"]) == (sweep["metadata"]["uid"], "TrainingSweep", True)
    assert first[0]["metadata"]["labels"] == {names.LABEL_SWEEP: "ragcun", names.LABEL_VARIANT: "baseline"}
    assert (status.done, status.best) == ("3/3", "isotropy 0.6")
    assert [row.metrics[0].value for row in status.runs] == ["0.4", "0.6", "0.5"]
    assert pilot.creates() == {"trainingruns": 3, "persistentvolumeclaims": 3, "pytorchjobs": 3}


@pytest.mark.usefixtures("scored")
async def test_pods_of_a_packed_sweep_ask_for_each_others_nodes(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_sweep(parallelism=3, placement="Pack"))
    await pilot.settle_sweeps()
    await pilot.cluster.step()

    for pod in pilot.server.all(PODS):
        assert pod["metadata"]["labels"][names.LABEL_GROUP] == "ragcun"
        (term,) = pod["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        assert term["podAffinityTerm"]["labelSelector"]["matchLabels"] == {names.LABEL_GROUP: "ragcun"}
    assert len(pilot.server.all(PODS)) == 3


async def test_a_preempted_run_is_a_row_of_its_own_and_no_failure(pilot: Pilot) -> None:
    pilot.cluster.fates = {"ragcun-isotropy-1": Disrupted()}
    await pilot.cluster.apply(a_sweep(parallelism=3))

    status = await until(pilot, Phase.SUCCEEDED)

    assert [(row.variant, row.preemptions) for row in status.runs] == [("baseline", 0), ("isotropy", 1), ("frozen", 0)]


async def test_the_others_go_on_when_one_fails(pilot: Pilot) -> None:
    pilot.cluster.fates = {f"ragcun-isotropy-{attempt}": CRASHES for attempt in (1, 2, 3)}
    await pilot.cluster.apply(a_sweep())

    status = await until(pilot, Phase.FAILED)

    assert (status.counts.succeeded, status.counts.failed) == (2, 1)
    failed = status.condition("Failed")
    assert failed is not None
    assert failed.reason is Reason.RUNS_FAILED
    told = {event["message"]: event["involvedObject"]["kind"] for event in pilot.server.all(EVENTS)}
    assert told["The run ragcun-isotropy has failed"] == "TrainingSweep"


async def test_suspending_a_sweep_saves_its_runs_and_resuming_goes_on(pilot: Pilot) -> None:
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_sweep(parallelism=2))
    await until(pilot, Phase.TRAINING)

    await pilot.cluster.apply(a_sweep(parallelism=2, suspend=True))
    await until(pilot, Phase.SUSPENDED)
    assert all(run["spec"]["suspend"] for run in runs_of(pilot))
    assert not pilot.server.all(PODS)

    await pilot.cluster.apply(a_sweep(parallelism=2))
    pilot.cluster.script = {}
    status = await until(pilot, Phase.SUCCEEDED)

    assert all(names.ANNOTATION_HELD not in run["metadata"]["annotations"] for run in runs_of(pilot))
    assert [row.preemptions for row in status.runs] == [0, 0, 0]


async def test_moving_the_deadline_moves_that_of_the_runs(pilot: Pilot) -> None:
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_sweep(limits={"deadline": "1h"}))
    pilot.advance(600)
    await pilot.settle_sweeps()
    before = runs_of(pilot)[0]["spec"]["limits"]["deadline"]
    await pilot.cluster.apply(a_sweep(limits={"deadline": "2h"}))
    await pilot.settle_sweeps()

    assert before == "3000s"
    assert runs_of(pilot)[0]["spec"]["limits"]["deadline"] == "6600s"


async def test_deleting_a_sweep_deletes_its_runs_and_creates_no_more(pilot: Pilot) -> None:
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_sweep())
    await until(pilot, Phase.TRAINING)
    await pilot.server.delete(SWEEPS, "ragcun", "team")
    for _ in range(6):
        await pilot.settle_sweeps()
        await pilot.cluster.step()

    assert (runs_of(pilot), pilot.server.all(PODS)) == ([], [])


async def test_a_run_of_somebody_elses_is_left_alone_and_told(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest("ragcun-baseline"))
    await pilot.cluster.apply(a_sweep(parallelism=2))
    await pilot.settle_sweeps()

    waiting = status_of(pilot).condition("Waiting")
    assert waiting is not None
    assert waiting.reason is Reason.REFUSED
    assert "'ragcun-baseline' exists and does not belong to this sweep" in waiting.message
    others = [run["metadata"]["name"] for run in runs_of(pilot) if "ownerReferences" in run["metadata"]]
    assert others == ["ragcun-isotropy"]


DENIED = 'admission webhook "p.example" denied the request: instance type'


def _deny(*names_of_runs: str) -> Any:
    def refuse(request: Any) -> Any:
        body = request.body or b""
        posted = request.method == "POST" and request.resource == RUNS
        if posted and any(f'"name":"{name}"'.encode() in body.replace(b": ", b":") for name in names_of_runs):
            return refusal(403, "Forbidden", DENIED)
        return None

    return refuse


@pytest.mark.parametrize("refused", [("ragcun-a",), ("ragcun-a", "ragcun-b", "ragcun-c")], ids=["one", "all"])
@pytest.mark.parametrize("asks", [None, {"suspend": True}, {"limits": {"deadline": "90h"}}], ids=str)
async def test_what_is_refused_for_long_is_asked_for_less_and_less_often(
    pilot: Pilot, asks: dict[str, Any] | None, refused: tuple[str, ...]
) -> None:
    """A create and a patch alike; the condition keeps its time, and nothing is written meanwhile."""
    pilot.cluster.fates |= {f"ragcun-{name}-1": Runs() for name in "abc"}
    verb = "POST" if asks is None else "PATCH"

    def deny(request: Any) -> Any:
        named = any(name in str(request.url if verb == "PATCH" else request.data) for name in refused)
        is_it = (request.method, request.resource, request.subresource) == (verb, RUNS, None)
        return refusal(403, "Forbidden", DENIED) if is_it and named else None

    async def wait(seconds: int) -> None:
        for _ in range(seconds):
            pilot.feed.deliver()
            await pilot.settle_sweeps(resync=False)
            pilot.advance(1.0)

    pilot.server.refuse = deny if asks is None else lambda _: None
    await pilot.cluster.apply(a_sweep(parallelism=3, variants=[{"name": name} for name in "abc"]))
    for _ in range(10):
        await pilot.settle_sweeps()
        await pilot.turn(10)
    if asks is not None:
        sweep = pilot.server.find(SWEEPS, "ragcun", "team")
        assert sweep is not None
        pilot.server.refuse = deny
        await pilot.server.put(SWEEPS, {**sweep, "spec": {**sweep["spec"], **asks}})
        await wait(60)
    began = len(pilot.server.writes)
    before = status_of(pilot).condition("Waiting")
    await wait(300)

    writes = pilot.server.writes[began:]
    assert [write for write in writes if write.resource == SWEEPS] == []
    tries = [write for write in writes if write.resource == RUNS and not write.done]
    assert 1 <= len(tries) <= 8 * len(refused)
    assert status_of(pilot).condition("Waiting") == before
    assert status_of(pilot).is_true("Waiting")


@pytest.mark.parametrize("parallelism", [1, 2, 10])
async def test_a_run_that_is_refused_holds_none_of_the_others_and_its_row_says_why(
    pilot: Pilot, parallelism: int
) -> None:
    """Those that are refused come first in the plan, and are as many as may run at a time."""
    pilot.server.refuse = _deny("ragcun-a", "ragcun-b")
    variants = [{"name": name} for name in "abcdef"]
    await pilot.cluster.apply(a_sweep(parallelism=parallelism, variants=variants))
    for _ in range(120):
        await pilot.settle_sweeps()
        await pilot.cluster.step()
        pilot.advance(30.0)

    status = status_of(pilot)
    rows = {row.name: row for row in status.runs}
    assert [rows[f"ragcun-{name}"].phase for name in "cdef"] == [Phase.SUCCEEDED] * 4
    assert (status.counts.succeeded, status.counts.pending, status.done) == (4, 2, "4/6")
    for name in ("ragcun-a", "ragcun-b"):
        assert rows[name].phase is Phase.PENDING
        assert DENIED in (rows[name].refused or "")
    waiting = status.condition("Waiting")
    assert waiting is not None
    assert status.is_true("Waiting")
    assert "ragcun-a" in waiting.message

    pilot.server.refuse = lambda request: None
    done = await until(pilot, Phase.SUCCEEDED, turns=200)
    assert done.done == "6/6"
    assert [row.refused for row in done.runs] == [None] * 6


async def test_a_quota_is_told_and_the_run_created_when_there_is_room(pilot: Pilot) -> None:
    def full(request: Any) -> Any:
        forbidden = request.resource == RUNS and request._raw_request.method == "POST"
        return refusal(403, "Forbidden", "exceeded quota: trainingruns") if forbidden else None

    pilot.server.refuse = full
    await pilot.cluster.apply(a_sweep(variants=[]))
    await pilot.settle_sweeps()
    training = status_of(pilot).condition("Training")
    assert training is not None
    assert "exceeded quota" in training.message

    pilot.server.refuse = lambda request: None
    await until(pilot, Phase.SUCCEEDED)


@pytest.mark.usefixtures("scored")
async def test_an_operator_that_dies_after_any_write_creates_no_run_twice(cluster: Cluster) -> None:
    """One operator after another, each dying after its next write to the API server."""
    await cluster.apply(a_sweep(parallelism=2))
    for _ in range(200):
        async with a_pilot(cluster, dies_after=1) as pilot:
            try:
                await pilot.settle_sweeps()
            except Death:
                continue
            if status_of(pilot).phase is Phase.SUCCEEDED:
                break
            await cluster.step()
            cluster.clock.advance(5)

    assert status_of(pilot).best == "isotropy 0.6"
    posts = [w.name for w in cluster.server.writes if w.method == "POST" and w.done and w.resource == RUNS]
    assert sorted(posts) == ["ragcun-baseline", "ragcun-frozen", "ragcun-isotropy"]


async def test_a_cluster_that_knows_no_sweeps_is_no_error(pilot: Pilot) -> None:
    unknown = refusal(404, "NotFound", "the server could not find the requested resource")
    pilot.server.refuse = lambda request: unknown if request.resource == SWEEPS else None

    await pilot.sweeps.resync()


async def test_a_sweep_that_has_ended_is_not_written_to_and_a_series_while_it_is_there(pilot: Pilot) -> None:
    def value(phase: Phase) -> float | None:
        return pilot.meter.registry.get_sample_value("piton_sweeps", {"phase": phase})

    await pilot.cluster.apply(a_sweep(variants=[]))
    await until(pilot, Phase.SUCCEEDED)
    await pilot.settle_sweeps()
    count = len(pilot.server.writes)
    pilot.advance(3600)
    await pilot.settle_sweeps()
    assert len(pilot.server.writes) == count
    assert value(Phase.SUCCEEDED) == 1

    await pilot.server.remove(SWEEPS, "ragcun", "team")
    pilot.sweeps.wake("team", "ragcun")
    await pilot.settle_sweeps()
    assert value(Phase.SUCCEEDED) == 0


async def test_many_changes_of_runs_are_one_look_at_their_sweep(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_sweep())
    for _ in range(5):
        pilot.sweeps.saw_run("team", "ragcun")
    assert len(pilot.sweeps.queue) == 0

    pilot.advance(1)

    assert len(pilot.sweeps.queue) == 1
