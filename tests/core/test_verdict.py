from dataclasses import replace
from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import Verdict
from piton.contract.manifest import Complete
from piton.contract.termination import Limit, Outcome, ScriptEnd, Termination
from piton.core.evidence import Evidence, Judgement
from piton.core.verdict import judge
from piton.observed import AttemptSeen, JobState, LostReplica, ReplicaSeen, ReplicaState
from support.builders import a_complete, a_failed_attempt, a_lost, a_replica, an_attempt, failed, later, said

DONE = ReplicaState.SUCCEEDED
TAINT = "taint karpenter.sh/disrupted"
AT_BUDGET = Termination(outcome=Outcome.STOPPED, limit=Limit.BUDGET)


def judged(
    seen: AttemptSeen, *, complete: Complete | None = None, proof_needed: bool = True, ordered: Reason | None = None
) -> Judgement | None:
    return judge(Evidence(seen=seen, complete=complete, proof_needed=proof_needed, ordered=ordered))


@pytest.mark.parametrize("fields", [{"out_of_memory": True}, {"out_of_disk": True}])
@pytest.mark.parametrize(
    ("stage", "path"),
    [(Stage.TRAIN, "spec.workers.template.resources"), (Stage.PREPARE, "spec.stages.prepare.resources")],
)
@pytest.mark.parametrize("default", [None, "1Gi"])
def test_what_a_pod_had_too_little_of_is_raised_at_its_stage(
    fields: dict[str, bool], stage: Stage, path: str, default: str | None
) -> None:
    seen = a_failed_attempt(failed(137, default_limit=default, **fields))
    found = judge(Evidence(seen=seen, complete=None, proof_needed=False, ordered=None, stage=stage))
    assert found is not None
    assert path in found.message
    assert ("LimitRange" in found.message) is (default is not None)


