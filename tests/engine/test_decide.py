"""What happens to a job: rows A.5, A.7 and A.8 of the conformance table."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import pytest

from piton.engine.decide import decide
from piton.engine.job import Job
from piton.engine.state import Create, Decision, ObjectKind
from piton.engine.status import JobStatus
from support.builders import NOW, later
from support.jobs import Body, a_job, a_pod, a_service, a_template, an_elastic_job, replicas

MASTER, WORKER = "ragcun-1-master-0", "ragcun-1-worker-0"


def _look(manifest: Body, *pods: Body, services: Sequence[str] = (), now: datetime = NOW) -> Decision:
    job = Job.read(manifest)
    return decide(job, pods, [a_service(job, name) for name in services], now=now)


def _pod(name: str = MASTER, phase: str = "Running", **fields: Any) -> Body:
    kind = name.split("-")[2].capitalize()
    return a_pod(Job.read(a_job()), name, kind, phase, **fields)


def _after(manifest: Body, *pods: Body, now: datetime = NOW) -> Body:
    """The job with the status that a look at these pods gives it."""
    return {**manifest, "status": _look(manifest, *pods, now=now).status.to_body()}


def _running(manifest: Body | None = None) -> Body:
    manifest = manifest or a_job()
    job = Job.read(manifest)
    return _after(manifest, *(_pod(name) for name in job.replica_names()))


def _created(decision: Decision) -> list[tuple[str, str]]:
    return [(create.kind, create.body["metadata"]["name"]) for create in decision.creates]


def _deleted(decision: Decision) -> list[tuple[str, str]]:
    return [(delete.kind, delete.name) for delete in decision.deletes]


def _conditions(decision: Decision) -> list[str]:
    return [c.type if c.status else f"not {c.type}" for c in decision.status.conditions]


def _numbers(decision: Decision, kind: str = "Master") -> tuple[int, int, int]:
    tally = decision.status.tally(kind)
    return tally.active, tally.succeeded, tally.failed


# --- creating ---------------------------------------------------------------------------------------------------------


def test_a_new_job_gets_a_service_and_a_pod_for_each_replica() -> None:
    decision = _look(a_job(workers=2))
    names = [MASTER, WORKER, "ragcun-1-worker-1"]
    assert _created(decision) == [("Service", name) for name in names] + [("Pod", name) for name in names]
    assert _conditions(decision) == ["Created"]
    assert decision.status.conditions[0].message == "PyTorchJob ragcun-1 is created."
    assert (decision.status.started, decision.status.completed) == (NOW, None)
    assert _numbers(decision, "Worker") == (0, 0, 0)


@pytest.mark.parametrize("make", [a_job, lambda: an_elastic_job(workers=1)])
def test_the_only_replica_of_a_job_gets_no_service(make: Callable[[], Body]) -> None:
    assert [kind for kind, _ in _created(_look(make()))] == ["Pod"]


@pytest.mark.parametrize("spec", [{"hostNetwork": True}, {"hostname": "trainer"}])
def test_the_only_replica_gets_a_service_if_its_etc_hosts_does_not_have_its_name(spec: Body) -> None:
    template = a_template()
    template["spec"] |= spec
    decision = _look(a_job(pytorchReplicaSpecs={"Master": replicas(template=template)}))
    assert _created(decision) == [("Service", MASTER), ("Pod", MASTER)]


def test_a_job_that_grows_beyond_one_replica_gets_its_services() -> None:
    one, two = (_only_workers(workers=count, policy="Never") for count in (1, 2))
    grown = {**_running(one), "spec": two["spec"]}
    first, second = "ragcun-1-worker-0", "ragcun-1-worker-1"
    assert _created(_look(grown, _pod(first))) == [("Service", first), ("Service", second), ("Pod", second)]


def test_only_what_is_missing_is_created() -> None:
    decision = _look(a_job(workers=1), _pod(), services=[WORKER])
    assert _created(decision) == [("Service", MASTER), ("Pod", WORKER)]


def test_pods_of_somebody_else_count_as_missing() -> None:
    foreign, former = _pod(), _pod()
    foreign["metadata"]["ownerReferences"] = []
    former["metadata"]["ownerReferences"][0]["uid"] = "uid-of-an-earlier-job"
    for pod in (foreign, former):
        decision = _look(a_job(), pod, services=[MASTER])
        assert _created(decision) == [("Pod", MASTER)]
        assert _deleted(decision) == []
        assert _numbers(decision) == (0, 0, 0)


def test_a_service_of_somebody_else_counts_as_missing() -> None:
    job = Job.read(a_job(workers=1))
    foreign, own = a_service(job, MASTER), a_service(job, WORKER)
    foreign["metadata"]["ownerReferences"] = []
    decision = decide(job, [_pod(), _pod(WORKER)], [foreign, own], now=NOW)
    assert _created(decision) == [("Service", MASTER)]


@pytest.mark.parametrize("change", ["label", "managed", "deleted"])
def test_a_job_that_is_not_ours_is_left_alone(change: str) -> None:
    manifest = a_job(runPolicy={"managedBy": "kueue.x-k8s.io/multikueue"} if change == "managed" else {})
    if change == "label":
        manifest["metadata"]["labels"] = {}
    if change == "deleted":
        manifest["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    decision = _look(manifest)
    assert (decision.rule, decision.changes) == ("foreign", False)


def test_a_job_that_cannot_be_fails_with_a_sentence_and_gets_nothing() -> None:
    decision = _look(a_job(pytorchReplicaSpecs={"Master": replicas(2)}))
    assert (decision.rule, _created(decision)) == ("impossible", [])
    assert _conditions(decision) == ["Created", "Failed"]
    message = "PyTorchJob ragcun-1 is failed because Master.replicas is 2; has to be 1."
    assert decision.status.conditions[-1].message == message


def test_what_lies_past_the_last_index_goes() -> None:
    extra = "ragcun-1-worker-1"
    decision = _look(a_job(workers=1), _pod(), _pod(WORKER), _pod(extra), services=[MASTER, WORKER, extra])
    assert _deleted(decision) == [("Pod", extra), ("Service", extra)]


def test_a_failure_past_the_last_index_is_none_of_the_job() -> None:
    extra = _pod("ragcun-1-worker-1", "Failed", exit_code=1)
    assert _conditions(_look(a_job(workers=1), _pod(), _pod(WORKER), extra)) == ["Created", "Running"]
    spared = a_job(workers=1, policy="OnFailure", runPolicy={"backoffLimit": 0})
    assert _conditions(_look(spared, _pod(), _pod(WORKER), extra)) == ["Created", "Running"]


def _smaller(workers: int, policy: str, *, elastic: bool = False) -> Body:
    """A job that ran with three workers and was made smaller."""
    make = an_elastic_job if elastic else _only_workers
    return {**_running(make(workers=3, policy=policy)), "spec": make(workers=workers, policy=policy)["spec"]}


def _only_workers(*, workers: int, policy: str) -> Body:
    return a_job(pytorchReplicaSpecs={"Worker": replicas(workers, policy)})


@pytest.mark.parametrize("policy", ["Never", "OnFailure", "Always", "ExitCode"])
@pytest.mark.parametrize(
    ("workers", "elastic", "condition"), [(1, True, "Succeeded"), (1, False, "Succeeded"), (2, False, "Running")]
)
def test_exit_code_0_past_the_last_index_counts_with_every_policy(
    policy: str, workers: int, elastic: bool, condition: str
) -> None:
    staying = [_pod(f"ragcun-1-worker-{index}") for index in range(workers)]
    leaving = _pod("ragcun-1-worker-2", "Succeeded", exit_code=0, deleting=True)
    decision = _look(_smaller(workers, policy, elastic=elastic), *staying, leaving)
    assert _conditions(decision)[-1] == condition
    assert _numbers(decision, "Worker") == (workers, 1, 0)


def test_a_restart_past_the_last_index_is_told_when_the_job_ends() -> None:
    pods = [_pod(WORKER), _pod("ragcun-1-worker-2", "Failed", exit_code=1, deleting=True)]
    smaller = _smaller(1, "Always", elastic=True)
    running = {**smaller, "status": _look(smaller, *pods).status.to_body()}
    assert _conditions(_look(running, *pods)) == ["Created", "Running"]
    decision = _look(running, _pod(WORKER, "Succeeded", exit_code=0), *pods[1:])
    assert _conditions(decision) == ["Created", "Restarting", "Succeeded"]


@pytest.mark.parametrize(
    ("codes", "conditions"),
    [
        ((143, 143), ["Created", "Running"]),
        ((1, 143), ["Created", "not Running", "Failed"]),
        ((143, 1), ["Created", "Restarting", "Failed"]),
    ],
)
def test_an_exit_code_past_the_last_index_ends_the_job_as_any_other(
    codes: tuple[int, int], conditions: list[str]
) -> None:
    leaving = [
        _pod(f"ragcun-1-worker-{index}", "Failed", exit_code=code, deleting=True)
        for index, code in enumerate(codes, start=1)
    ]
    assert _conditions(_look(_smaller(1, "ExitCode"), _pod(WORKER), *leaving)) == conditions


def test_times_are_what_the_api_server_can_hold() -> None:
    status = _look(a_job(), _pod(MASTER, "Succeeded"), now=later(0.5)).status
    assert JobStatus.read(status.to_body()) == status


# --- judging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifest", "pods", "conditions"),
    [
        (a_job(), [_pod(MASTER, "Pending")], ["Created"]),
        (a_job(), [_pod(MASTER, "Unknown")], ["Created"]),
        (a_job(), [_pod()], ["Created", "Running"]),
        (a_job(), [_pod(MASTER, "Succeeded")], ["Created", "Succeeded"]),
        (a_job(), [_pod(MASTER, "Failed", exit_code=1)], ["Created", "Failed"]),
        (a_job(workers=1), [_pod(MASTER, "Pending"), _pod(WORKER)], ["Created"]),
        (a_job(workers=1), [_pod(), _pod(WORKER, "Pending")], ["Created", "Running"]),
        (a_job(workers=1), [_pod(MASTER, "Succeeded"), _pod(WORKER)], ["Created", "Succeeded"]),
        (a_job(workers=1), [_pod(MASTER, "Succeeded"), _pod(WORKER, "Failed")], ["Created", "Succeeded"]),
        (a_job(workers=1), [_pod(), _pod(WORKER, "Failed")], ["Created", "not Running", "Failed"]),
        (a_job(workers=1), [_pod(), _pod(WORKER, "Succeeded")], ["Created", "Running"]),
        (an_elastic_job(), [_pod(WORKER), _pod("ragcun-1-worker-1", "Pending")], ["Created", "Running"]),
        (an_elastic_job(), [_pod(WORKER), _pod("ragcun-1-worker-1", "Succeeded")], ["Created", "Succeeded"]),
    ],
    ids=[
        "waiting", "unknown", "running", "succeeded", "failed", "only a worker runs", "only the master runs",
        "the master decides", "the master decides even then", "a failed worker", "a worker that is done",
        "workers run", "any elastic worker decides",
    ],
)  # fmt: skip
def test_the_pods_make_the_condition(manifest: Body, pods: list[Body], conditions: list[str]) -> None:
    assert _conditions(_look(manifest, *pods)) == conditions


@pytest.mark.parametrize(("second", "succeeded"), [("Running", False), ("Succeeded", True)])
def test_workers_without_a_master_succeed_together(second: str, succeeded: bool) -> None:
    manifest = a_job(pytorchReplicaSpecs={"Worker": replicas(2)})
    decision = _look(manifest, _pod(WORKER, "Succeeded"), _pod("ragcun-1-worker-1", second))
    assert ("Succeeded" in _conditions(decision)) is succeeded
    message = "successfully completed." if succeeded else "is running."
    assert decision.status.conditions[-1].message == f"PyTorchJob team/ragcun-1 {message}"


def test_never_turns_one_failed_replica_into_a_failed_job() -> None:
    decision = _look(_running(a_job(workers=2)), _pod(), _pod(WORKER, "Failed"), _pod("ragcun-1-worker-1"))
    assert _conditions(decision) == ["Created", "not Running", "Failed"]
    assert decision.status.conditions[-1].message == "PyTorchJob ragcun-1 is failed because 1 Worker replica(s) failed."
    assert decision.status.completed == NOW
    assert (_numbers(decision), _numbers(decision, "Worker")) == ((1, 0, 0), (1, 0, 1))


def test_a_failure_that_ends_the_job_is_not_hidden_by_a_restart() -> None:
    kinds = {"Master": replicas(1, "Always"), "Worker": replicas(1, "Never")}
    running = _running(a_job(pytorchReplicaSpecs=kinds))
    decision = _look(running, _pod(deleting=True), _pod(WORKER, "Failed"), services=[MASTER, WORKER])
    assert _conditions(decision) == ["Created", "Restarting", "Failed"]


TARGET = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]}


@pytest.mark.parametrize("code", [1, 137, 143])
def test_what_runs_beside_a_trainer_does_not_end_a_gang(code: int) -> None:
    """A log agent crashed hours ago. The pod is Failed as soon as its trainer has exited 0."""

    def ended(name: str, **fields: Any) -> Body:
        pod = _pod(name, "Failed", exit_code=0, **fields)
        pod["status"]["containerStatuses"].append({"name": "agent", "state": {"terminated": {"exitCode": code}}})
        return pod

    running = _running(a_job(workers=2))
    first = _after(running, _pod(), ended(WORKER), _pod("ragcun-1-worker-1"))
    again = _look(first, _pod(), ended(WORKER), _pod("ragcun-1-worker-1"))
    assert (_conditions(again)[-1], _numbers(again, "Worker"), again.deletes) == ("Running", (1, 1, 0), ())
    gone = _look(first, _pod(), _pod("ragcun-1-worker-1"))
    assert (_conditions(gone)[-1], [each for each in _created(gone) if each[0] == "Pod"]) == ("Running", [])
    master = _look(first, ended(MASTER), ended(WORKER), _pod("ragcun-1-worker-1"))
    assert _conditions(master)[-1] == "Succeeded"
    told = _look(running, _pod(), ended(WORKER, deleting=True), _pod("ragcun-1-worker-1"))
    assert _conditions(told)[-1] == "Failed", "exit code 0 of a pod that was told to leave"


@pytest.mark.parametrize(
    ("code", "status"),
    [(1, {}), (None, {}), (0, {"reason": "Evicted"}), (0, {"reason": "Terminated"}), (0, TARGET)],
)
def test_a_pod_whose_trainer_failed_or_that_was_ended_has_failed(code: int | None, status: Body) -> None:
    pod = _pod(WORKER, "Failed", **({} if code is None else {"exit_code": code}))
    pod["status"] |= status
    assert _conditions(_look(_running(a_job(workers=1)), _pod(), pod))[-1] == "Failed"


def test_with_a_policy_that_repeats_a_failed_pod_counts_as_with_kubeflow() -> None:
    manifest = _running(a_job(workers=1, policy="ExitCode"))
    assert _conditions(_look(manifest, _pod(), _pod(WORKER, "Failed", exit_code=0)))[-1] == "Failed"


def test_a_pod_fails_with_the_first_moment_of_its_grace_period() -> None:
    assert _conditions(_look(_running(), _pod(deleting=True)))[-1] == "Failed"


def test_a_pod_that_never_ran_may_be_deleted_and_comes_again() -> None:
    waiting = _after(a_job(), _pod(MASTER, "Pending"))
    assert _conditions(_look(waiting, _pod(MASTER, "Pending", deleting=True))) == ["Created"]
    assert _created(_look(waiting, services=[MASTER])) == [("Pod", MASTER)]


@pytest.mark.parametrize("manifest", [a_job(), an_elastic_job()])
def test_exit_code_0_of_a_pod_that_was_told_to_leave_is_no_success(manifest: Body) -> None:
    name = next(iter(Job.read(manifest).replica_names()))
    assert _conditions(_look(_running(manifest), _pod(name, "Succeeded", exit_code=0, deleting=True)))[-1] == "Failed"


def test_exit_code_0_of_a_pod_that_may_come_again_counts_as_with_kubeflow() -> None:
    """Piton's jobs say Never. Elsewhere a replica that ends its work while it is told to leave need not come again."""
    decision = _look(_running(a_job(policy="OnFailure")), _pod(MASTER, "Succeeded", exit_code=0, deleting=True))
    assert _conditions(decision)[-1] == "Succeeded"


