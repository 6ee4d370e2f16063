"""A PyTorchJob as this controller sees it: parsed once, with the defaults of v1.9 filled in, in memory only.

The manifest is never written back, so that a client of the cluster sees what was applied, as with Kubeflow's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from piton.contract import names
from piton.engine.status import JobStatus

Body = dict[str, Any]

API_VERSION = "kubeflow.org/v1"
KIND = "PyTorchJob"
MASTER = "Master"
WORKER = "Worker"
KINDS = (MASTER, WORKER)
"""In the order in which they are looked at. Kubeflow's order is random, and its conditions flap with it."""
PORT_NAME = "pytorchjob-port"
PORT = 23456
MANAGED_BY = "kubeflow.org/training-operator"
"""Value of `managedBy` that means a training operator; a job with any other value belongs to another controller."""

LABEL_OPERATOR = "training.kubeflow.org/operator-name"
LABEL_JOB = "training.kubeflow.org/job-name"
LABEL_TYPE = "training.kubeflow.org/replica-type"
LABEL_INDEX = "training.kubeflow.org/replica-index"
LABEL_ROLE = "training.kubeflow.org/job-role"
OPERATOR = "pytorchjob-controller"


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """All replicas of one type."""

    kind: str
    count: int
    restart_policy: str
    template: Body

    @property
    def container(self) -> Mapping[str, Any]:
        """The trainer's container; empty when there is none."""
        containers = (self.template.get("spec") or {}).get("containers") or []
        return next((c for c in containers if c.get("name") == names.CONTAINER), {})

    @property
    def port(self) -> int:
        """Port on which the replica listens for the others."""
        ports = self.container.get("ports") or []
        return next((int(port["containerPort"]) for port in ports if port.get("name") == PORT_NAME), PORT)


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """torchrun's elastic rendezvous."""

    min_replicas: int
    max_replicas: int
    backend: str
    host: str | None
    port: int | None
    id: str | None
    conf: tuple[tuple[str, str], ...]
    standalone: bool
    max_restarts: int | None
    processes_per_node: int | None
    """Deprecated in v1.9 in favour of `nprocPerNode`."""
    metrics: bool
    """True if a HorizontalPodAutoscaler is asked for."""


@dataclass(frozen=True, kw_only=True)
class RunPolicy:
    """Limits of a job, and its clean-up after the end."""

    clean_pods: str
    suspend: bool
    backoff_limit: int | None
    deadline_seconds: int | None
    ttl_seconds: int | None
    managed_by: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One PyTorchJob."""

    name: str
    namespace: str
    uid: str
    run: str | None
    """The TrainingRun that it was made for; None: it is not Piton's."""
    deleting: bool
    replicas: tuple[Replicas, ...]
    strange_kinds: tuple[str, ...]
    """Replica types that no PyTorchJob has."""
    processes_per_node: str | None
    elastic: Elastic | None
    policy: RunPolicy
    status: JobStatus

    @classmethod
    def read(cls, manifest: Mapping[str, Any]) -> Self:
        """The job that the manifest describes.

        Raises:
            ValueError: a field has a type that the schema of the resource does not allow.
        """
        meta, spec = manifest["metadata"], manifest.get("spec") or {}
        replicas, strange = _read_replicas(spec.get("pytorchReplicaSpecs") or {})
        workers = next((r.count for r in replicas if r.kind == WORKER), 0)
        elastic = _read_elastic(spec.get("elasticPolicy"), workers)
        deprecated = elastic is not None and elastic.processes_per_node is not None
        return cls(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=meta["uid"],
            run=(meta.get("labels") or {}).get(names.LABEL_RUN),
            deleting=bool(meta.get("deletionTimestamp")),
            replicas=replicas,
            strange_kinds=strange,
            processes_per_node=spec.get("nprocPerNode") or (None if deprecated else "auto"),
            elastic=elastic,
            policy=_read_policy(spec.get("runPolicy") or {}),
            status=JobStatus.read(manifest.get("status") or {}),
        )

    @property
    def served(self) -> bool:
        """True if this controller acts on the job at all: Piton's own, meant for a training operator, not deleted."""
        return self.run is not None and self.policy.managed_by == MANAGED_BY and not self.deleting

    @property
    def total(self) -> int:
        """Replicas of all types."""
        return sum(replicas.count for replicas in self.replicas)

    @property
    def needs_services(self) -> bool:
        """True if replicas find each other by services.

        A single pod needs none: the kubelet writes its name, which is its host name, into its /etc/hosts. Not on the
        network of its node, nor under another host name.
        """
        specs = [replicas.template.get("spec") or {} for replicas in self.replicas]
        return self.total > 1 or any(spec.get("hostNetwork") or spec.get("hostname") for spec in specs)

    def of(self, kind: str) -> Replicas | None:
        """The replicas of that type, if the job has any."""
        return next((replicas for replicas in self.replicas if replicas.kind == kind), None)

    def replica_name(self, kind: str, index: int) -> str:
        """The name of a replica's pod, of its service, and so of its host."""
        return f"{self.name}-{kind.lower()}-{index}".replace("/", "-")

    def replica_names(self) -> dict[str, tuple[str, int]]:
        """The names of all replicas that the job wants, with their type and index."""
        return {self.replica_name(r.kind, i): (r.kind, i) for r in self.replicas for i in range(r.count)}

    def labels(self, kind: str | None = None, index: int | None = None) -> dict[str, str]:
        """Return the selector of the job's objects, those of one type, or those of one replica."""
        labels = {LABEL_OPERATOR: OPERATOR, LABEL_JOB: self.name}
        if kind is not None:
            labels[LABEL_TYPE] = kind.lower()
        if index is not None:
            labels[LABEL_INDEX] = str(index)
        return labels

    def selector(self, kind: str | None = None) -> str:
        """Return these labels as a selector text."""
        return ",".join(f"{key}={value}" for key, value in sorted(self.labels(kind).items()))

    def owner(self) -> Body:
        """The owner reference that makes an object the job's."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def owns(self, thing: Mapping[str, Any]) -> bool:
        """True if this very job, and not an earlier one of its name, is the object's controller."""
        owners = thing["metadata"].get("ownerReferences") or []
        return any(owner.get("controller") and owner.get("uid") == self.uid for owner in owners)