@pytest.mark.parametrize(
    ("seen", "verdict", "reason"),
    [
        pytest.param(
            an_attempt(
                a_replica(DONE, exit_code=0, termination=said(Outcome.FINISHED, step=9, weights_digest="sha256:1"))
            ),
            Verdict.FINISHED,
            Reason.FINISHED,
            id="the final manifest told in the termination message is proof",
        ),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0, termination=said(Outcome.FINISHED, step=9))),
            Verdict.FINISHED,
            Reason.FINISHED,
            id="a final manifest whose weights have no digest is proof as well",
        ),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0, termination=said(Outcome.FINISHED))),
            Verdict.INFRASTRUCTURE,
            Reason.NO_PROOF,
            id="a word of an end that names no step is none",
        ),
        pytest.param(
            a_failed_attempt(a_replica(DONE, exit_code=0, disruption="EvictionByEvictionAPI")),
            Verdict.PREEMPTED,
            Reason.DISRUPTED,
            id="exit 0 after a disruption is no success",
        ),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0)),
            Verdict.INFRASTRUCTURE,
            Reason.NO_PROOF,
            id="exit 0 without a final manifest is no success for a recipe",
        ),
        pytest.param(
            a_failed_attempt(failed(1, disruption="TerminationByKubelet")),
            Verdict.PREEMPTED,
            Reason.DISRUPTED,
            id="torchrun's exit 1 on SIGTERM is not the user's failure",
        ),
        pytest.param(
            a_failed_attempt(failed(1, name="a"), a_replica(name="b", node="n1", node_gone=True)),
            Verdict.PREEMPTED,
            Reason.NODE_GONE,
            id="a peer that fails because a node is gone is not the user's failure",
        ),
        pytest.param(
            a_failed_attempt(failed(143, node="n1", node_reclaimed=True)),
            Verdict.PREEMPTED,
            Reason.NODE_RECLAIMED,
            id="a reclaimed machine is a preemption",
        ),
        pytest.param(
            a_failed_attempt(failed(1, node="n1", node_reclaimed=True, deleting=True)),
            Verdict.PREEMPTED,
            Reason.NODE_RECLAIMED,
            id="a pod that is drained from a cordoned machine is preempted, whatever it exits with",
        ),
        pytest.param(
            a_failed_attempt(failed(1, node="n1", node_reclaimed=True, termination=said(Outcome.STOPPED))),
            Verdict.PREEMPTED,
            Reason.NODE_RECLAIMED,
            id="and so is one that says that it was told to stop",
        ),
        pytest.param(
            a_failed_attempt(failed(143, node="n1", node_reclaimed=True, termination=AT_BUDGET)),
            Verdict.INFRASTRUCTURE,
            Reason.STOPPED_EARLY,
            id="but not one that says that it stopped at its budget",
        ),
        pytest.param(
            a_failed_attempt(failed(143, node="n1", node_reclaimed=True, leaving=TAINT, termination=AT_BUDGET)),
            Verdict.INFRASTRUCTURE,
            Reason.STOPPED_EARLY,
            id="nor there with a notice",
        ),
        pytest.param(
            a_failed_attempt(failed(143, node="n1", node_reclaimed=True, deleting=True, termination=AT_BUDGET)),
            Verdict.PREEMPTED,
            Reason.NODE_RECLAIMED,
            id="but one that is drained is preempted, whatever it says",
        ),
        pytest.param(
            a_failed_attempt(failed(143, node="n1", node_reclaimed=True, over_time=True)),
            Verdict.INFRASTRUCTURE,
            Reason.STOPPED_EARLY,
            id="nor one that its kubelet ended at activeDeadlineSeconds",
        ),
        pytest.param(
            a_failed_attempt(failed(1, node="n1", node_reclaimed=True, leaving=TAINT)),
            Verdict.PREEMPTED,
            Reason.NODE_RECLAIMED,
            id="and one that fails on a machine with a notice",
        ),
        pytest.param(
            a_failed_attempt(failed(1, node="n1", node_reclaimed=True)),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="a program that fails by itself on a cordoned machine has failed by itself",
        ),
        pytest.param(
            a_failed_attempt(failed(137, node="n1", node_reclaimed=True)),
            Verdict.INFRASTRUCTURE,
            Reason.KILLED,
            id="one that is killed there was killed",
        ),
        pytest.param(
            an_attempt(a_replica(name="a", node="n1"), a_replica(name="b", node="n2", leaving=TAINT)),
            Verdict.PREEMPTED,
            Reason.NODE_RECLAIMED,
            id="a machine that goes now ends the attempt, although everything still runs on it",
        ),
        pytest.param(
            an_attempt(a_replica(ReplicaState.WAITING, node="n1", leaving=TAINT)),
            Verdict.PREEMPTED,
            Reason.NODE_RECLAIMED,
            id="nor is it waited for a pod that has not begun there",
        ),
        pytest.param(
            replace(an_attempt(a_replica(deleting=True)), suspended=True),
            Verdict.STOPPED,
            Reason.JOB_SUSPENDED,
            id="a job that another client suspends is nobody's failure",
        ),
        pytest.param(
            replace(an_attempt(failed(137, deleting=True)), suspended=True),
            Verdict.STOPPED,
            Reason.JOB_SUSPENDED,
            id="nor is it when its pods did not stop in time",
        ),
        pytest.param(
            replace(an_attempt(), lost=(a_lost(),), suspended=True),
            Verdict.STOPPED,
            Reason.JOB_SUSPENDED,
            id="nor is it when its pods are gone already",
        ),
        pytest.param(
            replace(an_attempt(a_replica(deleting=True, node_gone=True, node="n1")), suspended=True),
            Verdict.PREEMPTED,
            Reason.NODE_GONE,
            id="a machine that is lost meanwhile is a preemption",
        ),
        pytest.param(
            a_failed_attempt(failed(255, node="n1", end_unknown=True)),
            Verdict.INFRASTRUCTURE,
            Reason.NO_EVIDENCE,
            id="a machine that reboots under a program is not the user's failure",
        ),
        pytest.param(
            a_failed_attempt(
                failed(255, name="a", end_unknown=True, ended_at=later(0)), failed(1, name="b", ended_at=later(0))
            ),
            Verdict.INFRASTRUCTURE,
            Reason.NO_EVIDENCE,
            id="nor is it when its peers fail for that",
        ),
        pytest.param(
            a_failed_attempt(
                failed(255, name="a", end_unknown=True, ended_at=later(45)), failed(1, name="b", ended_at=later(4))
            ),
            Verdict.INFRASTRUCTURE,
            Reason.NO_EVIDENCE,
            id="a runtime dates the end after the reboot",
        ),
        pytest.param(
            a_failed_attempt(failed(137, name="a", end_unknown=True), failed(1, name="b", ended_at=later(4))),
            Verdict.INFRASTRUCTURE,
            Reason.NO_EVIDENCE,
            id="a kubelet gives no time of an end that it did not see",
        ),
        pytest.param(
            a_failed_attempt(failed(255, end_unknown=True, disruption="NodeShutdown")),
            Verdict.PREEMPTED,
            Reason.DISRUPTED,
            id="a reboot that was announced is a preemption",
        ),
        pytest.param(
            a_failed_attempt(failed(255)),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="a program may end with 255 as well",
        ),
        pytest.param(
            a_failed_attempt(failed(143)),
            Verdict.INFRASTRUCTURE,
            Reason.POD_DELETED,
            id="SIGTERM from nobody known is not the user's failure",
        ),
        pytest.param(
            an_attempt(a_replica(deleting=True)),
            Verdict.INFRASTRUCTURE,
            Reason.POD_DELETED,
            id="a pod deleted by hand is not the user's failure",
        ),
        pytest.param(
            a_failed_attempt(failed(1, name="a", ended_at=later(1)), failed(143, name="b", ended_at=later(3))),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="peers that are cleaned away after a crash do not hide it",
        ),
        pytest.param(
            a_failed_attempt(failed(1, name="a", ended_at=later(3)), failed(137, name="b", ended_at=later(1))),
            Verdict.INFRASTRUCTURE,
            Reason.KILLED,
            id="peers that fail after one was killed are not the user's failure",
        ),
        pytest.param(
            a_failed_attempt(failed(137, out_of_memory=True)),
            Verdict.USER_FAILURE,
            Reason.OUT_OF_MEMORY,
            id="out of memory is the user's to mend",
        ),
        pytest.param(
            an_attempt(
                failed(None, node="n1", refused="UnexpectedAdmissionError: no healthy devices"),
                a_replica(name="b"),
                expected_replicas=2,
            ),
            Verdict.INFRASTRUCTURE,
            Reason.NODE_REFUSED,
            id="a pod that its kubelet does not accept ends the gang at once",
        ),
        pytest.param(
            a_failed_attempt(failed(137, out_of_disk=True)),
            Verdict.USER_FAILURE,
            Reason.OUT_OF_DISK,
            id="an eviction for its own use of the node's disk is the user's failure",
        ),
        pytest.param(
            a_failed_attempt(failed(78, termination=said(Outcome.BAD_CONFIG, detail="deph is unknown"))),
            Verdict.USER_FAILURE,
            Reason.BAD_CONFIG,
            id="a bad config is the user's",
        ),
        pytest.param(
            a_failed_attempt(failed(80)),
            Verdict.USER_FAILURE,
            Reason.OUT_OF_SPACE,
            id="a full volume by its reserved code",
        ),
        pytest.param(
            a_failed_attempt(failed(82)),
            Verdict.INFRASTRUCTURE,
            Reason.VOLUME_LOST,
            id="a volume that stays away is nobody's program's doing",
        ),
        pytest.param(
            a_failed_attempt(failed(84)),
            Verdict.INFRASTRUCTURE,
            Reason.NOT_MIRRORED,
            id="a bucket that did not take the last checkpoint is nobody's program's doing",
        ),
        pytest.param(
            a_failed_attempt(failed(85)),
            Verdict.INFRASTRUCTURE,
            Reason.DATA_UNAVAILABLE,
            id="a bucket of training data that is away is nobody's program's doing",
        ),
        pytest.param(
            a_failed_attempt(failed(83)),
            Verdict.INFRASTRUCTURE,
            Reason.DEVICE_LOST,
            id="a GPU that fails is nobody's program's doing",
        ),
        pytest.param(
            a_failed_attempt(failed(1, termination=said(Outcome.DEVICE_LOST, detail="uncorrectable ECC error"))),
            Verdict.INFRASTRUCTURE,
            Reason.DEVICE_LOST,
            id="nor is it when torchrun hides the code",
        ),
        pytest.param(
            a_failed_attempt(
                failed(1, name="a", ended_at=later(1), termination=said(Outcome.FAILED, detail="ValueError")),
                failed(83, name="b", ended_at=later(2)),
            ),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="a peer that misses a rank which crashed does not excuse the crash",
        ),
        pytest.param(
            a_failed_attempt(failed(83, name="a", ended_at=later(1)), failed(1, name="b", ended_at=later(1))),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="nor does it in the same second",
        ),
        pytest.param(
            a_failed_attempt(failed(83, name="a", ended_at=later(1)), failed(1, name="b", ended_at=later(2))),
            Verdict.INFRASTRUCTURE,
            Reason.DEVICE_LOST,
            id="peers that fail after a GPU was lost are not the user's failure",
        ),
        pytest.param(
            a_failed_attempt(failed(83, name="a", ended_at=later(1)), failed(137, name="b", out_of_memory=True)),
            Verdict.USER_FAILURE,
            Reason.OUT_OF_MEMORY,
            id="a peer that misses a rank which ran out of memory does not excuse that",
        ),
        pytest.param(
            a_failed_attempt(failed(83, name="a"), a_replica(name="b", node="n1", node_gone=True)),
            Verdict.PREEMPTED,
            Reason.NODE_GONE,
            id="a peer that misses a rank whose node is gone was preempted",
        ),
        pytest.param(
            a_failed_attempt(failed(134, name="a"), failed(134, name="b")),
            Verdict.INFRASTRUCTURE,
            Reason.DEVICE_LOST,
            id="ranks that abort without a word were ended by NCCL's watchdog",
        ),
        pytest.param(
            a_failed_attempt(failed(134, name="a", termination=said(Outcome.FAILED, detail="ValueError")), failed(134)),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="a rank that said what went wrong before it aborted is believed",
        ),
        pytest.param(
            a_failed_attempt(failed(134)),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="a single process that aborts has no watchdog",
        ),
        pytest.param(
            a_failed_attempt(failed(1, termination=said(Outcome.DIVERGED))),
            Verdict.USER_FAILURE,
            Reason.DIVERGED,
            id="divergence is known by its outcome when torchrun hides the code",
        ),
        pytest.param(a_failed_attempt(failed(1)), Verdict.USER_FAILURE, Reason.CRASHED, id="a crash is the user's"),
        pytest.param(
            a_failed_attempt(failed(1, termination=said(Outcome("meltdown"), detail="hot"))),
            Verdict.INFRASTRUCTURE,
            Reason.UNKNOWN_END,
            id="an outcome that only a newer trainer knows is not the user's failure",
        ),
        pytest.param(
            a_failed_attempt(failed(95)),
            Verdict.INFRASTRUCTURE,
            Reason.UNKNOWN_END,
            id="nor is an exit code that is kept for later versions",
        ),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0, termination=said(Outcome("paused")))),
            Verdict.INFRASTRUCTURE,
            Reason.UNKNOWN_END,
            id="and with exit 0 it is no success",
        ),
        pytest.param(
            a_failed_attempt(failed(95, disruption="EvictionByEvictionAPI")),
            Verdict.PREEMPTED,
            Reason.DISRUPTED,
            id="a disruption outranks a newer trainer's exit code",
        ),
        pytest.param(
            an_attempt(a_replica(ReplicaState.WAITING, waiting="ErrImagePull", cannot_start=True)),
            Verdict.USER_FAILURE,
            Reason.CANNOT_START,
            id="an image that does not exist is the user's",
        ),
        pytest.param(a_failed_attempt(), Verdict.INFRASTRUCTURE, Reason.NO_EVIDENCE, id="a failed job without pods"),
        pytest.param(
            a_failed_attempt(lost=(a_lost(node_gone=True),)),
            Verdict.PREEMPTED,
            Reason.NODE_GONE,
            id="a pod that is gone with its node was preempted",
        ),
        pytest.param(
            an_attempt(a_replica(node="n2"), lost=(a_lost(node_gone=True),)),
            Verdict.PREEMPTED,
            Reason.NODE_GONE,
            id="also when the job's controller has put a young pod in its place",
        ),
        pytest.param(
            a_failed_attempt(lost=(a_lost(node_reclaimed=True),)),
            Verdict.PREEMPTED,
            Reason.NODE_RECLAIMED,
            id="a pod that is gone from a node that is being reclaimed was preempted",
        ),
        pytest.param(
            a_failed_attempt(failed(1, name="a", ended_at=later(1)), lost=(a_lost("b", node_gone=True),)),
            Verdict.PREEMPTED,
            Reason.NODE_GONE,
            id="a peer that fails because pod and node are gone is not the user's failure",
        ),
        pytest.param(
            an_attempt(lost=(a_lost(),)),
            Verdict.INFRASTRUCTURE,
            Reason.POD_DELETED,
            id="a pod that is gone from a node that is still there was deleted by somebody",
        ),
        pytest.param(
            a_failed_attempt(failed(1, name="a"), lost=(a_lost("b"),)),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="a peer that was cleaned away after a crash does not hide it",
        ),
        pytest.param(
            a_failed_attempt(lost=(a_lost(node_gone=True, disruption="EvictionByEvictionAPI"),)),
            Verdict.PREEMPTED,
            Reason.DISRUPTED,
            id="an eviction that a watch has shown is a better reason",
        ),
        pytest.param(
            a_failed_attempt(lost=(a_lost(node_gone=True, notice="taint karpenter.sh/disrupted"),)),
            Verdict.PREEMPTED,
            Reason.NODE_RECLAIMED,
            id="a taint that a watch has shown is a better reason",
        ),
        pytest.param(
            a_failed_attempt(failed(None)),
            Verdict.INFRASTRUCTURE,
            Reason.NO_EVIDENCE,
            id="a failed pod without exit code",
        ),
    ],
)
def test_the_evidence_decides(seen: AttemptSeen, verdict: Verdict, reason: Reason) -> None:
    judgement = judged(seen)

    assert judgement is not None
    assert (judgement.verdict, judgement.reason) == (verdict, reason), judgement.message


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(an_attempt(a_replica()), id="it runs"),
        pytest.param(an_attempt(), id="no pod yet"),
        pytest.param(
            an_attempt(a_replica(name="a"), a_replica(DONE, exit_code=0, name="b", leaving=TAINT)),
            id="a replica that is done needs its machine no more",
        ),
        pytest.param(an_attempt(a_replica(ReplicaState.WAITING, waiting="Unschedulable: 0/3 nodes")), id="no capacity"),
        pytest.param(an_attempt(a_replica(node="n1", node_reclaimed=True)), id="a cordon alone ends nothing"),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0, name="a", node="n1", node_reclaimed=True), a_replica(name="b")),
            id="a worker that is done early on a cordoned machine is done",
        ),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0, name="a"), a_replica(name="b")),
            id="one replica is done, one still works",
        ),
        pytest.param(an_attempt(a_replica(DONE, exit_code=0), expected_replicas=2), id="a replica is still to come"),
        pytest.param(
            an_attempt(a_replica(deleting=True, name="b"), job=None, lost=(a_lost(node_gone=True),)),
            id="a job that is gone misses nobody",
        ),
        pytest.param(
            an_attempt(a_replica(deleting=True, name="b"), deleting=True, lost=(a_lost(node_gone=True),)),
            id="nor does one that is being deleted",
        ),
    ],
)
def test_without_evidence_there_is_no_verdict(seen: AttemptSeen) -> None:
    assert judged(seen) is None


