"""A trainer ends, and its pod does not: through the whole operator, with what runs beside it and what hangs."""

from itertools import count
from typing import Any

import pytest

from piton.api.conditions import POD_STUCK, WAITING
from piton.api.reasons import Reason
from piton.api.status import Verdict
from piton.api.status_base import Phase
from piton.contract import names
from support.apiserver import CLAIMS, EVENTS, JOBS, NODES, PODS, RUNS, refusal
from support.builders import a_manifest
from support.cluster import CRASHES, Disrupted, Ends, Runs
from support.pilot import Pilot

RUNNING = {"running": {"startedAt": "2026-11-21T12:00:00Z"}}
NO_IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": "agent:1: not found"}}
OWN_PROGRAM: dict[str, Any] = {"trainer": {"image": "trainer:1", "command": ["python", "train.py"]}}
SHARED, EXCLUSIVE = ["ReadWriteMany"], ["ReadWriteOnce"]
POD = "ragcun-1-master-0"


def _machines(pilot: Pilot) -> list[str]:
    """Pods that hold one."""
    return [
        pod["metadata"]["name"]
        for pod in pilot.server.all(PODS)
        if pod["spec"].get("nodeName") and pod["status"]["phase"] not in ("Succeeded", "Failed")
    ]


async def _settles(pilot: Pilot, turns: int = 100) -> None:
    await pilot.until(lambda: pilot.status().phase in (Phase.SUCCEEDED, Phase.FAILED), turns=turns)
    for _ in range(6):
        await pilot.turn()


@pytest.mark.parametrize("sidecar", [RUNNING, NO_IMAGE])
@pytest.mark.parametrize("spec", [{}, OWN_PROGRAM], ids=["recipe", "command"])
async def test_nothing_beside_a_trainer_keeps_its_machine(
    pilot: Pilot, sidecar: dict[str, Any], spec: dict[str, Any]
) -> None:
    pilot.cluster.sidecar = sidecar
    pilot.cluster.script = {1: CRASHES, 2: Disrupted(), 3: Ends()}
    await pilot.cluster.apply(a_manifest(**spec))
    held = []
    while pilot.status().phase not in (Phase.SUCCEEDED, Phase.FAILED):
        await pilot.turn()
        held.append(len(_machines(pilot)))
        assert len(held) < 100
    await _settles(pilot)
    assert [record.reason for record in pilot.status().attempts[:2]] == [Reason.CRASHED, Reason.DISRUPTED]
    assert pilot.status().attempts[-1].verdict is Verdict.FINISHED
    assert max(held) <= 2  # the one that ends, and the one that begins
    assert _machines(pilot) == []


async def test_the_pods_of_a_gang_go_when_the_last_trainer_has_ended(pilot: Pilot) -> None:
    pilot.cluster.sidecar = RUNNING
    await pilot.cluster.apply(a_manifest(workers={"nodes": 2}))
    await _settles(pilot)
    assert _machines(pilot) == []


async def test_what_an_older_operator_has_left_is_stopped(pilot: Pilot) -> None:
    """Its run has Succeeded, and a sidecar holds the machine."""
    await pilot.cluster.apply(a_manifest())
    await _settles(pilot)
    pod = pilot.server.all(PODS)[0]
    pod["status"]["phase"] = "Running"
    pod["status"]["containerStatuses"].append({"name": "istio-proxy", "state": RUNNING})
    await pilot.server.put(PODS, pod)
    for _ in range(6):
        await pilot.turn()
    assert _machines(pilot) == []


async def _exits(pilot: Pilot, code: int = 0, phase: str | None = None) -> None:
    """The trainer of the first attempt ends now."""
    pod = pilot.server.find(PODS, POD, "team")
    assert pod is not None
    finished = pilot.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {"exitCode": code, "finishedAt": finished, "message": "", "reason": "Error" if code else "Completed"}
    pod["status"]["phase"] = phase or ("Failed" if code else "Succeeded")
    pod["status"]["containerStatuses"] = [{"name": names.CONTAINER, "state": {"terminated": ended}}]
    await pilot.server.put(PODS, pod)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("what", ["pod", "job", "pod before its job knows"])
