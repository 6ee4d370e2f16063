"""Next actions for a job. Pure: job, pods and services in; creations, deletions and the status out.

The first rule that returns a decision wins. The caller that applies a decision creates first, then writes the status,
then deletes. A pod is only deleted after the status contains the reason, so that a controller that replaces a crashed
one continues the work and does not repeat it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from piton.engine import pods as pods_of
from piton.engine import render
from piton.engine.job import KIND, Body, Job, Replicas
from piton.engine.outcome import judged, past_backoff_limit, seconds_to_deadline, seconds_to_live
from piton.engine.pods import Pod
from piton.engine.rules import problem
from piton.engine.state import Create, Decision, Delete, ObjectKind, ObservedJob, Service
from piton.engine.status import REASON_RESUMED, ConditionType, JobStatus, reason_of


def decide(job: Job, pods: Sequence[Body], services: Sequence[Body], *, now: datetime) -> Decision:
    """Return the next actions, given the pods and services that carry the job's labels. A settled job gets none."""
    now = now.replace(microsecond=0)  # all that a status can hold
    owned = (service["metadata"] for service in services if job.owns(service))
    scene = ObservedJob(
        job=job,
        pods=pods_of.read(job, pods),
        services=tuple(Service(name=meta["name"], uid=meta["uid"]) for meta in owned),
        now=now,
        status=job.status,
    )
    for name, rule in RULES:
        decision = rule(scene)
        if decision is not None:
            return replace(decision, rule=name, news=decision.status != job.status)
    raise AssertionError("the last rule always speaks")


# --- rules ------------------------------------------------------------------------------------------------------------


def _foreign(scene: ObservedJob) -> Decision | None:
    return None if scene.job.served else _decision(scene.job.status)


def _finished(scene: ObservedJob) -> Decision | None:
    """Clean up by the policy; what still ran when the job succeeded has succeeded as well."""
    if not scene.status.finished:
        return None
    status = scene.status
    if status.is_true(ConditionType.SUCCEEDED):
        ended = {k: replace(t, succeeded=t.succeeded + t.active, active=0) for k, t in status.replicas.items()}
        status = replace(status, replicas=ended)
    left = seconds_to_live(scene)
    if left is not None and left <= 0:
        job = Delete(kind=ObjectKind.JOB, name=scene.job.name, uid=scene.job.uid)
        return _decision(status, deletes=(job,))
    clean = {"All": scene.pods, "Running": tuple(pod for pod in scene.pods if pod.unfinished)}
    pods = clean.get(scene.job.policy.clean_pods, ())
    return _decision(status, deletes=_deletions(scene, pods), look_again_seconds=left)


def _impossible(scene: ObservedJob) -> Decision | None:
    """A job that cannot be fails, with the sentence that a webhook would have refused it with."""
    sentence = problem(scene.job)
    return None if sentence is None else _failure(scene, f"{KIND} {scene.job.name} is failed because {sentence}.")


def _suspended(scene: ObservedJob) -> Decision | None:
    """All pods go, whatever the policy; each with its service."""
    if not scene.job.policy.suspend:
        return None
    status, message = _created(scene), f"{KIND} {scene.job.name} is suspended."
    reason = reason_of(ConditionType.SUSPENDED)
    if status.is_true(ConditionType.RUNNING):
        status = status.put(ConditionType.RUNNING, message, now=scene.now, status=False, reason=reason)
    if not status.is_true(ConditionType.SUSPENDED):
        status = status.put(ConditionType.SUSPENDED, message, now=scene.now, reason=reason)
    idle = {kind: replace(tally, active=0) for kind, tally in status.replicas.items()}
    return _decision(replace(status, replicas=idle), deletes=_deletions(scene, scene.pods))


def _resumed(scene: ObservedJob) -> Decision | None:
    """A resumed job begins anew, its time and its numbers with it; but not before its former pods are gone.

    Nothing is created in the same pass: pods that are there while the job is suspended are always former ones.
    """
    status = scene.status
    if not status.is_true(ConditionType.SUSPENDED):
        return None
    if scene.pods:
        return _decision(status, deletes=_deletions(scene, scene.pods))
    message = f"{KIND} {scene.job.name} is resumed."
    status = status.put(ConditionType.SUSPENDED, message, now=scene.now, status=False, reason=REASON_RESUMED)
    anew = replace(scene, status=replace(status, started=scene.now, replicas={}))
    return _decision(replace(anew.status, replicas=anew.tallies))


def _exhausted(scene: ObservedJob) -> Decision | None:
    """The limits: restarts in place, and the time since the start. The numbers stay as they were written last."""
    scene = _begun(scene)
    if past_backoff_limit(scene):
        return _failure(scene, f"Job {scene.job.name} has failed because it has reached the specified backoff limit")
    left = seconds_to_deadline(scene)
    if left is not None and left <= 0:
        sentence = f"Job {scene.job.name} has failed because it was active longer than specified deadline"
        return _failure(scene, sentence)
    return None