@pytest.mark.parametrize("lost", [a_lost(), a_lost(node_gone=True), a_lost(node_reclaimed=True)])
def test_a_notice_that_a_watch_has_shown_changes_the_reason_and_never_the_verdict(lost: LostReplica) -> None:
    for job in JobState:
        blind = judged(an_attempt(job=job, lost=(lost,)))
        sighted = judged(an_attempt(job=job, lost=(replace(lost, notice="taint ToBeDeleted"),)))
        assert (sighted and sighted.verdict) == (blind and blind.verdict)


@pytest.mark.parametrize("lost", [a_lost(), a_lost(node_gone=True), a_lost(node_reclaimed=True)])
def test_a_pod_in_whose_last_state_the_cluster_has_taken_it_was_preempted_whatever_became_of_its_node(
    lost: LostReplica,
) -> None:
    judgement = judged(an_attempt(job=JobState.FAILED, lost=(replace(lost, disruption="EvictionByEvictionAPI"),)))
    assert judgement is not None
    assert (judgement.verdict, judgement.reason) == (Verdict.PREEMPTED, Reason.DISRUPTED)


@pytest.mark.parametrize("ends", [failed(143, name="b"), failed(1, name="b"), failed(None, name="b")])
def test_workers_that_are_cleaned_away_after_a_success_do_not_hide_it(ends: ReplicaSeen) -> None:
    """The master ends first, the job has succeeded, and its controller deletes the workers that still run."""
    master = a_replica(DONE, exit_code=0, name="a")
    runs = an_attempt(master, a_replica(name="b", deleting=True), job=JobState.SUCCEEDED)
    ended = an_attempt(master, replace(ends, deleting=True), job=JobState.SUCCEEDED)
    gone = an_attempt(master, job=JobState.SUCCEEDED, expected_replicas=2, lost=(a_lost("b", node_gone=True),))

    undecided = an_attempt(master, a_replica(name="b"))
    assert [judged(seen, proof_needed=False) for seen in (undecided, runs)] == [None, None]
    for seen in (ended, gone):
        judgement = judged(seen, proof_needed=False)
        assert judgement is not None
        assert (judgement.verdict, judgement.reason) == (Verdict.FINISHED, Reason.EXITED_ZERO)


