"""What is left of a run that is over or deleted: the claim of its checkpoints, and for how long the run itself."""

import re
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
import yaml

from kube.test_start_failures import NVIDIA, start_error
from piton.api.conditions import WAITING
from piton.api.reasons import Reason
from piton.api.status_base import Phase
from piton.contract import names
from piton.contract.termination import Outcome, Termination
from support.apiserver import CLAIMS, EVENTS, JOBS, PODS, RUNS, Body, refusal
from support.builders import a_manifest
from support.cluster import CRASHES, Cluster, Disrupted, Ends, Runs, Vanishes, Waits
from support.pilot import Death, Pilot, a_pilot

CLAIM = "ragcun-checkpoints"
SECONDS_OF_A_WEEK = 7 * 86_400


def volume(**parts: Any) -> dict[str, Any]:
    return {"checkpoint": {"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"], **parts}}}


def claim(pilot: Pilot) -> Body | None:
    return pilot.server.find(CLAIMS, CLAIM, "team")


def owners(pilot: Pilot) -> list[str]:
    found = claim(pilot)
    assert found is not None
    return [owner["uid"] for owner in found["metadata"].get("ownerReferences") or ()]


async def delete(pilot: Pilot) -> None:
    """`kubectl delete`, and all that follows from it."""
    await pilot.server.delete(RUNS, "ragcun", "team")
    await pilot.until(lambda: pilot.run() is None)
    for _ in range(3):
        await pilot.turn()
    assert [pilot.server.all(kind) for kind in (JOBS, PODS)] == [[], []]


async def _finished(pilot: Pilot) -> None:
    await pilot.until_phase(Phase.SUCCEEDED)


async def _failed_with_a_checkpoint(pilot: Pilot) -> None:
    pilot.cluster.script = {1: Disrupted(), 2: Ends(outcome=Outcome.DIVERGED)}
    await pilot.until_phase(Phase.FAILED)


async def _suspended(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.until_phase(Phase.TRAINING)
    await pilot.cluster.apply(a_manifest(suspend=True))
    await pilot.until_phase(Phase.SUSPENDED)


async def _saves_as_it_is_deleted(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.until_phase(Phase.TRAINING)


@pytest.mark.parametrize(
    "reach",
    [_finished, _failed_with_a_checkpoint, _suspended, _saves_as_it_is_deleted],
    ids=lambda reach: reach.__name__.strip("_"),
)
async def test_a_claim_with_a_checkpoint_outlives_its_run(pilot: Pilot, reach: Any) -> None:
    await pilot.cluster.apply(a_manifest())
    await reach(pilot)
    assert owners(pilot) == []

    await delete(pilot)

    assert owners(pilot) == []


async def test_a_claim_that_goes_with_its_run_has_no_owner_before_the_end(pilot: Pilot) -> None:
    """A deletion with --cascade=foreground would take it from under a trainer that still saves."""
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest(**volume(reclaim="Delete")))
    await pilot.until_phase(Phase.TRAINING)
    assert owners(pilot) == []
    pilot.cluster.script[1] = Ends()
    await pilot.until_phase(Phase.SUCCEEDED)
    await pilot.settle(resync=False)
    assert len(owners(pilot)) == 1
    run = pilot.run()
    assert run is not None
    assert names.FINALIZER not in run["metadata"]["finalizers"], "and the run is let go at once"

    await delete(pilot)

    assert claim(pilot) is None


async def test_a_claim_without_a_checkpoint_goes_so_that_the_mended_run_can_have_its_name(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Ends(outcome=Outcome.BAD_CONFIG)
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.FAILED)

    await delete(pilot)

    assert claim(pilot) is None
    pilot.cluster.script = {}
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.SUCCEEDED)


def _is_placed(pilot: Pilot) -> bool:
    current = pilot.status().current
    return current is not None and bool(current.replicas)


