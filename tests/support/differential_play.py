"""One job's life on both sides: a step, then quiet, then a comparison; until nothing more can be told apart."""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from piton.engine.job import MASTER, WORKER
from piton.kube.resources import JOBS, PODS, SERVICES
from piton.ports import PortError, Refused, Unavailable
from support.differential_compare import ADMISSION, Outcome, Rule, Verdict, compare
from support.differential_jobs import SHORT_SECONDS, Situation, Step, a_random_job, next_step
from support.differential_sides import Arena, Side

Body = dict[str, Any]

STEPS_MAX = 9
_POLL_SECONDS = 0.05
_TRIES = 5


@dataclass(kw_only=True)
class Life:
    """What happened to one job."""

    seed: int
    steps: list[str] = field(default_factory=list)
    excused: set[str] = field(default_factory=set)
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        found = "".join(f"\n      {difference}" for difference in self.differences)
        again = f"make e2e-neighbours-differential JOBS=1 SEED={self.seed}"
        return f"{again}: {'; '.join(self.steps)}{found}"


async def play(buffer: Arena, seed: int) -> Life:
    """Live one job's life, until the first difference that no rule excuses."""
    life, rng, job = Life(seed=seed), random.Random(f"steps {seed}"), a_random_job(seed)
    life.steps.append(_summary(job))
    name = job["metadata"]["name"]
    if not await _create(buffer, job, life):
        return life
    steps: list[Step] = []
    for _ in range(STEPS_MAX):
        verdict = await _settled(buffer, job, steps)
        life.excused |= {rule.name for rule in verdict.rules}
        life.differences = verdict.differences
        if verdict.differences or verdict.follows(Outcome.ENDS):
            break
        step = next_step(rng, _situation(buffer, name))
        if step is None:
            break
        steps.append(step)
        life.steps.append(str(step))
        buffer.disturb(name)
        try:
            await asyncio.gather(*(_insist(side, name, step) for side in buffer.sides))
        except PortError as error:
            life.differences = (f"the step was impossible: {error}",)
            break
    await _end(buffer, name)
    return life


async def _create(buffer: Arena, job: Body, life: Life) -> bool:
    """Create it on both sides; False when it cannot be, which both have to say."""
    name = job["metadata"]["name"]
    buffer.disturb(name)
    await buffer.piton.create(job)
    try:
        await buffer.kubeflow.create(job)
    except Refused as refusal:
        life.steps.append(f"refused: {refusal}")
        life.excused.add(ADMISSION)
        if not await _failed_at_once(buffer, name):
            life.differences = (f"Kubeflow's webhook refuses the job, ours makes of it: {buffer.piton.job(name)}",)
        return False
    return True


async def _failed_at_once(buffer: Arena, name: str) -> bool:
    """Whether our job fails, and gets no pods."""
    started = buffer.ticks
    while not buffer.gives_up(name, since=started):
        await asyncio.sleep(_POLL_SECONDS)
        status = (buffer.piton.last_job(name) or {}).get("status") or {}  # its time to live may be 0
        if any(c["type"] == "Failed" for c in status.get("conditions", ())):
            return not buffer.piton.of_job(PODS, name)
    return False


async def _settled(buffer: Arena, job: Body, steps: Sequence[Step]) -> Verdict:
    """What is found once both are quiet, and alike; or after a long silence."""
    name = job["metadata"]["name"]
    started, touched = buffer.ticks, list[Rule]()
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        late = buffer.gives_up(name, since=started)
        if not buffer.quiet(name) and not late:
            continue
        verdict = compare(buffer.kubeflow, buffer.piton, job, steps)
        if verdict.follows(Outcome.TOUCH) and not late:
            touched.extend(verdict.rules)
            buffer.disturb(name)
            await buffer.kubeflow.touch(name)
        elif late or not verdict.differences:
            return replace(verdict, rules=(*touched, *verdict.rules))


def _situation(buffer: Arena, name: str) -> Situation:
    """What both sides agree on."""
    jobs = [side.job(name) for side in buffer.sides]
    pods = [
        {pod: (body["status"].get("phase", "Pending"), "deletionTimestamp" in body["metadata"]) for pod, body in found}
        for found in (side.of_job(PODS, name).items() for side in buffer.sides)
    ]
    theirs, ours = pods
    conditions = ((jobs[1] or {}).get("status") or {}).get("conditions") or ()
    return Situation(
        spec=(jobs[1] or {}).get("spec", {}),
        finished=any(c["type"] in ("Succeeded", "Failed") and c["status"] == "True" for c in conditions),
        gone=None in jobs,
        pods={pod: state for pod, state in ours.items() if theirs.get(pod) == state},
        services=tuple(buffer.piton.of_job(SERVICES, name)),
    )