@pytest.mark.parametrize("machine", [{"leaving": "taint"}, {"node_reclaimed": True}, {"node_gone": True}])
def test_the_machine_of_a_worker_that_is_cleaned_away_after_a_success_may_go(machine: dict[str, Any]) -> None:
    master = a_replica(DONE, exit_code=0, name="a")
    worker = a_replica(name="b", node="n2", deleting=True, **machine)

    while_the_job_is_active = judged(an_attempt(master, worker), proof_needed=False)
    after_its_success = judged(an_attempt(master, worker, job=JobState.SUCCEEDED), proof_needed=False)

    assert while_the_job_is_active is not None
    assert while_the_job_is_active.verdict is Verdict.PREEMPTED
    assert after_its_success is None or after_its_success.verdict is Verdict.FINISHED
    disrupted = an_attempt(master, replace(worker, disruption="EvictionByEvictionAPI"), job=JobState.SUCCEEDED)
    judgement = judged(disrupted, proof_needed=False)
    assert judgement is not None
    assert judgement.verdict is Verdict.PREEMPTED  # a program may end with 0 when it is told to stop


def test_a_worker_whose_kubelet_reports_before_the_masters_changes_nothing() -> None:
    worker = a_replica(DONE, exit_code=0, name="b")
    first = an_attempt(a_replica(name="a"), worker)
    both = an_attempt(a_replica(DONE, exit_code=0, name="a"), worker, job=JobState.SUCCEEDED)

    assert judged(first, proof_needed=False) is None
    judgement = judged(both, proof_needed=False)
    assert judgement is not None
    assert (judgement.verdict, judgement.reason) == (Verdict.FINISHED, Reason.EXITED_ZERO)


