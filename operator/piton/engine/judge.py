"""What the replicas together mean for their job: one verdict, and the limits that end it from outside."""

from dataclasses import replace

from piton.engine import pods as pods_of
from piton.engine.job import KIND, MASTER, WORKER, Replicas
from piton.engine.scene import Scene
from piton.engine.status import ConditionType, JobStatus


def judged(scene: Scene, status: JobStatus) -> JobStatus:
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


def past_backoff_limit(scene: Scene) -> bool:
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


def seconds_to_deadline(scene: Scene) -> float | None:
    """Seconds until the job has been active for too long; None when it may take for ever."""
    deadline, started = scene.job.policy.deadline_seconds, scene.status.started
    return None if deadline is None or started is None else deadline - scene.seconds_since(started)


def seconds_to_live(scene: Scene) -> float | None:
    """Seconds until the finished job is deleted; counted from the end, which every finished job has a time of."""
    ttl, ended = scene.job.policy.ttl_seconds, scene.status.completed
    return None if ttl is None or ended is None else ttl - scene.seconds_since(ended)
