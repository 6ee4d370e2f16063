"""The verdict on the end of an attempt. Rules over the evidence, in order; the first that returns one wins.

    proof of the end         -> Finished          (the final manifest and exit code 0 of every replica; of a stage
                                beside the training, its word)
    a disrupted replica      -> Preempted         (outranks every exit code: torchrun turns each SIGTERM into 1; but one
                                that was done before needs its machine no more)
    a pod gone with its node -> Preempted         (nobody has to have seen how)
    an order of ours         -> Stopped
    a reserved outcome       -> UserFailure, often permanent; one of a newer trainer's -> Infrastructure
    a limit that it kept     -> Stopped           (deadline, budget), if reached or after a while; else Infrastructure
    a suspended job          -> Stopped           (another client did it, as Kueue does for its quota)
    a pod its kubelet refused -> Infrastructure
    a failed init container   -> Infrastructure
    what cannot start         -> UserFailure or Infrastructure, by the kubelet's words and by what has run before
    the first replica to fall: told to stop, an end that nobody saw, SIGKILL, a device lost -> Infrastructure; an error
                                -> UserFailure, but before all replicas have run -> Infrastructure
    a pod gone from its node -> Infrastructure
    what nobody explains     -> Infrastructure

A job's own Succeeded or Failed is never enough: see the traps of PyTorchJob v1.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import Verdict
from piton.contract.manifest import Complete
from piton.contract.termination import ExitCode, Limit, Outcome
from piton.core.evictions import out_of_disk, out_of_memory
from piton.core.evidence import (
    Evidence,
    Judgement,
    cause_of_failure,
    cleaned_away,
    deleted_by_others,
    failed_beside,
    has_ended_well,
    have_all_ended_well,
    is_aborted,
    is_done,
    last_state,
    missing_replicas,
    outcome_of_replica,
)
from piton.core.start_verdicts import cannot_start, failed_to_initialize, has_no_sandbox
from piton.observed import JobState, ReplicaSeen, ReplicaState

NEVER = datetime.max.replace(tzinfo=UTC)
_UNSEEN = datetime.min.replace(tzinfo=UTC)
_FALL_ORDER = (Reason.POD_DELETED, Reason.NO_EVIDENCE, Reason.KILLED, Reason.CRASHED, Reason.DEVICE_LOST)
"""Order of trust between replicas that ended in the same second."""


def judge(evidence: Evidence) -> Judgement | None:
    """The verdict, or None when nothing speaks of an end yet."""
    return next((found for rule in VERDICT_RULES if (found := rule(evidence))), None)


def finished_by_proof(evidence: Evidence) -> Judgement | None:
    """Return Finished on the final manifest and the end of the script on every replica.

    An export may follow the training. A replica that is missing may have been in the middle of it.
    """
    if evidence.stage is not Stage.TRAIN:
        return _finished_by_message(evidence)
    proof = evidence.proof
    if proof is None or missing_replicas(evidence) or not have_all_ended_well(evidence):
        return None
    why = proof.reason if isinstance(proof, Complete) else proof.detail
    return Judgement(verdict=Verdict.FINISHED, reason=Reason.FINISHED, message=f"finished at step {proof.step}: {why}")


def _finished_by_message(evidence: Evidence) -> Judgement | None:
    """Beside the training there is no manifest: that the program says so is all the proof there can be."""
    for replica in evidence.seen.replicas:
        end = replica.termination
        if end and end.outcome is Outcome.FINISHED and not replica.exit_code:
            message = end.detail or f"{replica.name} says that it has finished"
            return Judgement(verdict=Verdict.FINISHED, reason=Reason.FINISHED, message=message)
    return None


def disrupted(evidence: Evidence) -> Judgement | None:
    """A replica lost its machine, or is losing it. One that is done or cleaned away has no more use for its machine."""
    for replica in evidence.seen.replicas:
        if is_done(replica, evidence) or (cleaned_away(replica, evidence) and not replica.disruption):
            continue
        where = f"{replica.name} on {replica.node}" if replica.node else replica.name
        if replica.disruption:
            return _preempted(Reason.DISRUPTED, f"{where} was disrupted: {replica.disruption}")
        if replica.node_gone and replica.silent:
            return _preempted(Reason.ZONE_SILENT, f"{where}: {replica.silent}")
        if replica.node_gone:
            return _preempted(Reason.NODE_GONE, f"{where}: the machine is gone")
        if replica.leaving and not replica.ended:  # all stop together, at once: nobody else will tell them to
            return _preempted(Reason.NODE_RECLAIMED, f"{where}: the machine is being reclaimed ({replica.leaving})")
        if replica.node_reclaimed and _was_told_to_go(replica):
            return _preempted(Reason.NODE_RECLAIMED, f"{where}: the machine is being reclaimed")
    return None


def _was_told_to_go(replica: ReplicaSeen) -> bool:
    """True if its end, or what is on its way, is the machine's doing. A cordon alone takes nothing away.

    A program may end by itself on a machine that takes no new pods, as in every upgrade of nodes, and so may a trainer
    at a limit of the run.
    """
    if replica.is_told_to_end:
        return True
    if _kept_limit(replica):
        return False
    if replica.exit_code == ExitCode.STOPPED or outcome_of_replica(replica) is Outcome.STOPPED:
        return True
    return replica.leaving is not None and replica.ended and replica.exit_code != 0


def _kept_limit(replica: ReplicaSeen) -> bool:
    """True if its trainer stopped at a limit of the run, or its kubelet ended it at the pod's deadline."""
    end = replica.termination
    return replica.over_time or (end is not None and end.outcome is Outcome.STOPPED and end.limit in _LIMITS)