def test_a_worker_that_failed_by_itself_is_no_success_although_the_job_says_so() -> None:
    seen = an_attempt(a_replica(DONE, exit_code=0, name="a"), failed(1, name="b"), job=JobState.SUCCEEDED)
    judgement = judged(seen, proof_needed=False)

    assert judgement is not None
    assert judgement.verdict is Verdict.USER_FAILURE


def test_exit_0_is_the_end_for_a_program_that_does_not_use_the_library() -> None:
    for machine in ({}, {"node_reclaimed": True}, {"node_reclaimed": True, "leaving": TAINT}):
        judgement = judged(an_attempt(a_replica(DONE, exit_code=0, node="n1", **machine)), proof_needed=False)

        assert judgement is not None
        assert judgement.reason is Reason.EXITED_ZERO, "whoever is done has no use for the machine"


GOING: dict[str, dict[str, Any]] = {
    "its node is gone": {"node_gone": True},
    "its zone is silent": {"node_gone": True, "silent": "its zone does not answer"},
    "its pod is collected": {"node_gone": True, "deleting": True, "ended_by_itself": True},
}


@pytest.mark.parametrize("going", GOING)
def test_who_has_exited_0_needs_its_machine_no_more(going: str) -> None:
    """An autoscaler removes the node because it is empty. An operator that was away finds both at once."""
    done = a_replica(DONE, exit_code=0, name="b", node="n2", **GOING[going])
    alone = judged(an_attempt(done), proof_needed=False)
    assert alone is not None
    assert alone.reason is Reason.EXITED_ZERO
    assert judged(an_attempt(a_replica(name="a", node="n1"), done), proof_needed=False) is None, "the master goes on"
    both = judged(an_attempt(a_replica(DONE, exit_code=0, name="a"), done), proof_needed=False)
    assert both is not None
    assert both.reason is Reason.EXITED_ZERO