def test_replicas_that_a_smaller_job_no_longer_wants_have_not_failed() -> None:
    smaller = {**_running(a_job(workers=3)), "spec": a_job(workers=1)["spec"]}
    assert _numbers(_look(smaller, _pod(), _pod(WORKER), services=[MASTER, WORKER]), "Worker") == (1, 0, 0)


def test_a_pod_that_ran_and_is_gone_is_not_started_again() -> None:
    decision = _look(_running(a_job(workers=1)), _pod(), services=[MASTER, WORKER])
    assert _conditions(decision)[-1] == "Failed"
    assert _created(decision) == []
    assert _numbers(decision, "Worker") == (0, 0, 1)


@pytest.mark.parametrize("leaves", [True, False])
def test_a_pod_that_goes_with_its_node_when_it_had_succeeded_has_succeeded(leaves: bool) -> None:
    """Rank 0 may still export, and needs nobody."""
    manifest = a_job(workers=2)
    names = [MASTER, WORKER, "ragcun-1-worker-1"]
    done = _after(_running(manifest), _pod(), _pod(WORKER, "Succeeded"), _pod(names[2]))
    left = [_pod(WORKER, "Succeeded", deleting=True)] if leaves else []
    decision = _look(done, _pod(), *left, _pod(names[2]), services=names)

    assert (_conditions(decision)[-1], _created(decision), _deleted(decision)) == ("Running", [], [])
    assert _numbers(decision, "Worker") == (1, 1, 0)

    gone = _after(done, _pod(), *left, _pod(names[2]))
    both = _look(gone, _pod(), services=names)
    assert (_conditions(both)[-1], _numbers(both, "Worker")) == ("Failed", (0, 1, 1))
    told = _look(gone, _pod(), _pod(names[2], "Succeeded", exit_code=0, deleting=True), services=names)
    assert (_conditions(told)[-1], _numbers(told, "Worker")) == ("Failed", (0, 1, 1))
    ends = _look(gone, _pod(MASTER, "Succeeded"), _pod(names[2]), services=names)
    assert _conditions(ends)[-1] == "Succeeded"


