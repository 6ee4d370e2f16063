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
    short = [replicas for replicas in scene.job.replicas if _is_short(scene, replicas)]
    sentence = next(filter(None, (_failure(scene, replicas) for replicas in short)), None)
    if sentence is not None:
        return replace(
            status.put(ConditionType.FAILED, sentence, now=scene.now), completed=status.completed or scene.now
        )
    if short:
        return status.put(ConditionType.RESTARTING, _restart(scene, short[0]), now=scene.now)
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
    done = succeeded == workers.count or (job.elastic is not None and succeeded > 0)
    return f"{KIND} {job.namespace}/{job.name} successfully completed." if done else None


def _is_short(scene: Scene, replicas: Replicas) -> bool:
    """Whether replicas of that type have failed and are missing."""
    tally = scene.tallies[replicas.kind]
    return tally.failed > 0 and replicas.count > tally.succeeded + tally.active


def _failure(scene: Scene, replicas: Replicas) -> str | None:
    """Why failed replicas of that type end the job, in Kubeflow's words; None when they come again."""
    job, kind = scene.job, replicas.kind
    if any(pods_of.permanent(replicas, pod) for pod in pods_of.of_kind(scene.pods, replicas)):
        return f'job "{job.name}" is failing because "{kind}" replica(s) failed.'
    if replicas.restart_policy == "Never":
        return f"{KIND} {job.name} is failed because {scene.tallies[kind].failed} {kind} replica(s) failed."
    return None


def _restart(scene: Scene, replicas: Replicas) -> str:
    """That replicas come again, in Kubeflow's words: it counts those only that are on their way out."""
    job, kind = scene.job, replicas.kind
    if any(pods_of.comes_again(replicas, pod) for pod in pods_of.of_kind(scene.pods, replicas)):
        return f"job {job.name} is restarting because {kind} replica(s) failed."
    return f"{KIND} {job.name} is restarting because {scene.tallies[kind].failed} {kind} replica(s) failed."


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
    """Seconds until the finished job is deleted; counted from the end, which every finished job has a time of.

    None when it may stay; a suspended one does.
    """
    ttl, ended = scene.job.policy.ttl_seconds, scene.status.completed
    if ttl is None or ended is None or scene.job.policy.suspend:
        return None
    return ttl - scene.seconds_since(ended)