def gone_with_its_machine(evidence: Evidence) -> Judgement | None:
    """Pod and machine went before anybody looked, or the pod in whose last state the cluster says why it took it."""
    for replica in missing_replicas(evidence):
        where = f"{replica.name} on {replica.node}{last_state(replica)}"
        if replica.disruption:
            return _preempted(Reason.DISRUPTED, f"{where} was disrupted: {replica.disruption}")
        if not (replica.node_gone or replica.node_reclaimed):
            continue
        if replica.node_gone and not replica.notice:
            return _preempted(Reason.NODE_GONE, f"{where}: the pod and the machine are gone")
        notice = f" ({replica.notice})" if replica.notice else ""
        return _preempted(Reason.NODE_RECLAIMED, f"{where}: the pod is gone; the machine was being reclaimed{notice}")
    return None


def ordered(evidence: Evidence) -> Judgement | None:
    """Piton itself asked for the end."""
    if evidence.ordered is None or not evidence.seen.over:
        return None
    return Judgement(verdict=Verdict.STOPPED, reason=evidence.ordered, message="stopped on order")


def reserved(evidence: Evidence) -> Judgement | None:
    """The trainer says itself what was wrong; a cause that another attempt would meet again is permanent."""
    for replica in evidence.seen.replicas:
        outcome = outcome_of_replica(replica)
        if outcome is not None and not outcome.is_known:
            message = f"{replica.name} ended as {outcome}, which this version of Piton does not know"
            return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.UNKNOWN_END, message=message)
        if outcome is None or outcome not in RESERVED:
            continue
        verdict, reason, permanent = RESERVED[outcome]
        detail = replica.termination.detail if replica.termination else ""
        message = f"{replica.name} ended as {outcome.value}" + (f": {detail}" if detail else "")
        return Judgement(verdict=verdict, reason=reason, message=message, permanent=permanent)
    return None


def stopped_by_itself(evidence: Evidence) -> Judgement | None:
    """The trainer has kept a limit of the run's, while the operator was away or slower."""
    for replica in evidence.seen.replicas:
        end = replica.termination
        if end and end.outcome is Outcome.STOPPED and end.limit in _LIMITS:
            return _stopped_by(_LIMITS[end.limit], f"{replica.name}: {end.detail}", replica, evidence)
        if replica.over_time:
            message = f"the kubelet ended {replica.name} at its activeDeadlineSeconds"
            return _stopped_by(next(iter(evidence.limits), None), message, replica, evidence)
    return None