def test_a_pod_that_ran_and_is_gone_is_missed_although_another_still_waits() -> None:
    """One rank that starts over waits for ever for a peer that has begun without it."""
    manifest = a_job(pytorchReplicaSpecs={"Worker": replicas(2)})
    begun = _after(manifest, _pod(WORKER, "Pending"), _pod("ragcun-1-worker-1"))
    decision = _look(begun, _pod(WORKER, "Pending"), services=[WORKER, "ragcun-1-worker-1"])
    assert (_conditions(decision)[-1], _created(decision)) == ("Failed", [])


def test_a_replica_that_is_not_wanted_any_more_does_not_end_the_job() -> None:
    smaller = a_job(pytorchReplicaSpecs={"Worker": replicas(1)})
    decision = _look(smaller, _pod(WORKER, "Succeeded"), _pod("ragcun-1-worker-1", "Succeeded"))
    assert "Succeeded" not in _conditions(decision)
    assert ("Pod", "ragcun-1-worker-1") in _deleted(decision)
    assert _conditions(_look(smaller, _pod(WORKER, "Succeeded")))[-1] == "Succeeded"


@pytest.mark.parametrize(
    ("policy", "exit_code", "condition"),
    [
        ("OnFailure", 1, "Restarting"),
        ("Always", 1, "Restarting"),
        ("ExitCode", 128, "Restarting"),
        ("ExitCode", 143, "Restarting"),
        ("ExitCode", None, "Restarting"),
        ("ExitCode", 127, "Failed"),
        ("ExitCode", 1, "Failed"),
        ("Never", 143, "Failed"),
    ],
)
def test_the_restart_policy_decides_about_a_failed_pod(policy: str, exit_code: int | None, condition: str) -> None:
    ended = {} if exit_code is None else {"exit_code": exit_code}
    decision = _look(_running(a_job(policy=policy)), _pod(MASTER, "Failed", **ended), services=[MASTER])
    assert _conditions(decision)[-1] == condition
    assert _deleted(decision) == ([("Pod", MASTER)] if condition == "Restarting" else [])
    assert (decision.status.completed is not None) is (condition == "Failed")


