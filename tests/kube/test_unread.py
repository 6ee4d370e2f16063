"""Reads that fail for long: limits are kept on what is known, nothing rests on the rest, and the run says so, once."""

from typing import Any

import pytest
from kmock import KubernetesError, Request

from kube.test_failures import conditions
from kube.test_start_failures import creating
from kube.test_unserved_kinds import mend, refuse
from piton.api.conditions import OPERATOR_ERROR
from piton.api.status_base import Phase
from piton.contract import names
from piton.ports import PortError, Refused, Unavailable
from support.apiserver import CLAIMS, EVENTS, JOBS, PODS, RUNS, SWEEPS, refusal
from support.builders import a_manifest
from support.cluster import Disrupted, Ends, Runs
from support.pilot import Pilot
from support.sweeps import a_sweep

TROUBLES: dict[str, tuple[KubernetesError, PortError]] = {
    "no rights": (refusal(403, "Forbidden", "User piton cannot list it"), Refused("forbidden")),
    "a webhook that is down": (refusal(500, "InternalError", "conversion webhook failed: boom"), Unavailable("x")),
}
LIMITS = {"deadline": "10m"}


async def turns(pilot: Pilot, number: int, seconds: float = 60.0) -> None:
    for _ in range(number):
        await pilot.turn(seconds)


async def trains(pilot: Pilot, **spec: Any) -> None:
    pilot.cluster.script = {1: Runs(), 2: Runs()}
    await pilot.cluster.apply(a_manifest(**spec))
    await pilot.until_phase(Phase.TRAINING)


async def ask(pilot: Pilot, wish: str) -> None:
    """Ask for the end of the attempt; the deadline comes by itself."""
    if wish == "suspend":
        await pilot.cluster.apply(a_manifest(limits=LIMITS, suspend=True))
    elif wish == "delete":
        await pilot.server.delete(RUNS, "ragcun", "team")


def told(pilot: Pilot) -> list[str]:
    return [event["message"] for event in pilot.server.all(EVENTS) if event["reason"] == "ClusterUnreadable"]


def says_so(body: dict[str, Any] | None) -> bool:
    status, message = conditions(body).get(OPERATOR_ERROR, ("False", ""))
    return status == "True" and ("cannot list it" in message or "boom" in message)


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("plural", ["nodes", "persistentvolumeclaims"])
@pytest.mark.parametrize("wish", ["suspend", "deadline", "delete"])
async def test_without_nodes_or_the_claim_the_machine_is_given_back_all_the_same(
    pilot: Pilot, plural: str, trouble: str, wish: str
) -> None:
    await trains(pilot, limits=LIMITS)
    refuse(pilot, plural, *TROUBLES[trouble])
    await ask(pilot, wish)
    await turns(pilot, 14)

    assert not pilot.server.all(PODS)
    assert len(told(pilot)) == 1
    assert pilot.server.all(CLAIMS)
    if wish == "delete" and plural == "nodes":
        assert pilot.run() is None, "where no pod is left, no node is missed"
        return
    run = pilot.run()
    assert run is not None
    assert says_so(run) is (plural == "persistentvolumeclaims")
    assert wish == "deadline" or names.FINALIZER in run["metadata"]["finalizers"] or plural == "nodes"


@pytest.mark.parametrize("plural", ["pods", "pytorchjobs"])
async def test_without_jobs_or_pods_nothing_is_decided_and_the_run_says_so_once(pilot: Pilot, plural: str) -> None:
    await trains(pilot, limits=LIMITS)
    refuse(pilot, plural, *TROUBLES["a webhook that is down"])
    await ask(pilot, "suspend")
    await turns(pilot, 3, 20)
    assert not told(pilot), "it may be over in a moment"
    await turns(pilot, 6)
    assert says_so(pilot.run())
    writes = len(pilot.server.writes)
    await turns(pilot, 6)
    assert len(pilot.server.writes) == writes
    assert len(told(pilot)) == 1
    assert pilot.server.all(PODS)

    mend(pilot, plural)
    await turns(pilot, 4)
    assert not pilot.server.all(PODS)
    assert conditions(pilot.run())[OPERATOR_ERROR][0] == "False"