def _stopped_by(limit: Reason | None, message: str, replica: ReplicaSeen, evidence: Evidence) -> Judgement:
    """Return Stopped by that limit if it may have ended the attempt; else what may have."""
    if limit is not None and evidence.limits.get(limit):
        return Judgement(verdict=Verdict.STOPPED, reason=limit, message=message)
    may_be = "The run has no such limit: an admission plugin, a policy or a webhook may have set it"
    if limit in evidence.limits:
        clock = f"the clock of {replica.node}" if replica.node else "its machine's clock"
        may_be = (
            "By the operator's count that limit is not reached: the price was lower than assumed, the limit was "
            f"raised since, {clock} is wrong, or a policy or a webhook has set another"
        )
    return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.STOPPED_EARLY, message=f"{message}. {may_be}")


def suspended_by_others(evidence: Evidence) -> Judgement | None:
    """Another client suspended the job after it had pods. Without any, the job only waits."""
    seen = evidence.seen
    if not seen.suspended or not (seen.lost or any(r.deleting or r.ended for r in seen.replicas)):
        return None
    message = "another client suspended the job; to hold the run, set spec.suspend of the TrainingRun"
    return Judgement(verdict=Verdict.STOPPED, reason=Reason.JOB_SUSPENDED, message=message)


def refused_by_the_node(evidence: Evidence) -> Judgement | None:
    """The scheduler placed the pod, and the kubelet did not accept it."""
    for replica in evidence.seen.replicas:
        if replica.refused:
            message = f"the kubelet of {replica.node} did not accept {replica.name}: {replica.refused}"
            return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.NODE_REFUSED, message=message)
    return None


def first_failure(evidence: Evidence) -> Judgement | None:
    """The replica that ended first decides: its peers fail because it is gone, or are cleaned away afterwards.

    An end that nobody saw has the time at which it was found: its peers may have failed for it before.
    """
    fallen = [
        replica
        for replica in evidence.seen.replicas
        if not (cleaned_away(replica, evidence) or is_done(replica, evidence))
        and (replica.state is ReplicaState.FAILED or deleted_by_others(replica, evidence))
    ]
    judged = [
        (_UNSEEN if how is Reason.NO_EVIDENCE else r.ended_at or NEVER, _FALL_ORDER.index(how), r, how)
        for r in fallen
        if (how := cause_of_failure(r, evidence))
    ]
    if not judged:
        return None
    _, _, replica, how = min(judged, key=lambda entry: entry[:2])
    detail = _last_words(replica)
    if how is Reason.POD_DELETED:
        # Patient: a pod on a node that does not answer is deleted by the cluster before the node counts as gone.
        message = f"{replica.name} was told to stop by {_who_stopped(evidence)}"
        return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=how, message=message, patient=True)
    if how is Reason.NO_EVIDENCE:
        where = f"the machine {replica.node}" if replica.node else "its machine"
        message = f"nobody saw {replica.name} end: {where} has rebooted, or its container runtime lost it{detail}"
        return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=how, message=message, patient=True)
    if how is Reason.KILLED:
        message = f"{replica.name} was killed (SIGKILL) and nothing says by whom{detail}"
        return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=how, message=message, patient=True)
    if how is Reason.DEVICE_LOST:
        ended = "was aborted without a word, as NCCL does" if is_aborted(replica, evidence) else "lost a device"
        message = f"{replica.name} {ended}{detail}"
        return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=how, message=message, patient=True)
    message = f"{replica.name} ended with exit code {replica.exit_code}{detail}"
    if not evidence.formed:
        message = f"{message}; not all of its {evidence.seen.expected_replicas} replicas had run"
        return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.GANG_INCOMPLETE, message=message, patient=True)
    return Judgement(verdict=Verdict.USER_FAILURE, reason=how, message=message, patient=True)


def _who_stopped(evidence: Evidence) -> str:
    """Name who has told a replica to stop, neither Piton nor the controller of a job that has come to its end."""
    cause = failed_beside(evidence)
    if cause is None:
        return "somebody else"
    return (
        f"the job's controller: it failed the job for the pod {cause.name}, whose trainer exited 0, because of "
        f"{cause.failed_beside}. A native sidecar (an init container with restartPolicy: Always) fails no pod; with "
        "engine: bundled, no container beside a trainer fails the job"
    )


def _last_words(replica: ReplicaSeen) -> str:
    words = replica.termination
    if words is not None and words.is_proof:
        return " after its training was finished" + (f": {words.script_error}" if words.script_error else "")
    return f": {words.detail}" if words is not None and words.detail else ""