def test_only_the_failed_pod_is_restarted() -> None:
    decision = _look(
        _running(a_job(workers=1, policy="OnFailure")), _pod(), _pod(WORKER, "Failed"), services=[MASTER, WORKER]
    )
    assert _deleted(decision) == [("Pod", WORKER)]
    message = "PyTorchJob ragcun-1 is restarting because 1 Worker replica(s) failed."
    assert decision.status.conditions[-1].message == message


def test_a_pod_that_is_told_to_leave_is_a_restart_with_a_number() -> None:
    decision = _look(_running(a_job(policy="OnFailure")), _pod(deleting=True))
    message = "PyTorchJob ragcun-1 is restarting because 1 Master replica(s) failed."
    assert decision.status.conditions[-1].message == message


def test_a_pod_that_fails_while_it_leaves_is_a_restart_without_a_number() -> None:
    decision = _look(_running(a_job(policy="OnFailure")), _pod(MASTER, "Failed", deleting=True), services=[MASTER])
    assert decision.status.conditions[-1].message == "job ragcun-1 is restarting because Master replica(s) failed."
    assert _deleted(decision) == []


def test_a_failure_by_exit_code_has_kubeflows_sentence() -> None:
    decision = _look(_running(a_job(policy="ExitCode")), _pod(MASTER, "Failed", exit_code=1))
    message = 'job "ragcun-1" is failing because "Master" replica(s) failed.'
    assert decision.status.conditions[-1].message == message