@pytest.mark.parametrize(
    "end",
    [
        a_replica(DONE, exit_code=0, node_gone=True, deleting=True),
        a_replica(DONE, exit_code=0, node_gone=True, disruption="TerminationByKubelet"),
        a_replica(DONE, exit_code=0, node_gone=True, termination=said(Outcome.STOPPED)),
        failed(0, node_gone=True),
        failed(143, node_gone=True),
        failed(137, node_gone=True),
        failed(1, node_gone=True),
    ],
)
def test_who_ends_because_its_machine_goes_was_preempted(end: ReplicaSeen) -> None:
    for peers in ((), (a_replica(name="a"),), (failed(1, name="a"),)):
        judgement = judged(an_attempt(*peers, end), proof_needed=False)
        assert judgement is not None
        assert judgement.verdict is Verdict.PREEMPTED


def test_exit_0_of_a_recipe_without_proof_on_a_machine_that_is_gone_is_no_end() -> None:
    judgement = judged(an_attempt(a_replica(DONE, exit_code=0, node="n1", node_gone=True)))
    assert judgement is not None
    assert judgement.reason is Reason.NODE_GONE


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"job": JobState.ACTIVE}, Reason.POD_DELETED),
        ({"job": JobState.FAILED}, Reason.POD_DELETED),
        ({"job": JobState.SUCCEEDED}, Reason.POD_DELETED),
        ({"job": JobState.ACTIVE, "deleting": True}, Reason.POD_DELETED),
        ({"job": None}, Reason.POD_DELETED),
    ],
)
@pytest.mark.parametrize("names", [("a",), ("a", "b")])
@pytest.mark.parametrize("is_recipe", [False, True])
def test_exit_0_of_a_pod_that_somebody_deletes_is_no_end_of_the_program(
    parts: dict[str, Any], reason: Reason, names: tuple[str, ...], is_recipe: bool
) -> None:
    told = [a_replica(DONE, exit_code=0, name=name, deleting=True) for name in names]
    judgement = judged(an_attempt(*told, **parts), proof_needed=is_recipe)
    assert judgement is not None
    assert (judgement.verdict, judgement.reason) == (Verdict.INFRASTRUCTURE, reason)

    before = [replace(each, ended_by_itself=True) for each in told]
    judgement = judged(an_attempt(*before, **{**parts, "job": JobState.SUCCEEDED}), proof_needed=False)
    assert judgement is not None
    assert judgement.reason is Reason.EXITED_ZERO, "it was over long before somebody cleaned up"


