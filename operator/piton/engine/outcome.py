"""Conditions of a job, from the states of its replicas and the limits that end it from outside."""

from dataclasses import replace

from piton.engine import pods as pods_of
from piton.engine.job import KIND, MASTER, WORKER, Replicas
from piton.engine.state import ObservedJob
from piton.engine.status import ConditionType, JobStatus


def judged(scene: ObservedJob, status: JobStatus) -> JobStatus:
    """Return the status with the conditions that Kubeflow sets: first for each failed pod, then for each replica type.

    The success of the job ends the evaluation. Kubeflow takes the types in random order; Piton takes Master first.
    `Running` and `Restarting` may replace each other during the evaluation. If the resulting conditions are equal to
    the old ones, the old times are kept, so that unchanged pods do not cause an update of the status each time.
    """
    updated = _with_ends(scene, _with_failed_pods(scene, status))
    if [c.content for c in updated.conditions] == [c.content for c in status.conditions]:
        updated = replace(updated, conditions=status.conditions)
    return replace(updated, completed=status.completed or scene.now) if updated.finished else updated


def _with_failed_pods(scene: ObservedJob, status: JobStatus) -> JobStatus:
    """Return the status with the message of each failed pod, also past the last index; none after a failure."""
    job = scene.job
    for replicas in job.replicas:
        for pod in sorted(pods_of.of_kind(scene.pods, replicas), key=lambda pod: pod.index):
            if pods_of.permanent(replicas, pod):
                sentence = f'job "{job.name}" is failing because "{replicas.kind}" replica(s) failed.'
                status = status.put(ConditionType.FAILED, sentence, now=scene.now)
            elif pods_of.comes_again(replicas, pod):
                sentence = f"job {job.name} is restarting because {replicas.kind} replica(s) failed."
                status = status.put(ConditionType.RESTARTING, sentence, now=scene.now)
    return status


def _with_ends(scene: ObservedJob, status: JobStatus) -> JobStatus:
    """Return the status with the condition by the numbers of each type: the end, else a restart, else running."""
    victory = _victory(scene)
    if victory is not None:
        return status.put(ConditionType.SUCCEEDED, victory, now=scene.now)
    status = _with_running(scene, status)
    for replicas in scene.job.replicas:
        if not _is_short(scene, replicas):
            continue
        ends = replicas.restart_policy == "Never"
        kind, verb = (ConditionType.FAILED, "failed") if ends else (ConditionType.RESTARTING, "restarting")
        number = f"{scene.tallies[replicas.kind].failed} {replicas.kind} replica(s) failed"
        status = status.put(kind, f"{KIND} {scene.job.name} is {verb} because {number}.", now=scene.now)
    return status


def _victory(scene: ObservedJob) -> str | None:
    """Return the sentence of a job that has succeeded: by its master, else by all workers, or any elastic one."""
    job = scene.job
    if job.of(MASTER) is not None:
        done = scene.tallies[MASTER].succeeded == 1
        return f"{KIND} {job.name} is successfully completed." if done else None
    workers = job.of(WORKER)
    assert workers is not None, "a job without replicas is refused before"
    succeeded = scene.tallies[WORKER].succeeded
    done = succeeded == workers.count or (job.elastic is not None and succeeded > 0)
    return f"{KIND} {job.namespace}/{job.name} successfully completed." if done else None


def _is_short(scene: ObservedJob, replicas: Replicas) -> bool:
    """True if replicas of that type have failed and are missing."""
    tally = scene.tallies[replicas.kind]
    return tally.failed > 0 and replicas.count > tally.succeeded + tally.active


def _with_running(scene: ObservedJob, status: JobStatus) -> JobStatus:
    job = scene.job
    kind, name = (MASTER, job.name) if job.of(MASTER) else (WORKER, f"{job.namespace}/{job.name}")
    if not scene.tallies[kind].active:
        return status
    return status.put(ConditionType.RUNNING, f"{KIND} {name} is running.", now=scene.now)


def past_backoff_limit(scene: ObservedJob) -> bool:
    """Return True if the in-place restarts of running pods reach the limit.

    With a limit of 0, any restart is too many, and so is any new failure while not all pods are active.
    """
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


def seconds_to_deadline(scene: ObservedJob) -> float | None:
    """Return the seconds until the job's active deadline; None if it has none, or has not started."""
    deadline, started = scene.job.policy.deadline_seconds, scene.status.started
    return None if deadline is None or started is None else deadline - scene.seconds_since(started)


def seconds_to_live(scene: ObservedJob) -> float | None:
    """Return the seconds until the finished job is deleted, counted from its completion time.

    None if it is kept; a suspended job is kept.
    """
    ttl, ended = scene.job.policy.ttl_seconds, scene.status.completed
    if ttl is None or ended is None or scene.job.policy.suspend:
        return None
    return ttl - scene.seconds_since(ended)