async def _exits_zero_at_once(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Ends(is_silent=True)
    await pilot.until_phase(Phase.SUCCEEDED)


async def _crashes_at_once(pilot: Pilot) -> None:
    pilot.cluster.script = dict.fromkeys(range(1, 10), Ends(outcome=Outcome.FAILED, exit_code=1, is_silent=True))
    await pilot.until_phase(Phase.FAILED)


async def _loses_its_machine_without_a_word(pilot: Pilot) -> None:
    """Then the run is deleted while its next attempt finds no machine."""
    pilot.cluster.script = {1: Vanishes(), 2: Waits(reason="Unschedulable")}
    await pilot.until(lambda: pilot.status().attempt > 1)
    await pilot.turn()


async def _trains_and_goes_without_a_word(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.until_phase(Phase.TRAINING)
    await pilot.server.delete(RUNS, "ragcun", "team")
    await pilot.server.remove(PODS, "ragcun-1-master-0", "team")


async def _is_lost_before_it_was_seen_to_run(pilot: Pilot) -> None:
    """The operator was away meanwhile: what it has written down is that the pod had a machine."""
    pilot.cluster.script[1] = Waits(reason="ContainerCreating")
    await pilot.until(lambda: _is_placed(pilot))
    await pilot.server.remove(PODS, "ragcun-1-master-0", "team")
    await pilot.server.remove(JOBS, "ragcun-1", "team")


async def _trains_unseen(pilot: Pilot) -> Body:
    """An hour in which the operator is away, after it has created the job. Return the pod."""
    pilot.cluster.script = {1: Runs(), **dict.fromkeys(range(2, 9), Waits(reason="InvalidImageName"))}
    await pilot.settle()
    for _ in range(10):
        await pilot.cluster.step()
        pilot.advance(360)
    pod = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert pod is not None
    assert pod["status"]["phase"] == "Running"
    return pod


def _fails_with_words(pod: Body, began: datetime, ended: datetime) -> Body:
    words = Termination(outcome=Outcome.FAILED, detail="RuntimeError").to_json()
    times = {"startedAt": f"{began:%Y-%m-%dT%H:%M:%SZ}", "finishedAt": f"{ended:%Y-%m-%dT%H:%M:%SZ}"}
    terminated = {"exitCode": 1, "reason": "Error", "message": words, **times}
    statuses = [{"name": names.CONTAINER, "state": {"terminated": terminated}}]
    return {**pod, "status": {**pod["status"], "phase": "Failed", "containerStatuses": statuses}}


async def _trained_unseen_and_failed_with_words(pilot: Pilot) -> None:
    pod = await _trains_unseen(pilot)
    now = pilot.clock.now()
    await pilot.server.put(PODS, _fails_with_words(pod, now - timedelta(hours=1), now))
    await pilot.settle()


async def _was_seen_only_in_its_last_seconds(pilot: Pilot) -> None:
    pod = await _trains_unseen(pilot)
    began, now = pilot.clock.now() - timedelta(hours=1), pilot.clock.now()
    pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = f"{began:%Y-%m-%dT%H:%M:%SZ}"
    await pilot.server.put(PODS, pod)
    await pilot.settle()
    await pilot.server.put(PODS, _fails_with_words(pod, began, now))
    await pilot.settle()


async def _was_rejected_after_its_node_came_back(pilot: Pilot) -> None:
    pod = await _trains_unseen(pilot)
    lost = {"phase": "Failed", "reason": "NodeAffinity", "message": "Pod was rejected"}
    del pod["status"]["containerStatuses"]
    await pilot.server.put(PODS, {**pod, "status": {**pod["status"], **lost}})
    await pilot.settle()


async def _was_evicted_for_its_disk(pilot: Pilot) -> None:
    pod = await _trains_unseen(pilot)
    message = "Pod ephemeral local storage usage exceeds the total limit of containers 10Gi. "
    await pilot.server.put(PODS, {**pod, "status": {"phase": "Failed", "reason": "Evicted", "message": message}})
    await pilot.settle()


async def _trained_unseen_and_goes_in_the_foreground(pilot: Pilot) -> None:
    """The garbage collector takes job and pods while our finalizer holds the run."""
    await _trains_unseen(pilot)
    await pilot.server.delete(RUNS, "ragcun", "team")
    await pilot.server.delete(JOBS, "ragcun-1", "team")
    for _ in range(10):
        await pilot.cluster.step()
        pilot.advance(30)
    assert not pilot.server.all(PODS)


async def _forget(pilot: Pilot, status: Body | None = None) -> None:
    """Put an older status back, or none, and delete the run before an operator looks at it."""
    run = pilot.run()
    assert run is not None
    await pilot.server.put(RUNS, {**run, "status": status or {}})
    await pilot.server.delete(RUNS, "ragcun", "team")


async def _trains_while_the_status_is_not_written(pilot: Pilot) -> None:
    """The operator died right after it had created the job."""
    pilot.cluster.script[1] = Runs()
    await pilot.until_phase(Phase.TRAINING)
    await _forget(pilot)


async def _trains_again_while_the_status_is_not_written(pilot: Pilot) -> None:
    """The only attempt that the status knows could not start."""
    pilot.cluster.script = {1: start_error(NVIDIA), 2: Runs()}
    await pilot.until(lambda: pilot.status().attempts[-1].reason is Reason.START_FAILED)
    run = pilot.run()
    assert run is not None
    await pilot.until_phase(Phase.TRAINING)
    await _forget(pilot, run["status"])


async def _trained_and_the_status_was_never_written(pilot: Pilot) -> None:
    """It was deleted with --cascade=foreground: job and pods are gone when an operator is back."""
    pilot.cluster.script[1] = Runs()
    await pilot.until_phase(Phase.TRAINING)
    await _forget(pilot)
    await pilot.server.remove(PODS, "ragcun-1-master-0", "team")
    await pilot.server.remove(JOBS, "ragcun-1", "team")


async def _loses_its_status_while_the_next_attempt_waits(pilot: Pilot) -> None:
    await _loses_its_machine_without_a_word(pilot)
    run = pilot.run()
    assert run is not None
    await pilot.server.put(RUNS, {**run, "status": {}})
    await pilot.turn()
    assert [record.number for record in pilot.status().attempts] == [2]


async def _loses_its_status_and_begins_anew(pilot: Pilot) -> None:
    """No job is left that could say how many attempts there were."""
    await _loses_its_machine_without_a_word(pilot)
    run = pilot.run()
    assert run is not None
    for number in (1, 2):
        await pilot.server.remove(PODS, f"ragcun-{number}-master-0", "team")
        await pilot.server.remove(JOBS, f"ragcun-{number}", "team")
    pilot.cluster.script = {1: Waits(reason="Unschedulable")}
    await pilot.server.put(RUNS, {**run, "status": {}})
    await pilot.turn()
    assert [record.number for record in pilot.status().attempts] == [1]


@pytest.mark.parametrize(
    "reach",
    [
        _exits_zero_at_once,
        _crashes_at_once,
        _loses_its_machine_without_a_word,
        _trains_and_goes_without_a_word,
        _is_lost_before_it_was_seen_to_run,
        _trains_while_the_status_is_not_written,
        _trains_again_while_the_status_is_not_written,
        _trained_and_the_status_was_never_written,
        _trained_unseen_and_failed_with_words,
        _was_seen_only_in_its_last_seconds,
        _was_rejected_after_its_node_came_back,
        _was_evicted_for_its_disk,
        _trained_unseen_and_goes_in_the_foreground,
        _loses_its_status_while_the_next_attempt_waits,
        _loses_its_status_and_begins_anew,
    ],
    ids=lambda reach: reach.__name__.strip("_"),
)
@pytest.mark.parametrize(
    "trainer", [{"image": "i", "command": ["train"]}, {"image": "i", "recipe": "charlm"}], ids=lambda t: [*t][-1]
)
async def test_a_claim_of_which_nothing_was_heard_outlives_its_run(
    pilot: Pilot, reach: Any, trainer: dict[str, Any]
) -> None:
    await pilot.cluster.apply(a_manifest(trainer=trainer))
    await reach(pilot)

    if pilot.run() is not None:
        await delete(pilot)

    assert owners(pilot) == []
    (event,) = [event for event in pilot.server.all(EVENTS) if event["reason"] == "VolumeKept"]
    assert f"spec.checkpoint.volume: {{claimName: {CLAIM}}}" in event["message"]


async def test_the_claim_of_a_run_whose_trainer_never_began_goes_with_it(pilot: Pilot) -> None:
    pilot.cluster.script = dict.fromkeys(range(1, 10), Waits(reason="InvalidImageName"))
    await pilot.cluster.apply(a_manifest())
    await pilot.until(lambda: _is_placed(pilot))

    await delete(pilot)

    assert claim(pilot) is None


@pytest.mark.parametrize(("pulled", "ran"), [(300, 10), (0, 10)])
async def test_the_claim_goes_of_a_run_that_failed_at_once_however_long_its_image_took(
    pilot: Pilot, pulled: int, ran: int
) -> None:
    """The operator sees the end of the trainer before it has seen it run."""
    pilot.cluster.script = {1: Waits(reason="ContainerCreating"), **dict.fromkeys(range(2, 9), Waits())}
    await pilot.cluster.apply(a_manifest())
    await pilot.until(lambda: _is_placed(pilot))
    placed = pilot.clock.now()
    pilot.advance(pulled + ran)
    pod = pilot.server.find(PODS, "ragcun-1-master-0", "team")
    assert pod is not None
    scheduled = next(c for c in pod["status"]["conditions"] if c["type"] == "PodScheduled")
    pod["status"]["startTime"] = scheduled["lastTransitionTime"] = f"{placed:%Y-%m-%dT%H:%M:%SZ}"
    began = placed + timedelta(seconds=pulled)
    await pilot.server.put(PODS, _fails_with_words(pod, began, began + timedelta(seconds=ran)))
    await pilot.settle()

    await delete(pilot)

    assert claim(pilot) is None


async def test_a_new_run_of_the_name_says_how_to_choose(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.SUCCEEDED)
    await delete(pilot)

    await pilot.cluster.apply(a_manifest())
    await pilot.turn()

    training = pilot.status().condition("Training")
    assert training is not None
    assert training.reason is Reason.NAME_TAKEN
    assert training.message == (
        "the claim ragcun-checkpoints keeps the checkpoints of an earlier run of this name: a new run goes on from its "
        "checkpoints if it has the same name and namespace (ragcun in team) and the line spec.checkpoint.volume: "
        "{claimName: ragcun-checkpoints}, with nothing else in it: no size, accessModes, storageClassName or reclaim. "
        "A run of another name has another folder there and begins anew. To begin anew under this name, delete it "
        "(kubectl delete persistentvolumeclaim ragcun-checkpoints -n team)"
    )
    await pilot.cluster.apply(a_manifest(checkpoint={"volume": {"claimName": CLAIM}}))
    await pilot.until_phase(Phase.SUCCEEDED)
    await delete(pilot)
    assert owners(pilot) == [], "it is the user's now"


async def test_a_claim_that_an_older_piton_has_made_is_freed_before_its_run_goes(pilot: Pilot) -> None:
    run = await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.SUCCEEDED)
    old = claim(pilot)
    assert old is not None
    owner = {"kind": "TrainingRun", "name": "ragcun", "uid": run["metadata"]["uid"], "controller": True}
    del old["metadata"]["annotations"]
    old["metadata"]["ownerReferences"] = [owner]
    await pilot.server.put(CLAIMS, old)

    await pilot.turn()

    assert owners(pilot) == []


async def _fails_and_owns_its_claim(pilot: Pilot) -> None:
    pilot.cluster.script = {1: CRASHES, 2: Runs()}
    await pilot.cluster.apply(a_manifest(limits={"failures": 1}))
    await pilot.until_phase(Phase.FAILED)
    await pilot.turn()
    assert len(owners(pilot)) == 1


async def _retry(pilot: Pilot) -> None:
    await pilot.annotate(names.ANNOTATION_RETRY, "once more")


def _refuse_to_free(pilot: Pilot, status: int, *, times: int = 1) -> list[Any]:
    """Refuse patches of claims so many times. Return the refusals that are left."""
    left = [refusal(status, "Refused", 'admission webhook "owners.example" denied the request: no')] * times

    def refuse(request: Any) -> Any:
        return left.pop() if left and (request.method, request.resource) == ("PATCH", CLAIMS) else None

    pilot.server.refuse = refuse
    return left


async def test_a_failed_run_that_is_taken_up_again_frees_its_claim_first(pilot: Pilot) -> None:
    await _fails_and_owns_its_claim(pilot)
    await _retry(pilot)

    await pilot.until_phase(Phase.TRAINING)

    assert owners(pilot) == []


@pytest.mark.parametrize("status", [403, 409, 500, 503])
async def test_no_attempt_starts_before_the_claim_is_free(pilot: Pilot, status: int) -> None:
    await _fails_and_owns_its_claim(pilot)
    left = _refuse_to_free(pilot, status, times=5)
    await _retry(pilot)
    while left:
        assert not pilot.server.find(JOBS, "ragcun-2", "team")
        await pilot.turn()
    await pilot.until_phase(Phase.TRAINING)

    assert (owners(pilot), pilot.status().attempt) == ([], 2)


async def test_a_claim_that_may_not_be_freed_keeps_the_retry_waiting_and_says_why(pilot: Pilot) -> None:
    await _fails_and_owns_its_claim(pilot)
    _refuse_to_free(pilot, 403, times=10_000)
    await _retry(pilot)
    for _ in range(40):
        await pilot.turn(30)

    waiting = pilot.status().condition(WAITING)
    assert waiting is not None
    assert (pilot.status().phase, waiting.reason) == (Phase.RECOVERING, Reason.POLICY_DENIED)
    assert "owners.example" in waiting.message
    assert [job["metadata"]["name"] for job in pilot.server.all(JOBS)] == ["ragcun-1"]


async def test_a_retry_before_the_finalizer_is_off_frees_the_claim_too(pilot: Pilot) -> None:
    def keep_finalizer(request: Any) -> Any:
        metadata = (request.data or {}).get("metadata") or {} if request.method == "PATCH" else {}
        broken = 'failed calling webhook "x": connection refused'
        return refusal(500, "InternalError", broken) if metadata.get("finalizers") == [] else None

    pilot.server.refuse = keep_finalizer
    await _fails_and_owns_its_claim(pilot)
    await pilot.turn()
    assert names.FINALIZER in (pilot.run() or {})["metadata"]["finalizers"]
    pilot.server.refuse = lambda _: None
    await _retry(pilot)

    await pilot.until_phase(Phase.TRAINING)

    assert owners(pilot) == []


@pytest.mark.parametrize("writes", range(1, 7))
async def test_an_operator_that_dies_as_it_takes_a_run_up_again_leaves_no_owner(cluster: Cluster, writes: int) -> None:
    async with a_pilot(cluster) as first:
        await _fails_and_owns_its_claim(first)
        await _retry(first)
    async with a_pilot(cluster, dies_after=writes) as second:
        with suppress(Death):
            await second.settle()
    async with a_pilot(cluster) as third:
        await third.until_phase(Phase.TRAINING)
        assert owners(third) == []


async def _is_owned_while_it_trains(pilot: Pilot, **spec: Any) -> None:
    """As an older Piton has left it."""
    pilot.cluster.script = {1: Runs()}
    run = await pilot.cluster.apply(a_manifest(**spec))
    await pilot.until_phase(Phase.TRAINING)
    old = claim(pilot)
    assert old is not None
    owner = {"kind": "TrainingRun", "name": "ragcun", "uid": run["metadata"]["uid"], "controller": True}
    old["metadata"]["ownerReferences"] = [owner]
    await pilot.server.put(CLAIMS, old)


@pytest.mark.parametrize("named", [False, True], ids=["made", "named in claimName since"])
async def test_a_claim_that_is_owned_in_mid_run_is_freed_at_once(pilot: Pilot, named: bool) -> None:
    await _is_owned_while_it_trains(pilot)
    if named:
        await pilot.cluster.apply(a_manifest(checkpoint={"volume": {"claimName": CLAIM}}))

    await pilot.turn()

    assert (owners(pilot), pilot.status().phase) == ([], Phase.TRAINING)
    writes = len(pilot.server.writes)
    await pilot.turn()
    assert len(pilot.server.writes) == writes


async def test_a_claim_that_may_not_be_freed_in_mid_run_is_told_and_stops_nothing(pilot: Pilot) -> None:
    await _is_owned_while_it_trains(pilot)
    _refuse_to_free(pilot, 403, times=10_000)
    began = len(pilot.server.writes)
    for _ in range(120):
        await pilot.turn(10)

    assert (pilot.status().phase, pilot.status().attempt) == (Phase.TRAINING, 1)
    (event,) = [event for event in pilot.server.all(EVENTS) if event["reason"] == "PolicyDenied"]
    assert "--cascade=foreground" in event["message"]
    assert event.get("count", 1) == 1
    assert len([write for write in pilot.server.writes[began:] if write.resource == CLAIMS]) <= 26, "one a minute"
    await pilot.cluster.apply(a_manifest(suspend=True))
    await pilot.until_phase(Phase.SUSPENDED)


async def test_a_run_is_deleted_when_its_time_to_live_has_passed_and_its_checkpoints_stay(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest(ttlAfterFinished="7d"))
    await pilot.until_phase(Phase.SUCCEEDED)
    await pilot.turn(SECONDS_OF_A_WEEK - 60)
    assert pilot.run() is not None

    await pilot.turn(61)
    for _ in range(3):
        await pilot.turn()

    assert pilot.run() is None
    assert [pilot.server.all(kind) for kind in (JOBS, PODS)] == [[], []]
    assert owners(pilot) == []


async def test_a_run_that_trains_or_holds_has_no_time_to_live(pilot: Pilot) -> None:
    pilot.cluster.script[1] = Runs()
    await pilot.cluster.apply(a_manifest(ttlAfterFinished="1h"))
    await pilot.until_phase(Phase.TRAINING)
    await pilot.turn(7200)
    await pilot.cluster.apply(a_manifest(ttlAfterFinished="1h", suspend=True))
    await pilot.until_phase(Phase.SUSPENDED)
    await pilot.turn(7200)

    assert pilot.run() is not None


async def test_a_run_that_is_to_be_retried_in_that_very_moment_is_not_deleted(pilot: Pilot) -> None:
    pilot.cluster.script = {1: Ends(outcome=Outcome.DIVERGED)}
    await pilot.cluster.apply(a_manifest(ttlAfterFinished="1h"))
    await pilot.until_phase(Phase.FAILED)

    async def retry(request: Any) -> None:
        if request.method == "DELETE" and request.resource == RUNS and pilot.run() is not None:
            await _retry(pilot)

    pilot.server.before_write = retry
    await pilot.turn(3601)

    await pilot.until_phase(Phase.SUCCEEDED)


SHARED = {"size": "1Gi", "accessModes": ["ReadWriteMany"]}


def kept(pilot: Pilot) -> list[str]:
    return [event["message"] for event in pilot.server.all(EVENTS) if event["reason"] == "VolumeKept"]


@pytest.mark.parametrize("spec", [{}, {"workers": {"nodes": 2}, "checkpoint": {"volume": SHARED}}])
async def test_the_line_that_goes_on_from_a_kept_claim_is_taken_as_it_is_written(
    pilot: Pilot, spec: dict[str, Any]
) -> None:
    await pilot.cluster.apply(a_manifest(**spec))
    await pilot.until_phase(Phase.SUCCEEDED)
    await pilot.turn()
    (told,) = kept(pilot)
    line = re.search(r"spec\.checkpoint\.volume: (\{.*?\})", told)
    assert line is not None
    assert "the same name and namespace (ragcun in team)" in told
    await delete(pilot)

    await pilot.cluster.apply(a_manifest(**{**spec, "checkpoint": {"volume": yaml.safe_load(line[1])}}))
    await pilot.until_phase(Phase.SUCCEEDED)
    assert not [event for event in pilot.server.all(EVENTS) if event["reason"] == "SpecWarning"]


async def test_a_run_that_takes_the_claim_of_a_run_of_another_name_says_that_it_begins_anew(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.SUCCEEDED)
    pilot.cluster.fates["longer-1"] = Disrupted()

    await pilot.cluster.apply(a_manifest("longer", checkpoint={"volume": {"claimName": CLAIM}}))
    await pilot.until(lambda: pilot.status("longer").attempt == 2)

    (told,) = [event["message"] for event in pilot.server.all(EVENTS) if event["reason"] == "SpecWarning"]
    assert f"{CLAIM} was made for the run ragcun" in told


async def test_a_claim_that_the_user_made_is_taken_without_a_word(pilot: Pilot) -> None:
    own = {"metadata": {"name": "own", "namespace": "team"}, "spec": {"accessModes": ["ReadWriteMany"]}}
    await pilot.server.put(CLAIMS, own)
    await pilot.cluster.apply(a_manifest(checkpoint={"volume": {"claimName": "own"}}))
    await pilot.until_phase(Phase.SUCCEEDED)
    assert not [event for event in pilot.server.all(EVENTS) if event["reason"] == "SpecWarning"]


@pytest.mark.parametrize("trouble", ["a pod that stays", "a refused finalizer"])
async def test_the_event_about_a_kept_claim_does_not_wait_for_a_status_that_nobody_can_write(
    pilot: Pilot, trouble: str
) -> None:
    """The last pass also takes back the condition on what held the deletion up, of a run that is gone by then."""
    pilot.cluster.script = {1: Runs()}
    await pilot.cluster.apply(a_manifest())
    await pilot.until_phase(Phase.TRAINING)
    for _ in range(4):
        await pilot.turn(30)
    if trouble == "a pod that stays":
        pilot.cluster.hung = {"ragcun-1-master-0"}
    else:
        pilot.server.refuse = lambda request: (
            refusal(403, "Forbidden", "denied") if (request.resource, request.method) == (RUNS, "PATCH") else None
        )
    await pilot.server.delete(RUNS, "ragcun", "team")
    for _ in range(10):
        await pilot.turn(30)
    waiting = pilot.status().condition("Waiting")
    assert waiting is not None
    assert waiting.status == "True"
    assert not kept(pilot)

    pilot.cluster.hung = set()
    pilot.server.refuse = lambda _: None
    for _ in range(6):
        await pilot.turn(30)
    assert pilot.run() is None
    assert pilot.server.all(CLAIMS)
    assert len(kept(pilot)) == 1


async def test_the_event_is_posted_too_where_an_expired_run_could_not_be_deleted_at_first(pilot: Pilot) -> None:
    await pilot.cluster.apply(a_manifest(ttlAfterFinished="1m"))
    await pilot.until_phase(Phase.SUCCEEDED)
    await pilot.turn()
    for event in pilot.server.all(EVENTS):
        await pilot.server.delete(EVENTS, event["metadata"]["name"], "team")
    pilot.server.refuse = lambda request: (
        refusal(403, "Forbidden", "denied") if (request.resource, request.method) == (RUNS, "DELETE") else None
    )
    for _ in range(4):
        await pilot.turn(30)
    assert pilot.run() is not None

    pilot.server.refuse = lambda _: None
    for _ in range(8):
        await pilot.turn(30)
    assert pilot.run() is None
    assert len(kept(pilot)) == 1