async def _insist(side: Side, name: str, step: Step) -> None:
    """The step on one side, again where the API server does not answer."""
    for _ in range(_TRIES):
        with contextlib.suppress(Unavailable):
            return await _do(side, name, step)
    raise AssertionError(f"the API server has not answered {_TRIES} times")


async def _do(side: Side, name: str, step: Step) -> None:
    """The step on one side."""
    match step.kind:
        case "run all":
            for pod, body in side.of_job(PODS, name).items():
                if body["status"].get("phase") == "Pending" and "deletionTimestamp" not in body["metadata"]:
                    await side.say(pod, _running(body))
        case "suspend":
            await side.patch_job(name, runPolicy={"suspend": step.value})
        case "scale":
            await side.patch_job(name, pytorchReplicaSpecs={WORKER: {"replicas": step.value}})
        case "shorten the deadline":
            await _outlive(side, name, SHORT_SECONDS)
            await side.patch_job(name, runPolicy={"activeDeadlineSeconds": SHORT_SECONDS})
        case "outlive the deadline":
            await _outlive(side, name, step.value)
        case "live out":
            pass
        case "lose service":
            await side.delete(SERVICES, str(step.replica))
        case _:
            await _do_to_pod(side, str(step.replica), step)


async def _do_to_pod(side: Side, pod: str, step: Step) -> None:
    body = next((body for found, body in side._seen[PODS.plural].items() if found == pod), None)
    if body is None:
        return
    match step.kind:
        case "run":
            await side.say(pod, _running(body))
        case "restart":
            restarts = max((c["restartCount"] for c in side.said(pod)["containerStatuses"]), default=0)
            await side.say(pod, _running(body, restarts=restarts + 1))
        case "end":
            await side.say(pod, _ended(body, step.value))
        case "evict":
            await side.say(pod, {"phase": "Failed", "reason": "Evicted", "containerStatuses": None})
        case "delete":
            await side.delete(PODS, pod)
        case "vanish":
            await side.delete(PODS, pod, grace_seconds=0)
        case _:
            raise AssertionError(f"{step} is no step")


async def _outlive(side: Side, name: str, seconds: float) -> None:
    """Wait until the job is older than that."""
    started = ((side.job(name) or {}).get("status") or {}).get("startTime")
    if started is not None:
        start = datetime.fromisoformat(started)
        await asyncio.sleep(max(0.0, seconds + 0.2 - (datetime.now(start.tzinfo) - start).total_seconds()))


def _running(pod: Body, *, restarts: int = 0) -> Body:
    started = {"running": {"startedAt": pod["metadata"]["creationTimestamp"]}}
    return {"phase": "Running", "containerStatuses": _containers(pod, started, restarts)}


def _ended(pod: Body, code: int) -> Body:
    ended = {"terminated": {"exitCode": code}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": _containers(pod, ended, 0)}


def _containers(pod: Body, state: Body, restarts: int) -> list[Body]:
    return [
        {"name": c["name"], "image": c["image"], "imageID": "", "ready": "running" in state, "restartCount": restarts,
         "state": state}
        for c in pod["spec"]["containers"]
    ]  # fmt: skip


async def _end(buffer: Arena, name: str) -> None:
    """Delete the job, and end its pods as the kubelet would."""
    for side in buffer.sides:
        if (job := side.job(name)) is not None and job["metadata"]["name"] == name:
            await side.delete(JOBS, name)
    for side in buffer.sides:
        for pod in side.of_job(PODS, name):
            await side.delete(PODS, pod, grace_seconds=0)


def _summary(job: Body) -> str:
    """The job in one line."""
    spec = job["spec"]
    kinds = [
        f"{kind} {replicas.get('replicas', '?')} {replicas.get('restartPolicy', 'absent')}"
        for kind, replicas in spec["pytorchReplicaSpecs"].items()
        if kind in (MASTER, WORKER) or replicas
    ]
    elastic = " elastic" if "elasticPolicy" in spec else ""
    return f"{', '.join(kinds)}{elastic} {spec.get('runPolicy', '')}"