async def test_a_program_that_exits_0_because_its_pod_is_deleted_has_not_finished(
    pilot: Pilot, what: str, nodes: int
) -> None:
    pilot.cluster.script, pilot.cluster.hung = {1: Runs()}, {POD}
    await pilot.cluster.apply(a_manifest(workers={"nodes": nodes}, **OWN_PROGRAM))
    await pilot.until_phase(Phase.TRAINING)
    if what == "job":
        job = pilot.server.find(JOBS, "ragcun-1", "team")
        assert job is not None
        job["metadata"]["finalizers"] = ["foregroundDeletion"]
        await pilot.server.put(JOBS, job)
        await pilot.server.delete(JOBS, "ragcun-1", "team")
    for pod in pilot.server.all(PODS):
        if what == "job" or pod["metadata"]["name"] == POD:
            await pilot.server.delete(PODS, pod["metadata"]["name"], "team")
    if what != "pod before its job knows":
        await pilot.turn()
    await _exits(pilot)
    await pilot.cluster.step()
    await pilot.until(lambda: pilot.status().attempts[0].reason is not None)

    assert pilot.status().attempts[0].reason is Reason.POD_DELETED


@pytest.mark.parametrize(("seconds", "phase"), [(3600, Phase.SUCCEEDED), (90, Phase.SUCCEEDED), (30, Phase.RECOVERING)])
async def test_a_job_that_is_deleted_long_after_its_end_has_finished(pilot: Pilot, seconds: int, phase: Phase) -> None:
    """The operator was away. Clocks may differ by a minute, so an end within a minute of the deletion is in doubt."""
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest(**OWN_PROGRAM))
    await pilot.until_phase(Phase.TRAINING)
    await _exits(pilot)
    await pilot.cluster.step()
    pilot.advance(seconds)
    pod = pilot.server.find(PODS, POD, "team")
    assert pod is not None
    pod["metadata"]["finalizers"] = ["example.com/keep-logs"]
    await pilot.server.put(PODS, pod)
    await pilot.server.delete(PODS, POD, "team")
    await pilot.settle()

    assert pilot.status().phase is phase


