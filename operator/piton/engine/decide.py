"""What has to happen to a job now. Pure: the job and what is there of it in, creations, deletions and the status out.

The first rule that speaks wins. Whoever applies a decision creates first, then writes the status, then deletes: a pod
is only taken away when the status already says why, so a controller that dies in between is continued, not repeated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property

from piton.engine import pods as pods_of
from piton.engine import render
from piton.engine.job import KIND, MASTER, WORKER, Body, Job, Replicas
from piton.engine.pods import Pod
from piton.engine.rules import problem
from piton.engine.status import REASON_RESUMED, ConditionType, JobStatus, Tally, reason_of


class ObjectKind(StrEnum):
    """The kinds of objects that a decision is about."""

    POD = "Pod"
    SERVICE = "Service"
    JOB = "PyTorchJob"


@dataclass(frozen=True, kw_only=True)
class Create:
    """Create this object; one that is there and the job's own is as good."""

    kind: ObjectKind
    body: Body


@dataclass(frozen=True, kw_only=True)
class Delete:
    """Delete the object of that name that has this uid, and no other."""

    kind: ObjectKind
    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class Service:
    """One service of the job."""

    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the rule wants."""

    rule: str
    status: JobStatus
    creates: tuple[Create, ...] = ()
    deletes: tuple[Delete, ...] = ()
    look_again_seconds: float | None = None
    """When time alone will change the decision."""
    news: bool = False
    """Whether the status says something that it did not say before."""

    @property
    def changes(self) -> bool:
        """Whether anything has to be written."""
        return self.news or bool(self.creates) or bool(self.deletes)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a rule may look at."""

    job: Job
    pods: tuple[Pod, ...] = ()
    services: tuple[Service, ...] = ()
    now: datetime
    status: JobStatus = field(default_factory=JobStatus)
    """The status as the rules before have left it."""

    @cached_property
    def tallies(self) -> dict[str, Tally]:
        """The numbers of each type."""
        job = replace(self.job, status=self.status)
        return {replicas.kind: pods_of.tally(job, replicas, self.pods) for replicas in self.job.replicas}

    def seconds_since(self, moment: datetime) -> float:
        """Seconds between that moment and now."""
        return (self.now - moment) / timedelta(seconds=1)