async def test_a_run_whose_claim_is_unknown_keeps_its_finalizer_until_the_claim_can_be_read(pilot: Pilot) -> None:
    await trains(pilot)
    refuse(pilot, "persistentvolumeclaims", *TROUBLES["no rights"])
    await ask(pilot, "delete")
    await turns(pilot, 8)
    assert not pilot.server.all(PODS)
    assert says_so(pilot.run())

    mend(pilot, "persistentvolumeclaims")
    await turns(pilot, 4)
    assert pilot.run() is None
    assert [event for event in pilot.server.all(EVENTS) if event["reason"] == "VolumeKept"]
    (claim,) = pilot.server.all(CLAIMS)
    assert not claim["metadata"].get("ownerReferences")


@pytest.mark.parametrize("spec", [{}, {"ttlAfterFinished": "3m"}])
async def test_an_ended_run_goes_only_when_its_claim_is_known(pilot: Pilot, spec: dict[str, Any]) -> None:
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest(**spec))
    await pilot.until_phase(Phase.TRAINING)
    refuse(pilot, "persistentvolumeclaims", *TROUBLES["no rights"])
    pilot.cluster.fates["ragcun-1"] = Ends()
    await turns(pilot, 10)
    assert pilot.status().phase is Phase.SUCCEEDED
    assert says_so(pilot.run())

    mend(pilot, "persistentvolumeclaims")
    await turns(pilot, 6)
    assert (pilot.run() is None) is bool(spec)
    assert pilot.server.all(CLAIMS)


async def test_no_attempt_starts_on_a_claim_that_is_unknown(pilot: Pilot) -> None:
    await trains(pilot)
    refuse(pilot, "persistentvolumeclaims", *TROUBLES["no rights"])
    pilot.cluster.fates["ragcun-1"] = Disrupted()
    await turns(pilot, 8)
    assert [job["metadata"]["name"] for job in pilot.server.all(JOBS)] in ([], ["ragcun-1"])
    assert says_so(pilot.run())

    mend(pilot, "persistentvolumeclaims")
    await pilot.until(lambda: pilot.status().attempt == 2 and pilot.status().phase is Phase.TRAINING)


async def test_events_are_only_words(pilot: Pilot) -> None:
    """A start ends by its limit, which has to leave time for a pull: nobody can tell whether there is one."""
    pilot.cluster.script = {1: creating()}
    await pilot.cluster.apply(a_manifest(limits={"startTimeout": "10m"}))
    await turns(pilot, 3, 5)
    refuse(pilot, "events", *TROUBLES["no rights"])
    await turns(pilot, 26)
    assert pilot.status().attempt == 1
    assert says_so(pilot.run())
    await turns(pilot, 14)
    assert pilot.status().attempt > 1


async def test_a_server_that_was_away_for_minutes_is_met_by_no_writes(pilot: Pilot) -> None:
    for name in ("one", "two", "three", "four"):
        pilot.cluster.fates[f"{name}-1"] = Runs()
        await pilot.cluster.apply(a_manifest(name))
    await pilot.until(lambda: all(pilot.status(n).phase is Phase.TRAINING for n in ("one", "two", "three", "four")))
    await turns(pilot, 3, 5)

    def away(_: Request) -> KubernetesError:
        return refusal(503, "ServiceUnavailable", "the server is away")

    pilot.server.refuse = away
    for name in ("one", "two", "three", "four"):
        pilot.controller._doubtful.add(("team", name))
        pilot.controller.wake("team", name)
    for _ in range(10):
        await pilot.settle(resync=False)
        pilot.advance(60)
    assert all(len(pilot.controller.failures(("team", n))) for n in ("one", "two", "three", "four")), "all have failed"
    pilot.server.refuse = lambda _: None
    writes = len(pilot.server.writes)
    for _ in range(4):
        await pilot.settle(resync=False)
        pilot.advance(60)
    assert not pilot.server.writes[writes:]
    assert not pilot.controller._failures


async def test_a_sweep_whose_runs_cannot_be_read_says_so_too(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_sweep("abl"))
    await pilot.settle_sweeps()
    refuse(pilot, "trainingruns", *TROUBLES["no rights"])
    for _ in range(8):
        pilot.feed.deliver()
        pilot.sweeps.wake("team", "abl")
        await pilot._work_off(pilot.sweeps)
        pilot.advance(60)
    assert says_so(pilot.server.find(SWEEPS, "abl", "team"))
    mend(pilot, "trainingruns")
    pilot.advance(120)
    await pilot.settle_sweeps()
    assert conditions(pilot.server.find(SWEEPS, "abl", "team"))[OPERATOR_ERROR][0] == "False"