def taken_away(evidence: Evidence) -> Judgement | None:
    """A pod is gone and its machine is not: no preemption. Patient: the machine may be gone as well, unnoticed yet."""
    for replica in missing_replicas(evidence):
        named = f"{replica.name}{last_state(replica)}"
        message = f"{named} was deleted by another client; its node {replica.node} is still there"
        return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.POD_DELETED, message=message, patient=True)
    return None


def exited_zero(evidence: Evidence) -> Judgement | None:
    """Everything exited 0. That is the end for a program without the library, and a riddle for a recipe.

    Of a job that has succeeded the master has exited 0, and what its controller then cleans away may end in any way.
    A program may also exit 0 because its pod or its job is deleted: that is no end of the program.
    """
    replicas = evidence.seen.replicas
    done = [replica for replica in replicas if replica.state is ReplicaState.SUCCEEDED]
    told = next((replica for replica in done if not has_ended_well(replica)), None)
    if not have_all_ended_well(evidence):
        if told is None or not all(r in done or (r.ended and cleaned_away(r, evidence)) for r in replicas):
            return None
        message = f"{told.name} exited 0, told to stop by {_who_stopped(evidence)}"
        return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.POD_DELETED, message=message)
    if evidence.proof_needed or any(replica.termination for replica in done):
        message = "every replica exited 0, but there is no final manifest"
        return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.NO_PROOF, message=message)
    message = "every replica exited 0, undisturbed"
    return Judgement(verdict=Verdict.FINISHED, reason=Reason.EXITED_ZERO, message=message)


def unexplained(evidence: Evidence) -> Judgement | None:
    """The job is over and nobody is left to say why."""
    seen = evidence.seen
    failed = next((r for r in seen.replicas if r.state is ReplicaState.FAILED), None)
    if failed is None and seen.job is JobState.ACTIVE and not seen.deleting:
        return None
    if seen.replicas and not seen.over and seen.job is not JobState.FAILED:
        return None
    told = None if failed is None else failed.init_failure or f"{failed.name} failed without an exit code"
    message = told or f"the job is over without evidence: {seen.message}"
    return Judgement(verdict=Verdict.INFRASTRUCTURE, reason=Reason.NO_EVIDENCE, message=message, patient=True)


def _preempted(reason: Reason, message: str) -> Judgement:
    return Judgement(verdict=Verdict.PREEMPTED, reason=reason, message=message)


_LIMITS = {Limit.DEADLINE: Reason.DEADLINE_EXCEEDED, Limit.BUDGET: Reason.BUDGET_EXCEEDED}
RESERVED: dict[Outcome, tuple[Verdict, Reason, bool]] = {
    Outcome.BAD_CONFIG: (Verdict.USER_FAILURE, Reason.BAD_CONFIG, True),
    Outcome.DIVERGED: (Verdict.USER_FAILURE, Reason.DIVERGED, True),
    Outcome.OUT_OF_SPACE: (Verdict.USER_FAILURE, Reason.OUT_OF_SPACE, False),
    Outcome.FENCED: (Verdict.INFRASTRUCTURE, Reason.FENCED, False),
    Outcome.VOLUME_LOST: (Verdict.INFRASTRUCTURE, Reason.VOLUME_LOST, False),
    Outcome.NOT_MIRRORED: (Verdict.INFRASTRUCTURE, Reason.NOT_MIRRORED, False),
    Outcome.DATA_UNAVAILABLE: (Verdict.INFRASTRUCTURE, Reason.DATA_UNAVAILABLE, False),
    Outcome.HUNG: (Verdict.INFRASTRUCTURE, Reason.HUNG, False),
}
"""Verdict, reason, and True if another attempt would end the same way, by the trainer's own outcome."""

VERDICT_RULES: tuple[Callable[[Evidence], Judgement | None], ...] = (
    finished_by_proof,
    disrupted,
    gone_with_its_machine,
    ordered,
    reserved,
    stopped_by_itself,
    suspended_by_others,
    out_of_memory,
    out_of_disk,
    refused_by_the_node,
    failed_to_initialize,
    cannot_start,
    has_no_sandbox,
    first_failure,
    taken_away,
    exited_zero,
    unexplained,
)