def test_a_job_that_restarts_runs_again() -> None:
    manifest = _running(a_job(policy="OnFailure"))
    manifest = _after(manifest, _pod(MASTER, "Failed"))
    assert _created(_look(manifest, services=[MASTER])) == [("Pod", MASTER)]
    manifest = _after(manifest, _pod(MASTER, "Pending"))
    assert _conditions(_look(manifest, _pod())) == ["Created", "Running"]


@pytest.mark.parametrize(
    ("workers", "pods"),
    [
        (1, [_pod(), _pod(WORKER, "Failed", deleting=True)]),
        (1, [_pod(), _pod(WORKER, deleting=True)]),
        (1, [_pod(MASTER, "Failed", deleting=True), _pod(WORKER)]),
        (1, [_pod(), _pod(WORKER), _pod("ragcun-1-worker-1", "Failed", deleting=True)]),
        (2, [_pod(), _pod(WORKER, deleting=True), _pod("ragcun-1-worker-1", "Failed", deleting=True)]),
    ],
    ids=["a worker failed", "a worker leaves", "the master failed", "a worker too many", "both workers"],
)
def test_the_same_pods_give_the_same_conditions_again_and_again(workers: int, pods: list[Body]) -> None:
    once = _after(_running(a_job(workers=workers, policy="OnFailure")), *pods)
    services = list(Job.read(once).replica_names())
    assert not _look(once, *pods, services=services, now=later(60)).changes


