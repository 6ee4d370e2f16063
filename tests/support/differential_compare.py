"""What both controllers have made of one job, in a form that can be compared, and the rules by which it may differ."""

import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum, auto
from operator import itemgetter
from typing import Any

from piton.contract import names
from piton.engine.job import WORKER
from piton.kube.resources import PODS, SERVICES
from support.differential_jobs import Step
from support.differential_sides import Side

Body = dict[str, Any]

_INIT = "init-pytorch"
"""The init container that Kubeflow gives to workers beside a Master."""


def view(side: Side, job: str) -> Body:
    """Everything of the job that a user sees, without times, uids and versions."""
    found = side.job(job)
    return {
        "job": _job(found, side.namespace) if found is not None else None,
        "pods": {name: _pod(side, name, pod) for name, pod in side.of_job(PODS, job).items()},
        "services": {name: _service(side, name, service) for name, service in side.of_job(SERVICES, job).items()},
    }


def _job(job: Body, namespace: str) -> Body:
    status = job.get("status") or {}
    conditions = [
        {**{k: c[k] for k in ("type", "status", "reason")}, "message": c["message"].replace(namespace, "NAMESPACE")}
        for c in status.get("conditions") or ()
    ]
    return {
        "conditions": conditions,
        "replicaStatuses": status.get("replicaStatuses") or {},
        "started": "startTime" in status,
        "completed": "completionTime" in status,
        "spec": job["spec"],
    }


def _pod(side: Side, name: str, pod: Body) -> Body:
    return {
        **_meta(pod),
        "phase": pod["status"].get("phase"),
        "deleting": "deletionTimestamp" in pod["metadata"],
        "lives": side.lives(PODS, name),
        "spec": deepcopy(pod["spec"]),
    }


def _service(side: Side, name: str, service: Body) -> Body:
    return {**_meta(service), "lives": side.lives(SERVICES, name), "spec": deepcopy(service["spec"])}