def test_exit_0_of_a_program_that_uses_the_library_still_needs_proof() -> None:
    replica = a_replica(DONE, exit_code=0, termination=said(Outcome.STOPPED, step=3))

    judgement = judged(an_attempt(replica, job=JobState.SUCCEEDED), proof_needed=False)

    assert judgement is not None
    assert judgement.verdict is not Verdict.FINISHED


def test_an_order_of_ours_outranks_the_exit_code_once_everything_has_ended() -> None:
    still = an_attempt(a_replica(deleting=True), deleting=True)
    gone = an_attempt(failed(143), deleting=True)

    assert judged(still, ordered=Reason.SUSPENDED) is None
    judgement = judged(gone, ordered=Reason.SUSPENDED)
    assert judgement is not None
    assert (judgement.verdict, judgement.reason) == (Verdict.STOPPED, Reason.SUSPENDED)


PROOF = said(Outcome.FINISHED, step=9, weights_digest="sha256:1", detail="all steps are done", script=ScriptEnd.ENDED)
RUNNING, FAILED = replace(PROOF, script=ScriptEnd.RUNNING), replace(PROOF, script=ScriptEnd.FAILED, script_error="boom")
LAUNCHED, OLDER = replace(PROOF, launched=True), replace(PROOF, script=None)