def test_the_selector_of_each_type_is_told() -> None:
    assert _look(a_job(), _pod()).status.tally("Master").selector == (
        "training.kubeflow.org/job-name=ragcun-1,training.kubeflow.org/operator-name=pytorchjob-controller,"
        "training.kubeflow.org/replica-type=master"
    )


# --- the end ----------------------------------------------------------------------------------------------------------

ENDS = [
    _pod(MASTER, "Succeeded"),
    _pod(WORKER),
    _pod("ragcun-1-worker-1", "Pending"),
    _pod("ragcun-1-worker-2", "Failed"),
]
ALL = [MASTER, WORKER, "ragcun-1-worker-1", "ragcun-1-worker-2"]


@pytest.mark.parametrize(
    ("policy", "gone"), [(None, []), ("None", []), ("Running", [WORKER, "ragcun-1-worker-1"]), ("All", ALL)]
)
def test_the_clean_pod_policy_says_what_stays_of_a_finished_job(policy: str | None, gone: list[str]) -> None:
    manifest = _after(a_job(workers=3, runPolicy={"cleanPodPolicy": policy} if policy else {}), *ENDS)
    decision = _look(manifest, *ENDS, services=ALL)
    assert decision.rule == "finished"
    assert _deleted(decision) == [("Service", name) for name in gone] + [("Pod", name) for name in gone]