def _meta(thing: Body) -> Body:
    meta = thing["metadata"]
    owners = [{k: v for k, v in owner.items() if k != "uid"} for owner in meta.get("ownerReferences") or ()]
    return {
        "labels": dict(meta.get("labels") or {}),
        "annotations": dict(meta.get("annotations") or {}),
        "finalizers": list(meta.get("finalizers") or ()),
        "owners": owners,
    }


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a rule may look at and bend: both views, and what has happened last."""

    theirs: Body
    ours: Body
    created: Body
    """The job as it was created."""
    steps: Sequence[Step]
    """All that has happened to the job since it was created."""

    @property
    def step(self) -> Step | None:
        """What has happened last; None: the job was created."""
        return self.steps[-1] if self.steps else None

    def totals(self) -> list[int]:
        """How many replicas the job has asked for: when it was created, and after each change of its size."""
        counts = {kind: found.get("replicas", 1) for kind, found in self.created["spec"]["pytorchReplicaSpecs"].items()}
        found = [sum(counts.values())]
        for step in self.steps:
            if step.kind == "scale":
                counts[WORKER] = step.value
                found.append(sum(counts.values()))
        return found

    def workers(self) -> list[int]:
        """How many workers the job has asked for: when it was created, and after each change of its size."""
        first = self.created["spec"]["pytorchReplicaSpecs"].get(WORKER, {}).get("replicas", 1)
        return [first, *(step.value for step in self.steps if step.kind == "scale")]

    def vanished(self) -> set[str]:
        """The replicas that were taken away in one go and have not run since."""
        found: set[str] = set()
        for step in self.steps:
            if step.kind == "run all":
                found = set()
            elif step.kind == "vanish":
                found |= {str(step.replica)}
            elif step.kind == "run":
                found -= {str(step.replica)}
        return found

    def policy(self) -> str | None:
        """The restart policy of the replica that the step was about; None when it was about none."""
        job = self.ours["job"] or self.theirs["job"]
        if self.step is None or self.step.replica is None or job is None:
            return None
        kind = self.step.replica.rpartition("-")[0].rpartition("-")[2]
        replicas = job["spec"]["pytorchReplicaSpecs"]
        return next((r.get("restartPolicy", "OnFailure") for k, r in replicas.items() if k.lower() == kind), None)


class Outcome(Enum):
    """What follows from a rule that applies."""

    ALIKE = auto()
    """Nothing: it has taken the difference out of both views."""
    TOUCH = auto()
    """Kubeflow's job is to be touched, and both are compared again."""
    ENDS = auto()
    """From here on the two histories differ; nothing more is compared."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One way in which the two may differ. docs/pytorchjob-conformance.md lists the same names, with the reasons."""

    name: str
    outcome: Outcome
    applies: Callable[[Scene], bool]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison has found."""

    differences: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    """The exceptions that applied."""

    def follows(self, outcome: Outcome) -> bool:
        """Whether a rule says so."""
        return any(rule.outcome is outcome for rule in self.rules)


def compare(kubeflow: Side, piton: Side, created: Body, steps: Sequence[Step]) -> Verdict:
    """What differs of a job that was created so, but for the exceptions."""
    job = created["metadata"]["name"]
    scene = Scene(theirs=view(kubeflow, job), ours=view(piton, job), created=created, steps=steps)
    applied = []
    for rule in RULES:
        before = list(_differences("", scene.theirs, scene.ours))
        if not before:
            break
        if rule.applies(scene):
            bent = list(_differences("", scene.theirs, scene.ours)) != before
            applied.extend([rule] if bent or rule.outcome is not Outcome.ALIKE else [])
            if rule.outcome is Outcome.ENDS:
                return Verdict(differences=tuple(_kept_longer(scene)), rules=tuple(applied))
    return Verdict(differences=tuple(_differences("", scene.theirs, scene.ours)), rules=tuple(applied))


def _kept_longer(scene: Scene) -> Iterator[str]:
    """The pods that ours keeps and Kubeflow does not: no rule excuses those."""
    kept = [
        {name for name, pod in side["pods"].items() if pod["phase"] in ("Pending", "Running") and not pod["deleting"]}
        for side in (scene.theirs, scene.ours)
    ]
    yield from (f".pods.{name}: kept by Piton alone" for name in sorted(kept[1] - kept[0]))


# --- rules: each takes its difference, and no other, out of both views ------------------------------------------------


def _label(scene: Scene) -> bool:
    for thing in (*scene.ours["pods"].values(), *scene.ours["services"].values()):
        thing["labels"].pop(names.LABEL_RUN, None)
    return True


def _init_container(scene: Scene) -> bool:
    found = False
    for pod in scene.theirs["pods"].values():
        rest = [c for c in pod["spec"].get("initContainers", ()) if c["name"] != _INIT]
        found |= len(rest) < len(pod["spec"].pop("initContainers", ()))
        pod["spec"] |= {"initContainers": rest} if rest else {}
    return found


def _port_order(scene: Scene) -> bool:
    for side in (scene.theirs, scene.ours):
        for service in side["services"].values():
            service["spec"]["ports"].sort(key=itemgetter("port"))
    return True


def _single_replica(scene: Scene) -> bool:
    """Kubeflow's service of a job's only replica. One that ours has kept from the time before must be the same.

    A job that has ended keeps the services that it had then, also when it is asked for more replicas afterwards. One
    that is suspended and resumed has its services made again, and those of a single replica only by Kubeflow.
    """
    totals = scene.totals()
    if 1 not in totals:
        return False
    theirs, ours = scene.theirs["services"], scene.ours["services"]
    extra = theirs.keys() - ours.keys()
    if totals[-1] != 1:
        extra = {name for name in extra if name.endswith("-0") and _finished(scene.ours)}
    for name in extra:
        del theirs[name]
    for name in theirs.keys() & ours.keys():
        if name.endswith("-0"):
            ours[name]["lives"] = max(theirs[name]["lives"], ours[name]["lives"])
    return True


def _order_of_types(scene: Scene) -> bool:
    jobs = [job for job in (scene.theirs["job"], scene.ours["job"]) if job is not None]
    if len(jobs) < 2:
        return False
    for job in jobs:
        _forget_selectors(job)
    if _finished(scene.theirs) and _finished(scene.ours):
        disturbed = any(step.kind in ("delete", "vanish") for step in scene.steps)
    else:
        pods = scene.theirs["pods"].values()
        leaving = any(pod["deleting"] and pod["phase"] in ("Running", "Failed") for pod in pods)
        # What was said of a disturbance stays until the job runs again, on both sides.
        run_again = all(_said(job, "is running.") for job in jobs)
        left = not run_again and any(step.kind in ("delete", "vanish") for step in scene.steps)
        disturbed = leaving or left or bool(scene.vanished())
    for job in jobs if disturbed else ():
        job["conditions"] = [c for c in job["conditions"] if c["type"] not in ("Running", "Restarting")]
    return True


def _forget_selectors(job: Body) -> None:
    """Kubeflow leaves them out for types that it would have judged after a Master that has succeeded."""
    if any(c["type"] == "Succeeded" for c in job["conditions"]) and "Master" in job["replicaStatuses"]:
        for tally in job["replicaStatuses"].values():
            tally.pop("selector", None)


def _completion(scene: Scene) -> bool:
    theirs, ours = scene.theirs["job"], scene.ours["job"]
    if not (_said(theirs, "is failing because") and _said(ours, "is failing because")):
        return False
    if (theirs["completed"], ours["completed"]) != (False, True):
        return False
    ours["completed"] = False
    return True


def _never_old(scene: Scene) -> bool:
    theirs = scene.theirs["job"]
    return scene.ours["job"] is None and _said(theirs, "is failing because") and not theirs["completed"]


def _deadline(scene: Scene) -> bool:
    ended = scene.ours["job"] is None or _said(scene.ours["job"], "active longer than specified deadline")
    spec = (scene.theirs["job"] or {}).get("spec", {})
    limited = "activeDeadlineSeconds" in spec.get("runPolicy", {})
    return ended and limited and not _finished(scene.theirs)


def _gone_with_never(scene: Scene) -> bool:
    step = scene.step
    left = step is not None and (step.kind in ("vanish", "delete") or (step.kind, step.value) == ("end", 0))
    failed = scene.ours["job"] is None or _said(scene.ours["job"], "is failed because")
    had_succeeded = step is not None and step.replica not in scene.ours["pods"]  # and nobody needs it again
    return left and scene.policy() == "Never" and (failed or had_succeeded)


def _superfluous(scene: Scene) -> bool:
    theirs, ours = scene.theirs["pods"], scene.ours["pods"]
    extra = [name for name, pod in theirs.items() if pod["phase"] == "Pending" and name not in ours]
    if scene.ours["job"] is not None and not _finished(scene.ours):
        extra = [name for name in extra if name in _unwanted(scene)]
    for name in extra:
        del theirs[name]
    return bool(extra) | _made_again(scene)


def _made_again(scene: Scene) -> bool:
    """A pod past the last index that Kubeflow has made and deleted still leaves when the job gets larger again."""
    theirs, ours = scene.theirs, scene.ours
    fewest = min(scene.workers())
    leaving = [
        name
        for name, pod in theirs["pods"].items()
        if (pod["phase"], pod["deleting"]) == ("Pending", True) and name in ours["pods"]
        if not ours["pods"][name]["deleting"] and "-worker-" in name and int(name.rpartition("-")[2]) >= fewest
    ]
    for name in leaving:
        del theirs["pods"][name], ours["pods"][name]
        theirs["services"].pop(name, None)
        ours["services"].pop(name, None)
    return bool(leaving)


def _unwanted(scene: Scene) -> set[str]:
    """The names past the last index that there may have been before the job was made smaller."""
    workers = scene.ours["job"]["spec"]["pytorchReplicaSpecs"].get("Worker", {}).get("replicas", 1)
    return {name for name in scene.theirs["pods"] if "-worker-" in name and int(name.rpartition("-")[2]) >= workers}


def _resumption(scene: Scene) -> bool:
    resumed = scene.step is not None and (scene.step.kind, scene.step.value) == ("suspend", False)
    leaving = any(pod["deleting"] for pod in scene.ours["pods"].values())
    return resumed and leaving and _said(scene.ours["job"], "is suspended")


ADMISSION = "admission"
"""The one exception that is met before there is anything to compare."""
RULES = (
    Rule(name="label", outcome=Outcome.ALIKE, applies=_label),
    Rule(name="init container", outcome=Outcome.ALIKE, applies=_init_container),
    Rule(name="order of ports", outcome=Outcome.ALIKE, applies=_port_order),
    Rule(name="single replica", outcome=Outcome.ALIKE, applies=_single_replica),
    Rule(name="order of types", outcome=Outcome.ALIKE, applies=_order_of_types),
    Rule(name="completionTime after an exit code", outcome=Outcome.ALIKE, applies=_completion),
    Rule(name="completionTime after an exit code", outcome=Outcome.ENDS, applies=_never_old),
    Rule(name="superfluous pods", outcome=Outcome.ALIKE, applies=_superfluous),
    Rule(name="deadline", outcome=Outcome.TOUCH, applies=_deadline),
    Rule(name="gone with Never", outcome=Outcome.ENDS, applies=_gone_with_never),
    Rule(name="resumption waits", outcome=Outcome.ENDS, applies=_resumption),
)


def _said(job: Body | None, words: str) -> bool:
    return job is not None and any(words in c["message"] and c["status"] == "True" for c in job["conditions"])


def _finished(view: Body) -> bool:
    conditions = (view["job"] or {}).get("conditions", ())
    return any(c["type"] in ("Succeeded", "Failed") and c["status"] == "True" for c in conditions)


def _differences(path: str, theirs: Any, ours: Any) -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            yield from _differences(f"{path}.{key}", theirs.get(key), ours.get(key))
    elif theirs != ours:
        yield f"{path}: Kubeflow {_short(theirs)}, Piton {_short(ours)}"


def _short(value: Any) -> str:
    if isinstance(value, list) and value and "message" in value[0]:
        return " | ".join(f"{c['type']}={c['status']} {c['message']}" for c in value)
    return json.dumps(value, sort_keys=True)[:260]