@pytest.mark.parametrize(
    ("seen", "verdict", "reason"),
    [
        pytest.param(an_attempt(a_replica(DONE, exit_code=0)), Verdict.FINISHED, Reason.FINISHED, id="exit code 0"),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0, disruption="EvictionByEvictionAPI")),
            Verdict.FINISHED,
            Reason.FINISHED,
            id="exit code 0, whatever becomes of the machine",
        ),
        pytest.param(
            an_attempt(a_replica(name="a", node="n1"), a_replica(DONE, exit_code=0, name="b", node_gone=True)),
            None,
            None,
            id="a worker that has ended needs its machine no more, and rank 0 goes on",
        ),
        pytest.param(
            an_attempt(a_replica(name="a"), a_replica(DONE, exit_code=0, name="b", disruption="Evicted")),
            None,
            None,
            id="nor does an eviction of it end rank 0's export",
        ),
        pytest.param(
            a_failed_attempt(failed(143, disruption="TerminationByKubelet", termination=RUNNING)),
            Verdict.PREEMPTED,
            Reason.DISRUPTED,
            id="a notice in the middle of an export",
        ),
        pytest.param(
            a_failed_attempt(failed(143, termination=RUNNING)),
            Verdict.INFRASTRUCTURE,
            Reason.POD_DELETED,
            id="a pod that is deleted in the middle of an export",
        ),
        pytest.param(
            a_failed_attempt(failed(137, termination=RUNNING)),
            Verdict.INFRASTRUCTURE,
            Reason.KILLED,
            id="one that is killed then",
        ),
        pytest.param(
            a_failed_attempt(failed(137, termination=RUNNING, out_of_memory=True)),
            Verdict.USER_FAILURE,
            Reason.OUT_OF_MEMORY,
            id="one that runs out of memory then",
        ),
        pytest.param(
            a_failed_attempt(failed(1, termination=FAILED)),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="an exception in what follows",
        ),
        pytest.param(
            a_failed_attempt(failed(139, termination=FAILED)),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="also when the interpreter dies of a signal afterwards",
        ),
        pytest.param(
            a_failed_attempt(failed(139, termination=RUNNING)),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="a signal in the middle of what follows",
        ),
        pytest.param(
            a_failed_attempt(failed(1, termination=PROOF)),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="exit code 1 without torchrun",
        ),
        pytest.param(
            a_failed_attempt(failed(134, termination=PROOF)),
            Verdict.FINISHED,
            Reason.FINISHED,
            id="SIGABRT at the interpreter's exit",
        ),
        pytest.param(
            a_failed_attempt(failed(139, termination=PROOF), a_replica(DONE, exit_code=0, name="b")),
            Verdict.FINISHED,
            Reason.FINISHED,
            id="SIGSEGV at the interpreter's exit, of one replica",
        ),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0, deleting=True, termination=PROOF)),
            Verdict.FINISHED,
            Reason.FINISHED,
            id="exit code 0 of a pod that is deleted, whose trainer says that its script came to its end",
        ),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0, deleting=True, termination=RUNNING)),
            Verdict.INFRASTRUCTURE,
            Reason.POD_DELETED,
            id="and of one that exits because of it",
        ),
        pytest.param(
            an_attempt(a_replica(name="a"), a_replica(DONE, exit_code=0, name="b", deleting=True, termination=RUNNING)),
            Verdict.INFRASTRUCTURE,
            Reason.POD_DELETED,
            id="of a worker as well",
        ),
        pytest.param(
            a_failed_attempt(failed(1, termination=LAUNCHED)),
            Verdict.FINISHED,
            Reason.FINISHED,
            id="the same behind torchrun, which makes exit code 1 of it",
        ),
        pytest.param(
            a_failed_attempt(failed(1, termination=OLDER)),
            Verdict.FINISHED,
            Reason.FINISHED,
            id="an older trainer does not say what its script did",
        ),
        pytest.param(
            a_failed_attempt(failed(3, termination=PROOF)),
            Verdict.USER_FAILURE,
            Reason.CRASHED,
            id="an exit code that no signal explains",
        ),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0, name="a"), a_replica(name="b", deleting=True)),
            Verdict.INFRASTRUCTURE,
            Reason.POD_DELETED,
            id="a worker that is told to stop while it does the rest",
        ),
        pytest.param(
            an_attempt(
                a_replica(DONE, exit_code=0, name="a"), failed(143, name="b", deleting=True), job=JobState.SUCCEEDED
            ),
            Verdict.FINISHED,
            Reason.FINISHED,
            id="a worker that the controller of a job that has succeeded cleans away",
        ),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0, name="a"), expected_replicas=2, lost=(a_lost("b"),)),
            Verdict.INFRASTRUCTURE,
            Reason.POD_DELETED,
            id="a worker that went before it had ended",
        ),
        pytest.param(
            an_attempt(a_replica(DONE, exit_code=0, name="a"), job=None, expected_replicas=2),
            Verdict.INFRASTRUCTURE,
            Reason.NO_EVIDENCE,
            id="of a job that is gone one replica alone proves nothing",
        ),
    ],
)
def test_a_finished_training_ends_with_its_script(
    seen: AttemptSeen, verdict: Verdict | None, reason: Reason | None
) -> None:
    judgement = judged(seen, complete=a_complete(7))

    assert (judgement and judgement.verdict, judgement and judgement.reason) == (verdict, reason)


@pytest.mark.parametrize(("words", "tells"), [(FAILED, ": boom"), (RUNNING, "training was finished")])
def test_a_failure_after_the_training_is_called_so(words: Termination, tells: str) -> None:
    judgement = judged(a_failed_attempt(failed(3, termination=words)))

    assert judgement is not None
    assert "ended with exit code 3 after its training was finished" in judgement.message
    assert judgement.message.endswith(tells)


BESIDE = a_replica(DONE, exit_code=0, name="b", failed_beside="agent (exit code 1)")


@pytest.mark.parametrize(
    "told", [failed(143, deleting=True), failed(1, deleting=True), a_replica(DONE, exit_code=0, deleting=True)]
)
@pytest.mark.parametrize("is_recipe", [False, True])
def test_a_job_that_fails_for_a_sidecar_is_no_failure_of_the_program(told: ReplicaSeen, is_recipe: bool) -> None:
    judgement = judged(an_attempt(told, BESIDE, job=JobState.FAILED), proof_needed=is_recipe)
    assert judgement is not None
    assert (judgement.verdict, judgement.reason) == (Verdict.INFRASTRUCTURE, Reason.POD_DELETED)
    assert (
        "for the pod b, whose trainer exited 0, because of agent (exit code 1). A native sidecar" in judgement.message
    )


def test_a_trainer_that_fails_beside_a_sidecar_that_does_has_failed() -> None:
    judgement = judged(a_failed_attempt(failed(1, name="a"), BESIDE), proof_needed=False)
    assert judgement is not None
    assert judgement.reason is Reason.CRASHED
