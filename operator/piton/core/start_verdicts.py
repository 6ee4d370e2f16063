"""Verdicts on an attempt whose containers do not start. Rules of `verdict.py`.

A container that cannot start has one of four causes, which `start_words.py` tells apart: the program (a Secret that
does not exist), the image (a wrong name), the cluster (registry, node, runtime), or nobody knows. What has
run once in this run exists, so whatever keeps it from starting again is the cluster's; but not a missing Secret, since
somebody may have deleted it. A registry that was down may say of an image that it does not exist while it
comes back: in an attempt that has seen the cluster in trouble, that is believed to be the cluster's as well.
"""

from piton.api.reasons import Reason
from piton.api.status import RunStatus, Verdict
from piton.core import programs, transitions
from piton.core.evidence import Evidence, Judgement, Patience
from piton.core.start_words import Blame, Proven, blame, blames_cluster, is_about_image, tells_no_cause, words_of
from piton.core.wait_reasons import find_hindrance
from piton.observed import AttemptSeen, ReplicaSeen, ReplicaState


def failed_to_initialize(evidence: Evidence) -> Judgement | None:
    """An init container failed. The run has none of its own: a webhook or the job's controller added it."""
    for replica in evidence.seen.replicas:
        if replica.init_failure and not replica.deleting:
            return Judgement(
                verdict=Verdict.INFRASTRUCTURE,
                reason=Reason.INIT_CONTAINER_FAILED,
                message=replica.init_failure,
                patient=True,
            )
    return None


def cannot_start(evidence: Evidence) -> Judgement | None:
    """A container cannot be started. One that waits may start yet; one that ended without having begun never will."""
    replica = find_unstartable(evidence.seen)
    return None if replica is None else _judge_start(replica, evidence)


def find_unstartable(seen: AttemptSeen) -> ReplicaSeen | None:
    """Return a replica whose container cannot be started, one that says why if any does; None: there is none.

    Of a gang the events of few replicas are read, and kubelets before 1.32 say only in an event why.
    """
    found = [replica for replica in seen.replicas if replica.cannot_start]
    return min(found, key=lambda replica: tells_no_cause(words_of(replica)), default=None)


def has_no_sandbox(evidence: Evidence) -> Judgement | None:
    """The node's container runtime or network plugin makes no sandbox for a pod."""
    for replica in evidence.seen.replicas:
        if replica.state is not ReplicaState.WAITING or replica.node is None or replica.deleting:
            continue
        found = find_hindrance(replica)
        if found is not None and found[0] is Reason.SANDBOX_FAILED:
            return Judgement(
                verdict=Verdict.INFRASTRUCTURE,
                reason=Reason.SANDBOX_FAILED,
                message=f"{_where(replica)} cannot start: {found[1]}",
                patient=True,
                patience=Patience.START,
            )
    return None


def remember(status: RunStatus, seen: AttemptSeen | None) -> RunStatus:
    """Note the program of the current attempt once a replica has run, and that the cluster kept one from starting."""
    status = programs.remember(status, seen)
    record = status.current
    if record is None or record.start_trouble or seen is None:
        return status
    if not any(
        replica.cannot_start and blame(words_of(replica), replica.program) is Blame.CLUSTER for replica in seen.replicas
    ):
        return status
    return transitions.change(status, start_trouble=True)


def proven(status: RunStatus) -> Proven:
    """Return the parts of the current attempt's containers that are proven to be right.

    After trouble of the cluster the image counts as right: a registry that comes back may say that it does not exist.
    """
    is_in_trouble = status.current is not None and status.current.start_trouble is True
    return Proven(image=programs.image_has_run(status) or is_in_trouble, program=programs.program_has_run(status))


def _judge_start(replica: ReplicaSeen, evidence: Evidence) -> Judgement:
    words = words_of(replica)
    about_image = is_about_image(words)
    is_clusters = blames_cluster(words, replica.program, evidence.proven)
    message = f"{_where(replica)} cannot start: {words or replica.waiting}"
    patient, patience = not replica.ended, Patience.START
    if is_clusters:
        reason = Reason.IMAGE_PULL_FAILED if about_image else Reason.START_FAILED
        return Judgement(
            verdict=Verdict.INFRASTRUCTURE, reason=reason, message=message, patient=patient, patience=patience
        )
    if blame(words, replica.program) is Blame.IMAGE:
        patience = Patience.IMAGE
    return Judgement(
        verdict=Verdict.USER_FAILURE, reason=Reason.CANNOT_START, message=message, patient=patient, patience=patience
    )


def _where(replica: ReplicaSeen) -> str:
    return f"{replica.name} on {replica.node}" if replica.node else replica.name
