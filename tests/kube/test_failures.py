"""Answers that are no refusals (a 5xx, a 409, a 429, a time-out) and that the server gives for one object, for long."""

from collections.abc import Callable
from typing import Any

import pytest
from kmock import KubernetesError, Request

from piton.api.status_base import Phase
from support.apiserver import EVENTS, JOBS, RUNS, SWEEPS, refusal
from support.builders import a_manifest
from support.cluster import CRASHES, Ends, Runs
from support.pilot import Pilot
from support.sweeps import a_sweep

ANSWERS = [
    (500, "InternalError", "Internal error occurred: add operation does not apply: doc is missing path: /spec/x"),
    (500, "InternalError", "Internal error occurred: conversion webhook for piton.dev/v1alpha1 failed: boom"),
    (504, "Timeout", "Timeout: request did not complete within the allotted timeout"),
    (503, "ServiceUnavailable", "the webhook is not available"),
    (409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "runs": the object has been modified'),
    (429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget"),
]


def deny(pilot: Pilot, concerns: Callable[[Request], bool], answer: tuple[int, str, str]) -> list[float]:
    """Answer each such request so. Returns the times at which one came."""
    times: list[float] = []

    def refuse(request: Request) -> KubernetesError | None:
        if not concerns(request):
            return None
        times.append(pilot.timer.time())
        return refusal(*answer)

    pilot.server.refuse = refuse
    return times


def creates(plural: str, name: str = "") -> Callable[[Request], bool]:
    def concerns(request: Request) -> bool:
        made = request.method == "POST" and request.resource is not None and request.resource.plural == plural
        return made and name in (request.data or {})["metadata"]["name"]

    return concerns


def told(pilot: Pilot, words: str) -> list[str]:
    return [event["message"] for event in pilot.server.all(EVENTS) if words in event["message"]]


def conditions(body: dict[str, Any] | None) -> dict[str, tuple[str, str]]:
    assert body is not None
    return {c["type"]: (c["status"], c.get("message", "")) for c in body["status"]["conditions"]}


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_child_that_the_server_never_takes_holds_no_other_and_is_told_after_two_minutes(
    pilot: Pilot, answer: tuple[int, str, str], parallelism: int
) -> None:
    for variant in ("isotropy", "frozen"):
        pilot.cluster.fates[f"abl-{variant}-1"] = Ends() if parallelism == 1 else Runs()
    times = deny(pilot, creates("trainingruns", "abl-baseline"), answer)
    await pilot.cluster.apply(a_sweep("abl", parallelism=parallelism))
    for _ in range(8):
        await pilot.settle_sweeps()
        await pilot.turn(10)

    assert {run["metadata"]["name"] for run in pilot.server.all(RUNS)} == {"abl-isotropy", "abl-frozen"}
    assert conditions(pilot.server.find(SWEEPS, "abl", "team"))["Waiting"][0] == "False"
    assert not told(pilot, answer[2])
    for _ in range(20):
        await pilot.settle_sweeps()
        await pilot.turn(30)
    found = pilot.server.find(SWEEPS, "abl", "team")
    assert conditions(found)["Waiting"][0] == "True"
    assert answer[2] in conditions(found)["Waiting"][1]
    assert len(told(pilot, answer[2])) == 1
    assert len(times) <= 25, "about one each minute in the end"
    pilot.server.refuse = lambda _: None
    pilot.advance(120)
    await pilot.settle_sweeps()
    assert pilot.server.find(RUNS, "abl-baseline", "team") is not None


async def test_a_server_that_takes_no_child_gets_no_stampede(pilot: Pilot) -> None:
    times = deny(pilot, creates("trainingruns"), ANSWERS[0])
    await pilot.cluster.apply(a_sweep("abl", folds=10, parallelism=30))
    for _ in range(150):
        pilot.sweeps.wake("team", "abl")
        await pilot.settle_sweeps()
        pilot.advance(2)
    assert len(times) <= 3 * 11


@pytest.mark.parametrize("plural", ["pytorchjobs", "persistentvolumeclaims"])
@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_run_whose_objects_the_server_never_takes_says_so_after_two_minutes(
    pilot: Pilot, answer: tuple[int, str, str], plural: str
) -> None:
    deny(pilot, creates(plural), answer)
    await pilot.cluster.apply(a_manifest())
    for _ in range(8):
        await pilot.turn(10)
    assert not told(pilot, answer[2])
    for _ in range(8):
        await pilot.turn(30)

    assert not pilot.server.all(JOBS), "a job never comes before its claim"
    assert conditions(pilot.run())["Waiting"][0] == "True"
    assert answer[2] in conditions(pilot.run())["Waiting"][1]
    assert len(told(pilot, answer[2])) == 1
    pilot.server.refuse = lambda _: None
    pilot.cluster.script[1] = Ends()
    assert (await pilot.until_phase(Phase.SUCCEEDED)).attempt == 1


@pytest.mark.parametrize("answer", [ANSWERS[0], ANSWERS[4]])
async def test_old_jobs_that_cannot_be_deleted_hold_no_attempt(pilot: Pilot, answer: tuple[int, str, str]) -> None:
    def trims(request: Request) -> bool:
        return request.method == "DELETE" and request.resource is not None and request.resource.plural == "pytorchjobs"

    deny(pilot, trims, answer)
    pilot.cluster.script |= dict.fromkeys(range(1, 6), CRASHES)
    pilot.cluster.script[6] = Runs()
    await pilot.cluster.apply(a_manifest(limits={"failures": 10}))
    await pilot.until(lambda: pilot.status().attempt == 6 and pilot.status().phase is Phase.TRAINING, turns=200)
    assert len(pilot.server.all(JOBS)) > 4


DENIED = 'admission webhook "guard.example" denied the request: freeze window'


async def edit(pilot: Pilot, spec: dict[str, Any]) -> None:
    run = pilot.run()
    assert run is not None
    await pilot.server.put(RUNS, {**run, "spec": {**run["spec"], **spec}})


@pytest.mark.parametrize("answer", [(409, "Conflict", DENIED), (404, "NotFound", DENIED), (403, "Forbidden", DENIED)])
@pytest.mark.parametrize("asks", [{"suspend": True}, {"limits": {"deadline": "1m"}}, None], ids=str)
async def test_a_deletion_that_is_denied_with_any_status_is_no_deletion(
    pilot: Pilot, answer: tuple[int, str, str], asks: dict[str, Any] | None
) -> None:
    """Only another uid under the name says that the object is gone. Money is spent meanwhile, and that is told."""
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    deny(pilot, lambda request: (request.method, request.resource) == ("DELETE", JOBS), answer)
    if asks is None:
        await pilot.server.delete(RUNS, "ragcun", "team")
    else:
        await edit(pilot, asks)
    for _ in range(20):
        await pilot.turn(10)

    assert [job["metadata"].get("deletionTimestamp") for job in pilot.server.all(JOBS)] == [None]
    assert conditions(pilot.run())["Waiting"][0] == "True"
    assert DENIED in conditions(pilot.run())["Waiting"][1]
    assert len(told(pilot, DENIED)) == 1
    pilot.server.refuse = lambda _: None
    for _ in range(20):
        await pilot.turn(30)
    assert not pilot.server.all(JOBS)


async def test_a_job_under_whose_name_there_is_another_is_gone(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    words = "Precondition failed: UID in precondition: a, UID in object meta: b"
    times = deny(
        pilot,
        lambda request: (request.method, request.resource) == ("DELETE", JOBS),
        (409, "Conflict", f'Operation cannot be fulfilled on pytorchjobs "ragcun-1": {words}'),
    )
    await edit(pilot, {"suspend": True})
    for _ in range(5):
        await pilot.turn(10)
    assert times
    assert not told(pilot, "Precondition")


@pytest.mark.parametrize("answer", [ANSWERS[0], ANSWERS[2]])
async def test_a_status_that_cannot_be_written_is_told_by_an_event(pilot: Pilot, answer: tuple[int, str, str]) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.STARTING)
    deny(pilot, lambda request: request.method == "PUT" and request.subresource == "status", answer)
    for _ in range(6):
        await pilot.turn(10)
    assert not told(pilot, answer[2])
    for _ in range(60):
        await pilot.turn(10)
    assert len(told(pilot, answer[2])) == 1


@pytest.mark.parametrize("answer", [ANSWERS[0], (403, "Forbidden", "denied by the policy no-runs")])
@pytest.mark.parametrize("turns", [3, 30])
async def test_a_change_of_a_sweep_is_answered_also_while_no_run_of_it_can_be_made(
    pilot: Pilot, answer: tuple[int, str, str], turns: int
) -> None:
    deny(pilot, creates("trainingruns"), answer)
    await pilot.cluster.apply(a_sweep("abl"))
    for _ in range(turns):
        await pilot.settle_sweeps()
        await pilot.turn(10)
    for number, parallelism in enumerate((0, 2), start=2):
        sweep = pilot.server.find(SWEEPS, "abl", "team")
        assert sweep is not None
        metadata, spec = {**sweep["metadata"], "generation": number}, {**sweep["spec"], "parallelism": parallelism}
        await pilot.server.put(SWEEPS, {**sweep, "metadata": metadata, "spec": spec})
        await pilot.turn(10)
        await pilot.settle_sweeps()
        found = pilot.server.find(SWEEPS, "abl", "team")
        assert found is not None
        assert found["status"]["observedGeneration"] == number
        assert conditions(found)["Accepted"][0] == str(parallelism > 0)


@pytest.mark.parametrize("plural", ["pytorchjobs", "persistentvolumeclaims"])
async def test_what_the_user_asks_for_is_answered_while_a_start_fails(pilot: Pilot, plural: str) -> None:
    """It is refused only after two minutes, and until then nothing of the start is written."""
    deny(pilot, creates(plural), ANSWERS[2])
    await pilot.cluster.apply(a_manifest())
    await pilot.turn()
    for zones, accepted in ((["No Zone"], "False"), (["a"], "True"), (["No Zone"], "False")):
        await pilot.cluster.apply(a_manifest(workers={"zones": zones}))
        await pilot.turn()
        assert conditions(pilot.run())["Accepted"][0] == accepted
        run = pilot.run()
        assert run is not None
        assert run["status"]["observedGeneration"] == run["metadata"]["generation"]
    assert len(told(pilot, "spec.workers.zones")) == 1
    assert not pilot.server.all(JOBS)
    pilot.server.refuse = lambda _: None
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.SUCCEEDED)