@pytest.mark.parametrize("how", ["drained", "over time", "evicted", "deleted on a cordoned node"])
async def test_a_program_that_was_over_before_its_pod_was_ended_has_finished(pilot: Pilot, how: str) -> None:
    """The operator was away, and a sidecar has kept the pod."""
    pilot.cluster.script, pilot.cluster.sidecar = {1: Runs()}, RUNNING
    await pilot.cluster.apply(a_manifest(limits={"deadline": "2h"}, **OWN_PROGRAM))
    await pilot.until_phase(Phase.TRAINING)
    pilot.advance(3600)
    await _exits(pilot, phase="Running")
    pilot.advance(5400)
    if how == "drained":
        await pilot.cluster.disrupt(POD, "EvictionByEvictionAPI", "team")
    elif how == "deleted on a cordoned node":
        await _cordon(pilot)
        await pilot.server.delete(PODS, POD, "team")
    pod = pilot.server.find(PODS, POD, "team")
    assert pod is not None
    pod["status"]["phase"] = "Failed"
    ended = {"exitCode": 0, "finishedAt": pilot.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")}
    pod["status"]["containerStatuses"].append({"name": "istio-proxy", "state": {"terminated": ended}})
    if how == "over time":
        pod["status"] |= {"reason": "DeadlineExceeded"}
    elif how == "evicted":
        pod["status"] |= {"reason": "Evicted", "message": "Pod ephemeral local storage usage exceeds the total limit"}
    await pilot.server.put(PODS, pod)
    await pilot.settle()

    first = pilot.status().attempts[0]
    assert (first.verdict, first.reason) == (Verdict.FINISHED, Reason.EXITED_ZERO)


# --- what hangs -------------------------------------------------------------------------------------------------------


async def _hangs(pilot: Pilot, *, claim: list[str] = SHARED, **limits: Any) -> None:
    """The pod of the first attempt is evicted, and its kubelet does not end it."""
    pilot.cluster.script, pilot.cluster.hung = {1: Runs(), 2: Ends()}, {POD}
    checkpoint = {"volume": {"size": "1Gi", "accessModes": claim}}
    await pilot.cluster.apply(a_manifest(checkpoint=checkpoint, limits=limits))
    await pilot.until(lambda: pilot.status().phase is Phase.TRAINING)
    await pilot.cluster.disrupt(POD, "EvictionByEvictionAPI", "team")


async def _cordon(pilot: Pilot) -> None:
    node = pilot.server.find(NODES, f"node-of-{POD}", None)
    assert node is not None
    await pilot.server.put(NODES, {**node, "spec": {"unschedulable": True}})


async def _wait(pilot: Pilot, seconds: int) -> None:
    for _ in range(seconds // 5):
        await pilot.turn()


async def test_a_pod_that_its_node_does_not_end_is_told_two_minutes_after_its_grace_period(pilot: Pilot) -> None:
    await _hangs(pilot)
    await _wait(pilot, 200)  # a grace period of 100 s, and less than two minutes
    assert not pilot.status().is_true(POD_STUCK)
    await _wait(pilot, 30)
    status = pilot.status()
    stuck, waiting = status.condition(POD_STUCK), status.condition(WAITING)
    assert stuck is not None
    assert waiting is not None
    assert (status.phase, waiting.reason, status.attempt) == (Phase.STOPPING, Reason.POD_STUCK, 1)
    command = f"kubectl delete pod {POD} -n team --force --grace-period=0"
    assert all(text in stuck.message for text in (POD, f"node-of-{POD}", command))
    events = [event for event in pilot.server.all(EVENTS) if event.get("reason") == "PodStuck"]
    assert len(events) == 1
    version = pilot.server.find(RUNS, "ragcun", "team")["metadata"]["resourceVersion"]  # type: ignore[index]
    await _wait(pilot, 600)
    assert pilot.server.find(RUNS, "ragcun", "team")["metadata"]["resourceVersion"] == version  # type: ignore[index]
    assert _machines(pilot) == [POD]


async def test_the_run_goes_on_as_soon_as_the_pod_is_gone(pilot: Pilot) -> None:
    await _hangs(pilot)
    await _wait(pilot, 300)
    await pilot.server.remove(PODS, POD, "team")
    await _settles(pilot)
    assert (pilot.status().phase, pilot.status().is_true(POD_STUCK)) == (Phase.SUCCEEDED, False)
    assert not pilot.status().is_true(WAITING)


async def test_a_pod_is_forced_only_where_the_user_allows_it_and_the_next_attempt_cannot_land_there(
    pilot: Pilot,
) -> None:
    await _hangs(pilot, stuckPods="ForceDelete")
    await _wait(pilot, 300)
    stuck = pilot.status().condition(POD_STUCK)
    assert stuck is not None
    assert "kubectl cordon" in stuck.message
    assert _machines(pilot) == [POD]
    await _cordon(pilot)
    await _settles(pilot)
    assert pilot.status().phase is Phase.SUCCEEDED


@pytest.mark.parametrize("claim", [EXCLUSIVE, [*EXCLUSIVE, *SHARED], ["ReadWriteOncePod"]])
async def test_a_pod_with_a_claim_for_one_node_is_never_forced(pilot: Pilot, claim: list[str]) -> None:
    await _hangs(pilot, claim=claim, stuckPods="ForceDelete")
    await _cordon(pilot)
    await _wait(pilot, 600)
    stuck = pilot.status().condition(POD_STUCK)
    assert stuck is not None
    assert "the claim ragcun-checkpoints that it mounts is not ReadWriteMany alone" in stuck.message
    assert _machines(pilot) == [POD]


@pytest.mark.parametrize(
    "moved_to",
    [
        {"claimName": "shared"},
        {"size": "1Gi", "accessModes": SHARED},
        {"claimName": "missing"},
    ],
    ids=["a claim of the user's", "one that Piton makes", "one that does not exist"],
)
@pytest.mark.parametrize("is_there", [True, False], ids=["there", "gone"])
async def test_the_claim_that_counts_is_the_one_that_the_pod_mounts(
    pilot: Pilot, moved_to: dict[str, Any], is_there: bool
) -> None:
    """The volume of the spec was moved while the pod ran."""
    for name, modes in (("once", EXCLUSIVE), ("shared", SHARED)):
        await pilot.server.put(
            CLAIMS, {"metadata": {"name": name, "namespace": "team"}, "spec": {"accessModes": modes}}
        )
    pilot.cluster.script, pilot.cluster.hung = {1: Runs(), 2: Ends()}, {POD}
    limits = {"stuckPods": "ForceDelete"}
    await pilot.cluster.apply(a_manifest(checkpoint={"volume": {"claimName": "once"}}, limits=limits))
    await pilot.until_phase(Phase.TRAINING)
    await pilot.cluster.apply(a_manifest(checkpoint={"volume": moved_to}, limits=limits))
    await pilot.cluster.disrupt(POD, "EvictionByEvictionAPI", "team")
    if not is_there:
        await pilot.server.remove(CLAIMS, "once", "team")
    await _cordon(pilot)
    await _wait(pilot, 300)
    stuck = pilot.status().condition(POD_STUCK)
    assert stuck is not None
    assert "the claim once that it mounts" in stuck.message
    assert pilot.server.find(PODS, POD, "team") is not None


@pytest.mark.parametrize("written", [{"stuckPods": "Report"}, {}, {"stuckPods": "Force"}], ids=repr)
async def test_a_consent_that_a_refused_spec_takes_back_is_none(pilot: Pilot, written: dict[str, str]) -> None:
    await _hangs(pilot, stuckPods="ForceDelete")
    checkpoint = {"volume": {"size": "1Gi", "accessModes": SHARED}}
    await pilot.cluster.apply(a_manifest(checkpoint=checkpoint, limits=written, workers={"zones": ["No Zone"]}))
    await _cordon(pilot)
    await _wait(pilot, 300)
    assert pilot.status().is_true(POD_STUCK)
    assert pilot.server.find(PODS, POD, "team") is not None


async def test_a_consent_that_a_refused_spec_still_gives_counts(pilot: Pilot) -> None:
    await _hangs(pilot, stuckPods="ForceDelete")
    checkpoint, limits = {"volume": {"size": "1Gi", "accessModes": SHARED}}, {"stuckPods": "ForceDelete"}
    await pilot.cluster.apply(a_manifest(checkpoint=checkpoint, limits=limits, workers={"zones": ["No Zone"]}))
    await _cordon(pilot)
    await _settles(pilot)
    assert pilot.status().phase is Phase.SUCCEEDED


@pytest.mark.parametrize(
    ("key", "tolerates"),
    [("pool", True), ("pool", False), ("node.kubernetes.io/memory-pressure", False)],
    ids=["the next attempt tolerates it", "it stays", "it goes by itself"],
)
async def test_a_taint_closes_a_node_only_to_a_next_attempt_that_does_not_tolerate_it(
    pilot: Pilot, key: str, tolerates: bool
) -> None:
    await _hangs(pilot, stuckPods="ForceDelete")
    workers = {"template": {"tolerations": [{"key": key, "operator": "Exists"}] if tolerates else []}}
    checkpoint, limits = {"volume": {"size": "1Gi", "accessModes": SHARED}}, {"stuckPods": "ForceDelete"}
    await pilot.cluster.apply(a_manifest(checkpoint=checkpoint, limits=limits, workers=workers))
    node = pilot.server.find(NODES, f"node-of-{POD}", None)
    assert node is not None
    await pilot.server.put(NODES, {**node, "spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}})
    await _wait(pilot, 300)
    is_closed = key == "pool" and not tolerates
    assert (pilot.server.find(PODS, POD, "team") is None) is is_closed


def _deny_force(pilot: Pilot) -> None:
    def deny(request: Any) -> Any:
        is_forced = request.method == "DELETE" and (request.data or {}).get("gracePeriodSeconds") == 0
        denied = 'admission webhook "no-force.example" denied the request: no'
        return refusal(403, "Forbidden", denied) if is_forced and request.resource == PODS else None

    pilot.server.refuse = deny


async def _sidecar_hangs_and_may_not_be_forced(pilot: Pilot, **limits: Any) -> None:
    """A container beside the trainer of attempt 1 hangs, and attempt 2 trains."""
    pilot.cluster.sidecar, pilot.cluster.hung = RUNNING, {POD}
    pilot.cluster.script = {1: CRASHES, 2: Runs()}
    _deny_force(pilot)
    await pilot.cluster.apply(a_manifest(limits={"stuckPods": "ForceDelete", **limits}))
    await pilot.until(lambda: (pilot.status().attempt, pilot.status().phase) == (2, Phase.TRAINING))
    await _cordon(pilot)
    await _wait(pilot, 300)


async def test_a_force_that_is_denied_in_other_words_each_time_is_tried_less_and_less_often(pilot: Pilot) -> None:
    await _sidecar_hangs_and_may_not_be_forced(pilot)
    numbers = count(4711)

    def deny(request: Any) -> Any:
        denied = f'admission webhook "no-force.example" denied the request: see request {next(numbers)}'
        is_it = request.method == "DELETE" and request.resource == PODS
        return refusal(403, "Forbidden", denied) if is_it else None

    pilot.server.refuse = deny
    await _wait(pilot, 120)
    began = len(pilot.server.writes)
    for _ in range(300):
        await pilot.settle(resync=False)
        pilot.advance(1)
    assert 1 <= len([write for write in pilot.server.writes[began:] if write.resource == PODS]) <= 8
    assert [write for write in pilot.server.writes[began:] if write.resource == RUNS] == []


async def test_a_force_that_is_denied_is_told_once_and_the_next_attempt_finishes(pilot: Pilot) -> None:
    await _sidecar_hangs_and_may_not_be_forced(pilot)
    stuck = pilot.status().condition(POD_STUCK)
    assert stuck is not None
    assert "limits.stuckPods does not act: " in stuck.message
    assert "no-force.example" in stuck.message
    assert not pilot.status().is_true(WAITING)
    version = pilot.server.find(RUNS, "ragcun", "team")["metadata"]["resourceVersion"]  # type: ignore[index]
    await _wait(pilot, 300)
    assert pilot.server.find(RUNS, "ragcun", "team")["metadata"]["resourceVersion"] == version  # type: ignore[index]

    pilot.cluster.sidecar, pilot.cluster.script[2] = None, Ends()
    await _settles(pilot)
    assert pilot.status().phase is Phase.SUCCEEDED


@pytest.mark.parametrize("how", ["suspend", "deadline", "deletion"])
async def test_a_force_that_is_denied_keeps_no_order_from_the_next_attempt(pilot: Pilot, how: str) -> None:
    limits = {"deadline": "30m"} if how == "deadline" else {}
    await _sidecar_hangs_and_may_not_be_forced(pilot, **limits)
    pilot.cluster.sidecar = None
    if how == "suspend":
        await pilot.cluster.apply(a_manifest(limits={"stuckPods": "ForceDelete"}, suspend=True))
    elif how == "deletion":
        await pilot.server.delete(RUNS, "ragcun", "team")
    else:
        pilot.advance(1800)
    await _wait(pilot, 200)
    assert _machines(pilot) == [POD]


async def test_no_pod_is_forced_while_another_effect_is_refused(pilot: Pilot) -> None:
    pilot.cluster.sidecar, pilot.cluster.hung = RUNNING, {POD}
    pilot.cluster.script = {1: CRASHES}
    await pilot.cluster.apply(a_manifest(limits={"stuckPods": "ForceDelete"}))
    await pilot.until(lambda: bool(_machines(pilot)))
    denied = refusal(403, "Forbidden", 'admission webhook "one-at-a-time.example" denied the request: no')
    pilot.server.refuse = lambda request: denied if (request.method, request.resource) == ("POST", JOBS) else None
    await _cordon(pilot)
    await _wait(pilot, 600)
    assert pilot.server.find(PODS, POD, "team") is not None
    assert pilot.status().is_true(WAITING)
    pilot.server.refuse = lambda _: None
    await pilot.until(lambda: pilot.server.find(PODS, POD, "team") is None)


@pytest.mark.parametrize(
    ("allowed", "claim", "goes"), [(False, SHARED, False), (True, SHARED, True), (True, EXCLUSIVE, False)]
)
async def test_a_deletion_that_a_pod_holds_up_says_so(
    pilot: Pilot, allowed: bool, claim: list[str], goes: bool
) -> None:
    await _hangs(pilot, claim=claim, **({"stuckPods": "ForceDelete"} if allowed else {}))
    await pilot.server.delete(RUNS, "ragcun", "team")
    await _wait(pilot, 300)
    if goes:
        assert pilot.server.find(RUNS, "ragcun", "team") is None
        return
    waiting = pilot.status().condition(WAITING)
    assert waiting is not None
    assert (waiting.status, waiting.reason) == ("True", Reason.POD_STUCK)
    assert pilot.server.all(CLAIMS)


async def test_a_deletion_that_somebodys_finalizer_holds_up_names_it(pilot: Pilot) -> None:
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until(lambda: pilot.status().phase is Phase.TRAINING)
    pod = pilot.server.find(PODS, POD, "team")
    assert pod is not None
    pod["metadata"]["finalizers"] = ["example.com/keep-logs"]
    pod["spec"]["terminationGracePeriodSeconds"] = 5
    await pilot.server.put(PODS, pod)
    await pilot.server.delete(RUNS, "ragcun", "team")
    await _wait(pilot, 240)
    assert pilot.server.find(PODS, POD, "team") is not None
    waiting = pilot.status().condition(WAITING)
    assert waiting is not None
    assert "example.com/keep-logs" in waiting.message
    assert not pilot.server.all(JOBS)


async def _trains_in_a_job_that_stays(pilot: Pilot, finalizer: str, **spec: Any) -> None:
    """An archiver or a policy engine keeps the job, so that the garbage collector never comes for its pods."""
    pilot.cluster.script = {1: Runs(), 2: Runs()}
    await pilot.cluster.apply(a_manifest(**spec))
    await pilot.until_phase(Phase.TRAINING)
    await _keep_job(pilot, finalizer)


async def _keep_job(pilot: Pilot, finalizer: str) -> None:
    job = pilot.server.find(JOBS, "ragcun-1", "team")
    assert job is not None
    job["metadata"]["finalizers"] = [finalizer]
    await pilot.server.put(JOBS, job)


@pytest.mark.parametrize("asks", ["suspend", "delete", "deadline"])
async def test_the_pods_of_a_job_that_somebodys_finalizer_keeps_are_stopped_by_themselves(
    pilot: Pilot, asks: str
) -> None:
    limits = {"deadline": "30m"} if asks == "deadline" else {}
    await _trains_in_a_job_that_stays(pilot, "example.com/archive", limits=limits)
    if asks == "delete":
        await pilot.server.delete(RUNS, "ragcun", "team")
    elif asks == "suspend":
        await pilot.cluster.apply(a_manifest(suspend=True))
    else:
        pilot.advance(1800)
    await pilot.settle(resync=False)
    await pilot.settle()
    deletes = [w.name for w in pilot.server.writes if (w.method, w.resource) == ("DELETE", PODS)]
    assert (_machines(pilot), deletes) == ([POD], []), "the garbage collector may yet come"
    await _wait(pilot, 60)
    assert _machines(pilot) == []
    (attempt,) = pilot.status().attempts
    assert attempt.checkpoint_step == 10, "it had its grace period, and has saved"
    if asks == "delete":
        await _wait(pilot, 120)
        waiting = pilot.status().condition(WAITING)
        assert waiting is not None
        assert waiting.reason is Reason.POD_STUCK
        assert "the job ragcun-1" in waiting.message
        assert "example.com/archive" in waiting.message
        await pilot.server.remove(JOBS, "ragcun-1", "team")
        await pilot.until(lambda: pilot.run() is None)
        return
    assert pilot.status().phase is (Phase.SUSPENDED if asks == "suspend" else Phase.FAILED)
    assert not pilot.status().is_true(POD_STUCK)


async def test_pods_of_a_job_that_stays_and_that_may_not_be_deleted_are_told(pilot: Pilot) -> None:
    await _trains_in_a_job_that_stays(pilot, "example.com/archive")
    denied = refusal(403, "Forbidden", 'admission webhook "no-delete.example" denied the request: no')
    pilot.server.refuse = lambda request: denied if (request.method, request.resource) == ("DELETE", PODS) else None
    await pilot.cluster.apply(a_manifest(suspend=True))
    await _wait(pilot, 60)
    waiting = pilot.status().condition(WAITING)
    assert waiting is not None
    assert (waiting.status, waiting.reason) == ("True", Reason.POLICY_DENIED)
    assert "no-delete.example" in waiting.message


async def test_a_job_that_somebody_deletes_and_a_finalizer_keeps_trains_on_and_names_it(pilot: Pilot) -> None:
    await _trains_in_a_job_that_stays(pilot, "example.com/archive")
    await pilot.server.delete(JOBS, "ragcun-1", "team")
    await _wait(pilot, 150)
    stuck = pilot.status().condition(POD_STUCK)
    assert stuck is not None
    assert (stuck.status, pilot.status().phase) == ("True", Phase.TRAINING)
    assert "the job ragcun-1 is to be gone since" in stuck.message
    assert "example.com/archive" in stuck.message


async def test_a_sidecar_in_a_job_that_stays_keeps_no_machine(pilot: Pilot) -> None:
    pilot.cluster.sidecar = RUNNING
    pilot.cluster.script = {1: CRASHES, 2: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until(lambda: bool(_machines(pilot)))
    await _keep_job(pilot, "example.com/archive")
    await _wait(pilot, 150)
    assert _machines(pilot) == ["ragcun-2-master-0"]
    assert pilot.status().phase is Phase.TRAINING


async def test_a_job_that_the_garbage_collector_still_empties_is_no_trouble(pilot: Pilot) -> None:
    await _trains_in_a_job_that_stays(pilot, "foregroundDeletion")
    await pilot.server.delete(RUNS, "ragcun", "team")
    await _wait(pilot, 300)
    assert not pilot.status().is_true(POD_STUCK)


async def test_a_sidecar_that_hangs_is_told_while_the_next_attempt_trains(pilot: Pilot) -> None:
    pilot.cluster.sidecar, pilot.cluster.hung = RUNNING, {POD}
    pilot.cluster.script = {1: CRASHES, 2: Runs()}
    await pilot.cluster.apply(a_manifest())
    await _wait(pilot, 300)
    status = pilot.status()
    assert (status.attempt, status.phase) == (2, Phase.TRAINING)
    assert status.is_true(POD_STUCK)
    assert not status.is_true(WAITING)


@pytest.mark.parametrize("zone", ["a", "No Zone"])
async def test_a_stuck_pod_under_a_spent_budget_costs_no_pass_after_another(pilot: Pilot, zone: str) -> None:
    """The machine is paid for, and nothing follows from that: whether the spec is good or refused."""
    limits: dict[str, Any] = {"limits": {"budget": {"usd": "2"}}, "capacity": {"maxPricePerHour": "10"}}
    pilot.cluster.price = "10"
    pilot.cluster.script, pilot.cluster.hung = {1: Runs()}, {POD}
    await pilot.cluster.apply(a_manifest(**limits))
    await pilot.until_phase(Phase.TRAINING)
    await pilot.cluster.apply(a_manifest(workers={"zones": [zone]}, **limits))
    for _ in range(120):
        await pilot.turn(15)
    assert pilot.status().is_true("PodStuck")
    assert pilot.status().is_true("Accepted") is (zone == "a")


@pytest.mark.parametrize("how", ["removed", "silent"])
async def test_exit_0_while_the_operator_is_away_is_the_end_although_the_empty_node_goes(
    pilot: Pilot, how: str
) -> None:
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest(**OWN_PROGRAM))
    await pilot.until_phase(Phase.TRAINING)
    pod = await _exits_as(pilot, POD)
    pilot.advance(90)
    await _loses_node(pilot, pod["spec"]["nodeName"], how)
    await _settles(pilot)
    assert [record.reason for record in pilot.status().attempts] == [Reason.EXITED_ZERO]


@pytest.mark.parametrize("how", ["removed", "silent"])
@pytest.mark.parametrize("pod_stays", [False, True])
async def test_a_worker_that_is_done_may_lose_its_node_and_its_pod_while_the_master_goes_on(
    pilot: Pilot, how: str, pod_stays: bool
) -> None:
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest(workers={"nodes": 2}, **OWN_PROGRAM))
    await pilot.until_phase(Phase.TRAINING)
    pod = await _exits_as(pilot, "ragcun-1-worker-0")
    await pilot.turn()
    await _loses_node(pilot, pod["spec"]["nodeName"], how)
    if not pod_stays:
        await pilot.server.remove(PODS, "ragcun-1-worker-0", "team")
    for _ in range(30):
        await pilot.turn()
    assert (pilot.status().phase, pilot.status().attempt, pilot.status().preemptions) == (Phase.TRAINING, 1, 0)
    await _exits_as(pilot, POD)
    await _settles(pilot)
    assert [record.reason for record in pilot.status().attempts] == [Reason.EXITED_ZERO]


TOLD_CODES = [0, 1, 143]


@pytest.mark.parametrize("code", TOLD_CODES)
async def test_a_sidecar_of_the_master_does_not_undo_its_end(
    pilot: Pilot, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubeflow's controller fails the job and clears the worker away, which ends with any code."""
    await _trains_beside_agents(pilot, monkeypatch, code)
    await _exits_as(pilot, POD, agent=1)
    await _settles(pilot)
    assert [record.reason for record in pilot.status().attempts] == [Reason.EXITED_ZERO]


@pytest.mark.parametrize("code", TOLD_CODES)
async def test_a_sidecar_of_a_worker_costs_no_failure_and_is_named(
    pilot: Pilot, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _trains_beside_agents(pilot, monkeypatch, code)
    await _exits_as(pilot, "ragcun-1-worker-0", agent=137)
    await pilot.until(lambda: pilot.status().attempt == 2)
    first = pilot.status().attempts[0]
    assert (first.verdict, first.reason) == (Verdict.INFRASTRUCTURE, Reason.POD_DELETED)
    assert "whose trainer exited 0, because of agent (exit code 137)" in first.message
    assert pilot.status().failures == 0


async def test_a_worker_that_crashes_is_not_hidden_by_a_sidecar_of_the_master(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _trains_beside_agents(pilot, monkeypatch, 143)
    await _exits_as(pilot, "ragcun-1-worker-0", code=1)
    await _exits_as(pilot, POD, agent=1)
    await pilot.until(lambda: pilot.status().attempt == 2)
    assert pilot.status().attempts[0].reason is Reason.CRASHED


async def _trains_beside_agents(pilot: Pilot, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Two nodes, a program without the library that ends with this code when it is told to."""
    end = pilot.cluster._end

    async def told(pod: Any, fate: Ends) -> None:
        await end(pod, Ends(outcome=fate.outcome, exit_code=code, is_silent=True))

    monkeypatch.setattr(pilot.cluster, "_end", told)
    pilot.cluster.script = dict.fromkeys(range(1, 4), Runs())
    await pilot.cluster.apply(a_manifest(workers={"nodes": 2}, **OWN_PROGRAM))
    await pilot.until_phase(Phase.TRAINING)


async def _exits_as(pilot: Pilot, name: str, *, code: int = 0, agent: int | None = None) -> Any:
    pod = next(each for each in pilot.server.all(PODS) if each["metadata"]["name"] == name)
    now = pilot.cluster._time()
    ends = {"pytorch": code} if agent is None else {"pytorch": code, "agent": agent}
    pod["status"] |= {
        "phase": "Failed" if any(ends.values()) else "Succeeded",
        "containerStatuses": [
            {"name": each, "state": {"terminated": {"exitCode": found, "startedAt": now, "finishedAt": now}}}
            for each, found in ends.items()
        ],
    }
    await pilot.server.put(PODS, pod)
    return pod


async def _loses_node(pilot: Pilot, node: str, how: str) -> None:
    if how == "removed":
        await pilot.server.remove(NODES, node, None)
        return
    known = pilot.server.find(NODES, node, None)
    assert known is not None
    known["status"]["conditions"][0] |= {"status": "Unknown", "lastTransitionTime": pilot.cluster._time()}
    await pilot.server.put(NODES, known)