def test_services_of_a_finished_job_without_pods_stay() -> None:
    manifest = _after(a_job(runPolicy={"cleanPodPolicy": "All"}), _pod(MASTER, "Succeeded"))
    assert _deleted(_look(manifest, services=[MASTER])) == []


def test_what_ran_when_the_job_succeeded_has_succeeded() -> None:
    manifest = _after(a_job(workers=3), *ENDS)
    assert _numbers(_look(manifest, *ENDS), "Worker") == (0, 1, 1)


def test_what_ran_when_the_job_failed_stays_as_it_was() -> None:
    pods = [_pod(MASTER, "Failed"), _pod(WORKER)]
    assert _numbers(_look(_after(a_job(workers=1), *pods), *pods), "Worker") == (1, 0, 0)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_job_is_finished_whatever_becomes_of_its_pods(phase: str) -> None:
    manifest = _after(_after(a_job(), _pod(MASTER, phase)), _pod(MASTER, phase))
    for pods in ([], [_pod()], [_pod(MASTER, "Failed")], [_pod(MASTER, "Succeeded")]):
        assert not _look(manifest, *pods, services=[MASTER], now=later(3600)).changes


@pytest.mark.parametrize(("seconds", "deleted"), [(59, False), (60, True)])
@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_job_is_deleted_after_its_time_to_live(phase: str, seconds: float, deleted: bool) -> None:
    manifest = _after(
        a_job(policy="ExitCode", runPolicy={"ttlSecondsAfterFinished": 60}), _pod(MASTER, phase, exit_code=1)
    )
    decision = _look(manifest, _pod(MASTER, phase), now=later(seconds))
    assert ((ObjectKind.JOB, "ragcun-1") in _deleted(decision)) is deleted
    assert decision.look_again_seconds == (None if deleted else 1)


def test_a_finished_job_that_is_suspended_does_not_age() -> None:
    policy = {"ttlSecondsAfterFinished": 60, "suspend": True}
    manifest = {**_after(a_job(), _pod(MASTER, "Succeeded")), "spec": a_job(runPolicy=policy)["spec"]}
    decision = _look(manifest, _pod(MASTER, "Succeeded"), now=later(3600))
    assert (_deleted(decision), decision.look_again_seconds) == ([], None)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_limit_leaves_the_numbers_as_they_were_written_last() -> None:
    manifest = _running(a_job(policy="OnFailure", runPolicy={"backoffLimit": 0}))
    decision = _look(manifest, _pod(MASTER, "Failed", exit_code=137))
    assert (_conditions(decision)[-1], _numbers(decision)) == ("Failed", (1, 0, 0))


@pytest.mark.parametrize(("seconds", "failed"), [(59, False), (60, True)])
def test_the_deadline_is_kept_by_a_timer_of_its_own(seconds: float, failed: bool) -> None:
    manifest = _running(a_job(runPolicy={"activeDeadlineSeconds": 60}))
    decision = _look(manifest, _pod(), services=[MASTER], now=later(seconds))
    assert (_conditions(decision)[-1] == "Failed") is failed
    assert decision.look_again_seconds == (None if failed else 1)


@pytest.mark.parametrize(
    ("policy", "limit", "restarts", "failed"),
    [
        ("OnFailure", 3, 2, False),
        ("OnFailure", 3, 3, True),
        ("OnFailure", 0, 0, False),
        ("OnFailure", 0, 1, True),
        ("Never", 1, 5, False),
        ("OnFailure", None, 99, False),
    ],
)
def test_the_backoff_limit_counts_restarts_in_place(
    policy: str, limit: int | None, restarts: int, failed: bool
) -> None:
    manifest = _running(a_job(policy=policy, runPolicy={} if limit is None else {"backoffLimit": limit}))
    decision = _look(manifest, _pod(restarts=restarts))
    assert (_conditions(decision)[-1] == "Failed") is failed
    if failed:
        message = "Job ragcun-1 has failed because it has reached the specified backoff limit"
        assert decision.status.conditions[-1].message == message