def decide(job: Job, pods: Sequence[Body], services: Sequence[Body], *, now: datetime) -> Decision:
    """What has to happen now, given the pods and services that carry the job's labels. A settled job gets nothing."""
    now = now.replace(microsecond=0)  # all that a status can hold
    owned = (service["metadata"] for service in services if job.owns(service))
    scene = Scene(
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


def _foreign(scene: Scene) -> Decision | None:
    return None if scene.job.served else _decision(scene.job.status)


def _finished(scene: Scene) -> Decision | None:
    """Clean up by the policy; what still ran when the job succeeded has succeeded as well."""
    if not scene.status.finished:
        return None
    status = scene.status
    if status.is_true(ConditionType.SUCCEEDED):
        ended = {k: replace(t, succeeded=t.succeeded + t.active, active=0) for k, t in status.replicas.items()}
        status = replace(status, replicas=ended)
    left = _seconds_to_live(scene)
    if left is not None and left <= 0:
        job = Delete(kind=ObjectKind.JOB, name=scene.job.name, uid=scene.job.uid)
        return _decision(status, deletes=(job,))
    clean = {"All": scene.pods, "Running": tuple(pod for pod in scene.pods if pod.unfinished)}
    pods = clean.get(scene.job.policy.clean_pods, ())
    return _decision(status, deletes=_deletions(scene, pods), look_again_seconds=left)


def _impossible(scene: Scene) -> Decision | None:
    """A job that cannot be fails, with the sentence that a webhook would have refused it with."""
    sentence = problem(scene.job)
    return None if sentence is None else _failure(scene, f"{KIND} {scene.job.name} is failed because {sentence}.")


def _suspended(scene: Scene) -> Decision | None:
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


def _resumed(scene: Scene) -> Decision | None:
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
    return _decision(replace(status, started=scene.now, replicas={}))


def _exhausted(scene: Scene) -> Decision | None:
    """The limits: restarts in place, and the time since the start."""
    scene = _begun(scene)
    if _past_backoff_limit(scene):
        return _failure(
            scene, f"Job {scene.job.name} has failed because it has reached the specified backoff limit", scene.tallies
        )
    left = _seconds_to_deadline(scene)
    if left is not None and left <= 0:
        sentence = f"Job {scene.job.name} has failed because it was active longer than specified deadline"
        return _failure(scene, sentence, scene.tallies)
    return None


def _working(scene: Scene) -> Decision | None:
    """Create what is missing, take away what is too much, count, and judge."""
    scene = _begun(scene)
    status = _judged(scene, replace(scene.status, replicas=scene.tallies))
    if status.finished:
        return _decision(status, deletes=_superfluous(scene))
    return _decision(
        status,
        creates=(*_missing_services(scene), *_missing_pods(scene)),
        deletes=(*_superfluous(scene), *_repeated(scene)),
        look_again_seconds=_seconds_to_deadline(scene),
    )


RULES: tuple[tuple[str, Callable[[Scene], Decision | None]], ...] = (
    ("foreign", _foreign),  # not Piton's, managed by somebody else, or being deleted: hands off
    ("finished", _finished),  # has succeeded or failed: clean up
    ("impossible", _impossible),  # breaks a rule of the resource: fails
    ("suspended", _suspended),  # is to wait: nothing runs
    ("resumed", _resumed),  # is to go on: waits for its former pods to leave, and begins anew
    ("exhausted", _exhausted),  # past a limit: fails
    ("working", _working),  # everything else
)


# --- judging ----------------------------------------------------------------------------------------------------------


def _judged(scene: Scene, status: JobStatus) -> JobStatus:
    """One verdict on all replicas: the end if there is one, else a restart, else that something runs.

    Kubeflow judges type by type in random order, so its conditions can change with every look at the same pods.
    """
    victory = _victory(scene)
    if victory is not None:
        return replace(
            status.put(ConditionType.SUCCEEDED, victory, now=scene.now), completed=status.completed or scene.now
        )
    for replicas in scene.job.replicas:
        tally = scene.tallies[replicas.kind]
        if not tally.failed or replicas.count <= tally.succeeded + tally.active:
            continue
        because = f"because {tally.failed} {replicas.kind} replica(s) failed."
        if _ends_by_failure(scene, replicas):
            sentence = f"{KIND} {scene.job.name} is failed {because}"
            return replace(
                status.put(ConditionType.FAILED, sentence, now=scene.now), completed=status.completed or scene.now
            )
        return status.put(ConditionType.RESTARTING, f"{KIND} {scene.job.name} is restarting {because}", now=scene.now)
    return _with_running(scene, status)


def _victory(scene: Scene) -> str | None:
    """Whether the job has succeeded, in a sentence: by its master, else by all workers, or any elastic one."""
    job = scene.job
    if job.of(MASTER) is not None:
        done = scene.tallies[MASTER].succeeded == 1
        return f"{KIND} {job.name} is successfully completed." if done else None
    workers = job.of(WORKER)
    assert workers is not None, "a job without replicas is refused before"
    succeeded = scene.tallies[WORKER].succeeded
    done = succeeded >= workers.count or (job.elastic is not None and succeeded > 0)
    return f"{KIND} {job.namespace}/{job.name} successfully completed." if done else None


def _ends_by_failure(scene: Scene, replicas: Replicas) -> bool:
    mine = pods_of.of_kind(scene.pods, replicas)
    return replicas.restart_policy == "Never" or any(pods_of.permanent(replicas, pod) for pod in mine)


def _with_running(scene: Scene, status: JobStatus) -> JobStatus:
    job = scene.job
    kind, name = (MASTER, job.name) if job.of(MASTER) else (WORKER, f"{job.namespace}/{job.name}")
    if not scene.tallies[kind].active:
        return status
    return status.put(ConditionType.RUNNING, f"{KIND} {name} is running.", now=scene.now)


def _past_backoff_limit(scene: Scene) -> bool:
    """Restarts in place of pods that run now; or, with a limit of 0, any new failure while not all pods are active."""
    limit = scene.job.policy.backoff_limit
    if limit is None:
        return False
    repeating = [r for r in scene.job.replicas if r.restart_policy != "Never"]
    running = [pod for r in repeating for pod in pods_of.of_kind(scene.pods, r) if pod.phase == "Running"]
    restarts = sum(pod.restarts for pod in running)
    if (restarts > 0) if limit == 0 else (restarts >= limit):
        return True
    failed = sum(pod.phase == "Failed" for pod in scene.pods)
    known = sum(tally.failed for tally in scene.status.replicas.values())
    active = sum(pod.unfinished and not pod.deleting for pod in scene.pods)
    return limit == 0 and failed > known and active != scene.job.total


def _seconds_to_deadline(scene: Scene) -> float | None:
    deadline, started = scene.job.policy.deadline_seconds, scene.status.started
    return None if deadline is None or started is None else deadline - scene.seconds_since(started)


def _seconds_to_live(scene: Scene) -> float | None:
    """Seconds until the finished job is deleted; counted from the end, which every finished job has a time of."""
    ttl, ended = scene.job.policy.ttl_seconds, scene.status.completed
    return None if ttl is None or ended is None else ttl - scene.seconds_since(ended)


# --- parts ------------------------------------------------------------------------------------------------------------


def _created(scene: Scene) -> JobStatus:
    return scene.status.put(ConditionType.CREATED, f"{KIND} {scene.job.name} is created.", now=scene.now)


def _begun(scene: Scene) -> Scene:
    """The scene once the job has begun."""
    status = _created(scene)
    return replace(scene, status=replace(status, started=status.started or scene.now))


def _failure(scene: Scene, message: str, replicas: dict[str, Tally] | None = None) -> Decision:
    status = _created(scene).put(ConditionType.FAILED, message, now=scene.now)
    return _decision(replace(status, completed=scene.now, replicas=replicas or scene.status.replicas))


def _missing_services(scene: Scene) -> tuple[Create, ...]:
    there = {service.name for service in scene.services}
    return _creations(scene, ObjectKind.SERVICE, there)


def _missing_pods(scene: Scene) -> tuple[Create, ...]:
    return _creations(scene, ObjectKind.POD, {pod.name for pod in scene.pods})


def _creations(scene: Scene, kind: ObjectKind, there: set[str]) -> tuple[Create, ...]:
    make = render.pod if kind is ObjectKind.POD else render.service
    return tuple(
        Create(kind=kind, body=make(scene.job, replicas, index))
        for replicas in scene.job.replicas
        for index in range(replicas.count)
        if scene.job.replica_name(replicas.kind, index) not in there
    )


def _superfluous(scene: Scene) -> tuple[Delete, ...]:
    """What lies past the last index, after the job was made smaller."""
    wanted = scene.job.replica_names()
    pods = [_delete(ObjectKind.POD, pod) for pod in scene.pods if pod.name not in wanted and not pod.deleting]
    services = [_delete(ObjectKind.SERVICE, service) for service in scene.services if service.name not in wanted]
    return (*pods, *services)


def _repeated(scene: Scene) -> tuple[Delete, ...]:
    """The failed pods that a fresh one is to take the place of; only those, never the whole gang."""
    wanted = scene.job.replica_names()
    return tuple(
        _delete(ObjectKind.POD, pod)
        for replicas in scene.job.replicas
        for pod in pods_of.of_kind(scene.pods, replicas)
        if pod.name in wanted and pods_of.repeats(replicas, pod)
    )


def _deletions(scene: Scene, pods: Sequence[Pod]) -> tuple[Delete, ...]:
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