def _working(scene: ObservedJob) -> Decision | None:
    """Create what is missing, take away what is too much, count, and judge."""
    scene = _begun(scene)
    status = judged(scene, replace(scene.status, replicas=scene.tallies))
    if status.finished:
        return _decision(status, deletes=_superfluous(scene))
    return _decision(
        status,
        creates=(*_missing_services(scene), *_missing_pods(scene)),
        deletes=(*_superfluous(scene), *_repeated(scene)),
        look_again_seconds=seconds_to_deadline(scene),
    )


RULES: tuple[tuple[str, Callable[[ObservedJob], Decision | None]], ...] = (
    ("foreign", _foreign),  # not Piton's, managed by somebody else, or being deleted: hands off
    ("finished", _finished),  # has succeeded or failed: clean up
    ("impossible", _impossible),  # breaks a rule of the resource: fails
    ("suspended", _suspended),  # is to wait: nothing runs
    ("resumed", _resumed),  # is to go on: waits for its former pods to leave, and begins anew
    ("exhausted", _exhausted),  # past a limit: fails
    ("working", _working),  # everything else
)


# --- parts ------------------------------------------------------------------------------------------------------------


def _created(scene: ObservedJob) -> JobStatus:
    return scene.status.put(ConditionType.CREATED, f"{KIND} {scene.job.name} is created.", now=scene.now)


def _begun(scene: ObservedJob) -> ObservedJob:
    """The scene once the job has begun."""
    status = _created(scene)
    return replace(scene, status=replace(status, started=status.started or scene.now))


def _failure(scene: ObservedJob, message: str) -> Decision:
    status = _created(scene).put(ConditionType.FAILED, message, now=scene.now)
    return _decision(replace(status, completed=scene.now))


def _missing_services(scene: ObservedJob) -> tuple[Create, ...]:
    there = {service.name for service in scene.services}
    return _creations(scene, ObjectKind.SERVICE, there, of=scene.job.replicas) if scene.job.needs_services else ()


def _missing_pods(scene: ObservedJob) -> tuple[Create, ...]:
    wanted = [r for r in scene.job.replicas if not pods_of.is_done_without_pods(r, scene.pods, scene.tallies[r.kind])]
    return _creations(scene, ObjectKind.POD, {pod.name for pod in scene.pods}, of=wanted)


def _creations(scene: ObservedJob, kind: ObjectKind, there: set[str], *, of: Sequence[Replicas]) -> tuple[Create, ...]:
    make = render.pod if kind is ObjectKind.POD else render.service
    return tuple(
        Create(kind=kind, body=make(scene.job, replicas, index))
        for replicas in of
        for index in range(replicas.count)
        if scene.job.replica_name(replicas.kind, index) not in there
    )


def _superfluous(scene: ObservedJob) -> tuple[Delete, ...]:
    """Return the deletions of replicas past the last index, after the job was made smaller."""
    wanted = scene.job.replica_names()
    pods = [_delete(ObjectKind.POD, pod) for pod in scene.pods if pod.name not in wanted and not pod.deleting]
    services = [_delete(ObjectKind.SERVICE, service) for service in scene.services if service.name not in wanted]
    return (*pods, *services)


def _repeated(scene: ObservedJob) -> tuple[Delete, ...]:
    """Return deletions of the failed pods that a new pod replaces; only of those, never of the whole gang."""
    wanted = scene.job.replica_names()
    return tuple(
        _delete(ObjectKind.POD, pod)
        for replicas in scene.job.replicas
        for pod in pods_of.of_kind(scene.pods, replicas)
        if pod.name in wanted and not pod.deleting and pods_of.comes_again(replicas, pod)
    )


def _deletions(scene: ObservedJob, pods: Sequence[Pod]) -> tuple[Delete, ...]:
    """Those pods, and before them the services of their names: a service whose pod is gone is not looked for."""
    names = {pod.name for pod in pods}
    services = [_delete(ObjectKind.SERVICE, service) for service in scene.services if service.name in names]
    return (*services, *(_delete(ObjectKind.POD, pod) for pod in pods if not pod.deleting))


def _delete(kind: ObjectKind, found: Pod | Service) -> Delete:
    return Delete(kind=kind, name=found.name, uid=found.uid)


def _decision(
    status: JobStatus,
    *,
    creates: tuple[Create, ...] = (),
    deletes: tuple[Delete, ...] = (),
    look_again_seconds: float | None = None,
) -> Decision:
    return Decision(rule="", status=status, creates=creates, deletes=deletes, look_again_seconds=look_again_seconds)