def _read_replicas(specs: Mapping[str, Any]) -> tuple[tuple[Replicas, ...], tuple[str, ...]]:
    """The replicas, Master first; types are spelt in any case."""
    spelt = {key.capitalize(): spec or {} for key, spec in specs.items()}
    replicas = tuple(
        Replicas(
            kind=kind,
            count=_number(spelt[kind], "replicas", default=1),
            restart_policy=spelt[kind].get("restartPolicy") or "OnFailure",
            template=_with_port(spelt[kind].get("template") or {}),
        )
        for kind in KINDS
        if kind in spelt
    )
    return replicas, tuple(sorted(spelt.keys() - set(KINDS)))


def _with_port(template: Mapping[str, Any]) -> Body:
    """The template with the port on which replicas find each other."""
    spec = template.get("spec") or {}
    containers = spec.get("containers") or []
    chosen = next((i for i, found in enumerate(containers) if found.get("name") == names.CONTAINER), 0)
    if not containers or any(port.get("name") == PORT_NAME for port in containers[chosen].get("ports") or ()):
        return dict(template)
    ports = [*(containers[chosen].get("ports") or ()), {"name": PORT_NAME, "containerPort": PORT}]
    changed = [{**found, "ports": ports} if i == chosen else found for i, found in enumerate(containers)]
    return {**template, "spec": {**spec, "containers": changed}}


def _read_elastic(spec: Mapping[str, Any] | None, workers: int) -> Elastic | None:
    if spec is None:
        return None
    least, most = _optional(spec, "minReplicas"), _optional(spec, "maxReplicas")
    given = [number for number in (least, most) if number is not None]
    return Elastic(
        min_replicas=least if least is not None else next(iter(given), workers),
        max_replicas=most if most is not None else next(iter(given), workers),
        backend=spec.get("rdzvBackend") or "c10d",
        host=spec.get("rdzvHost"),
        port=_optional(spec, "rdzvPort"),
        id=spec.get("rdzvId"),
        conf=tuple((str(pair.get("key", "")), str(pair.get("value", ""))) for pair in spec.get("rdzvConf") or ()),
        standalone=bool(spec.get("standalone")),
        max_restarts=_optional(spec, "maxRestarts"),
        processes_per_node=_optional(spec, "nProcPerNode"),
        metrics=bool(spec.get("metrics")),
    )


def _read_policy(spec: Mapping[str, Any]) -> RunPolicy:
    return RunPolicy(
        clean_pods=spec.get("cleanPodPolicy") or "None",
        suspend=bool(spec.get("suspend")),
        backoff_limit=_optional(spec, "backoffLimit"),
        deadline_seconds=_optional(spec, "activeDeadlineSeconds"),
        ttl_seconds=_optional(spec, "ttlSecondsAfterFinished"),
        managed_by=spec.get("managedBy") or MANAGED_BY,
    )


def _optional(spec: Mapping[str, Any], field: str) -> int | None:
    return None if spec.get(field) is None else int(spec[field])


def _number(spec: Mapping[str, Any], field: str, *, default: int) -> int:
    return default if spec.get(field) is None else int(spec[field])