@pytest.mark.parametrize(("limit", "condition"), [(0, "Failed"), (1, "Restarting")])
def test_a_backoff_limit_of_0_allows_no_failed_pod(limit: int, condition: str) -> None:
    manifest = _running(a_job(policy="OnFailure", runPolicy={"backoffLimit": limit}))
    assert _conditions(_look(manifest, _pod(MASTER, "Failed", exit_code=137)))[-1] == condition


# --- suspension -------------------------------------------------------------------------------------------------------

SUSPENDED = {"suspend": True, "cleanPodPolicy": "None"}


def _suspended() -> Body:
    manifest = _running()
    manifest["spec"]["runPolicy"] = SUSPENDED
    return _after(manifest, _pod(), now=later(10))


def test_suspension_deletes_every_pod_and_says_so() -> None:
    manifest = _running(a_job(workers=1))
    manifest["spec"]["runPolicy"] = SUSPENDED
    decision = _look(manifest, _pod(), _pod(WORKER, "Succeeded"), services=[MASTER, WORKER])
    assert _deleted(decision) == [("Service", MASTER), ("Service", WORKER), ("Pod", MASTER), ("Pod", WORKER)]
    assert _conditions(decision) == ["Created", "not Running", "Suspended"]
    assert {c.reason for c in decision.status.conditions[1:]} == {"PyTorchJobSuspended"}
    assert _numbers(decision) == (0, 0, 0)


def test_a_job_that_is_created_suspended_gets_nothing() -> None:
    decision = _look(a_job(runPolicy=SUSPENDED))
    assert (_created(decision), _conditions(decision)) == ([], ["Created", "Suspended"])
    assert decision.status.started is None


def test_a_suspended_job_is_settled() -> None:
    assert not _look(_suspended(), now=later(3600)).changes


def test_a_resumed_job_waits_until_its_former_pods_are_gone() -> None:
    manifest = _suspended()
    manifest["spec"]["runPolicy"] = {}
    decision = _look(manifest, _pod(deleting=True), now=later(20))
    assert (decision.rule, decision.changes) == ("resumed", False)
    again = _look(manifest, _pod(), now=later(20))
    assert _deleted(again) == [("Pod", MASTER)]


def test_a_resumed_job_says_so_before_it_begins_anew() -> None:
    manifest = _suspended()
    manifest["spec"]["runPolicy"] = {"activeDeadlineSeconds": 60}
    decision = _look(manifest, now=later(100))
    assert _created(decision) == []
    assert decision.status.started == later(100)
    assert decision.status.tally("Master").selector
    resumed = decision.status.conditions[-1]
    assert (resumed.type, resumed.status, resumed.reason) == ("Suspended", False, "PyTorchJobResumed")
    assert resumed.message == "PyTorchJob ragcun-1 is resumed."
    manifest = {**manifest, "status": decision.status.to_body()}
    assert _created(_look(manifest, now=later(100))) == [("Pod", MASTER)]
    assert _conditions(_look(manifest, _pod(), now=later(110))) == ["Created", "not Suspended", "Running"]


def test_a_finished_job_is_not_suspended() -> None:
    manifest = _after(a_job(), _pod(MASTER, "Succeeded"))
    manifest["spec"]["runPolicy"] = SUSPENDED
    assert _look(manifest, _pod(MASTER, "Succeeded")).rule == "finished"


# --- settled ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["Pending", "Running", "Unknown"])
def test_a_settled_job_gets_nothing(phase: str) -> None:
    manifest = _after(a_job(), _pod(MASTER, phase))
    decision = _look(manifest, _pod(MASTER, phase), services=[MASTER], now=later(3600))
    assert not decision.changes
    assert decision.creates == tuple[Create]()
