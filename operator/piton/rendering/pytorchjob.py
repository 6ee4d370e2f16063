"""The PyTorchJob of each attempt of a run, made from its AppDef.

Pure values; the kube adapter creates them, `piton plan` prints them.
"""

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from piton.api.spec import Meta, Spec, Stage, Tier
from piton.api.stages import ARCHITECTURE, OPERATING_SYSTEM, staged
from piton.contract import names
from piton.contract.quantity import parse_quantity
from piton.contract.termination import StopAfter
from piton.rendering.affinity import SPOT_TAINTS, TooDear, affinity, may_span_zones
from piton.rendering.appdef import ReportEndpoint, TrainerPlace, appdef, assignment, processes_per_node
from piton.rendering.security import Security, security_of
from piton.rendering.volume_claim import claim_name
from piton.timing import GRACE_SECONDS

if TYPE_CHECKING:
    from torchx import specs

TMP = "/tmp"  # noqa: S108 - a volume of the pod's own
"""Paths that the trainer image writes to, beside its volumes."""
_IMAGES_ARE_FOR = "amd64"
"""The architecture of nodes, where the user names none. Karpenter takes the cheapest machine that will do, and without
this that may be one of arm64, on which an image for amd64 never starts."""
TOLERATED_SECONDS = {"not-ready": 300, "unreachable": 3600}
"""Seconds that a pod tolerates a node in such a state. Piton itself deletes pods from a machine that is gone, and waits
for a zone that does not answer (`kube.outages`). The taint manager would delete the pods of all runs in the zone at
once, and they would stop as soon as the zone is back. An hour is for a cluster from which Piton was removed."""

TOKEN_SECONDS = 3600
"""Seconds for which a pod's token is valid; the kubelet renews it before."""


def in_pod(meta: Meta, server: ReportEndpoint | None = None, *, gpus: int = 0) -> TrainerPlace:
    """The place inside a pod, with that many GPUs. Runs that share a claim get a folder each."""
    env = {names.ENV_GPUS: str(gpus)} if gpus else {}
    if server is not None:
        env |= {
            names.ENV_SERVER_URL: server.run_url(meta),
            names.ENV_SERVER_CA_CERT: f"{names.PROGRESS_MOUNT}/{names.PROGRESS_CA_FILE}",
            names.ENV_SERVER_TOKEN: f"{names.PROGRESS_MOUNT}/{names.PROGRESS_TOKEN_FILE}",
        }
    return TrainerPlace(checkpoint_dir=f"{names.CHECKPOINT_MOUNT}/{meta.name}", env=env)


def pytorchjob(
    meta: Meta,
    spec: Spec,
    attempt: int,
    server: ReportEndpoint | None = None,
    *,
    stage: Stage = Stage.TRAIN,
    checkpoint_step: int | None = None,
    go_on_after: int | None = None,
    blocking_saves: bool = False,
    stop_after: StopAfter | None = None,
    active_deadline_seconds: int | None = None,
    avoid: Collection[TooDear] = (),
    avoid_zones: Collection[str] = (),
    zones_are_named: bool = False,
) -> dict[str, Any]:
    """The PyTorchJob of one attempt: used once, never retried by its own controller.

    Without a `server` the trainers report nothing until they end. Only training has metrics to scrape. `avoid` is
    what costs more than the user pays, `avoid_zones` where earlier attempts lost their machines and saved nothing.
    Where the nodes say which zone they are in (`zones_are_named`), several pods have to be in one.
    """
    app = appdef(
        meta,
        spec,
        attempt,
        in_pod(meta, server, gpus=staged(spec, stage).workers.gpus_per_node),
        stage=stage,
        checkpoint_step=checkpoint_step,
        go_on_after=go_on_after,
        blocking_saves=blocking_saves,
        stop_after=stop_after,
    )
    security = security_of(spec)  # of the run as a whole: its stages share the image
    spec = staged(spec, stage)
    role = app.roles[0]
    wanted = affinity(spec, avoid, avoid_zones, _all_pods(meta, spec, attempt) if zones_are_named else None)
    last_resort = {} if active_deadline_seconds is None else {"activeDeadlineSeconds": active_deadline_seconds}
    replica = {
        "restartPolicy": "Never",
        "template": {
            "metadata": {
                "labels": {**app.metadata, **_group(spec)},
                "annotations": _annotations(spec, server),
            },
            "spec": _secured(_pod(meta, spec, role, server, wanted), security) | last_resort,
        },
    }
    replicas = {"Master": {"replicas": 1, **(_scraped(replica) if stage is Stage.TRAIN else replica)}}
    if role.num_replicas > 1:
        replicas["Worker"] = {"replicas": role.num_replicas - 1, **replica}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {
            "name": app.name,
            "namespace": meta.namespace,
            "labels": dict(app.metadata),
            "annotations": {names.ANNOTATION_RUN_UID: meta.uid},  # it is found by that where its owner was removed
            "ownerReferences": [owner(meta)],
        },
        "spec": {
            "nprocPerNode": str(processes_per_node(spec)),
            "runPolicy": {"cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": replicas,
        },
    }


def _scraped(replica: Mapping[str, Any]) -> dict[str, Any]:
    """The replica that rank 0 is in: it serves metrics, and says so in both ways that Prometheus is set up for."""
    scraped = deepcopy(dict(replica))
    template = scraped["template"]
    template["metadata"]["annotations"] |= {
        names.ANNOTATION_SCRAPE: "true",
        names.ANNOTATION_SCRAPE_PORT: str(names.METRICS_PORT),
    }
    (container,) = template["spec"]["containers"]
    container["env"].append({"name": names.ENV_METRICS_PORT, "value": str(names.METRICS_PORT)})
    container["ports"] = [{"name": names.METRICS_PORT_NAME, "containerPort": names.METRICS_PORT}]
    return scraped


def owner(meta: Meta, kind: str = names.KIND) -> dict[str, Any]:
    """The owner reference that makes an object the run's, or the sweep's."""
    return {
        "apiVersion": f"{names.API_GROUP}/{names.API_VERSION}",
        "kind": kind,
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _group(spec: Spec) -> dict[str, str]:
    placement = spec.workers.template.placement
    return {names.LABEL_GROUP: placement.group} if placement else {}


def node_selector(spec: Spec) -> dict[str, str]:
    """The labels that a node has to have."""
    return {ARCHITECTURE: _IMAGES_ARE_FOR, OPERATING_SYSTEM: "linux", **spec.workers.template.node_selector}


def _all_pods(meta: Meta, spec: Spec, attempt: int) -> dict[str, str] | None:
    """The labels of this attempt's pods, and of no others; None for a pod that has no peers to be in a zone with."""
    own = {names.LABEL_RUN: meta.name, names.LABEL_ATTEMPT: str(attempt)}
    return own if may_span_zones(spec) else None


def _annotations(spec: Spec, server: ReportEndpoint | None) -> dict[str, str]:
    """Nobody may empty a machine under an attempt to save money. From one that goes, Piton itself stops the attempt."""
    found = {
        names.ANNOTATION_CONFIG: assignment(spec).to_json(),
        names.ANNOTATION_DO_NOT_DISRUPT: "true",
        names.ANNOTATION_SAFE_TO_EVICT: "false",
    }
    return found if server is None else {**found, names.ANNOTATION_CA: server.ca_pem}


def _pod(
    meta: Meta,
    spec: Spec,
    role: "specs.Role",
    server: ReportEndpoint | None,
    wanted: Mapping[str, Any],
) -> dict[str, Any]:
    template = spec.workers.template
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service named piton-metrics would set PITON_METRICS_PORT
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [_container(spec, role)],
        "nodeSelector": node_selector(spec),
        "tolerations": tolerations(spec),
        "volumes": _volumes(meta, spec),
    }
    if server is not None:
        pod["volumes"].append(_progress_volume())
        mount = {"name": "progress", "mountPath": names.PROGRESS_MOUNT, "readOnly": True}
        pod["containers"][0]["volumeMounts"].append(mount)
    if wanted:
        pod["affinity"] = dict(wanted)
    if template.service_account_name:
        pod["serviceAccountName"] = template.service_account_name
    return pod


def _secured(pod: dict[str, Any], security: Security) -> dict[str, Any]:
    """The pod with its rights. What a container can have is the container's: Kubeflow adds one that needs others."""
    pod["securityContext"] = dict(security.pod)
    (container,) = pod["containers"]
    if security.container:
        container["securityContext"] = dict(security.container)
    if security.needs_tmp:
        container["volumeMounts"].append({"name": "tmp", "mountPath": TMP})
        pod["volumes"].append({"name": "tmp", "emptyDir": {}})
    return pod


def _container(spec: Spec, role: "specs.Role") -> dict[str, Any]:
    env: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(role.env.items())]
    env += [
        {"name": v.name, "valueFrom": v.value_from.model_dump(by_alias=True, exclude_none=True)}
        for v in spec.trainer.env
        if v.value_from
    ]
    return {
        "name": names.CONTAINER,
        "image": role.image,
        "command": [role.entrypoint, *role.args],
        "env": env,
        "resources": _container_resources(spec, role.resource),
        "terminationMessagePath": names.DEFAULT_TERMINATION_LOG,
        "volumeMounts": [
            {"name": "checkpoints", "mountPath": names.CHECKPOINT_MOUNT},
            {"name": "config", "mountPath": names.CONFIG_MOUNT, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - where NCCL and data loaders expect it
        ],
    }


def _container_resources(spec: Spec, resource: "specs.Resource") -> dict[str, dict[str, str]]:
    """GPUs and other devices as limits; CPU and memory as requests; the user's own words win."""
    wanted = spec.workers.template.resources
    requests: dict[str, str] = {}
    if resource.cpu > 0:
        requests["cpu"] = str(resource.cpu)
    if resource.memMB > 0:
        requests["memory"] = f"{resource.memMB}Mi"
    devices = {name: str(count) for name, count in resource.devices.items()}
    if resource.gpu:
        devices[names.GPU] = str(resource.gpu)
    limits = {**devices, **wanted.limits}
    found = {
        "requests": {
            **_within(requests, wanted.limits),
            **{name: limits[name] for name in devices},  # the API server takes a device only if both are the same
            **wanted.requests,
        },
        "limits": limits,
    }
    return {part: values for part, values in found.items() if values}


def _within(requests: Mapping[str, str], limits: Mapping[str, str]) -> dict[str, str]:
    """Return the requests that follow from the instance types; the API server takes none above the user's limit."""
    above = {k for k in requests if k in limits and parse_quantity(requests[k]) > parse_quantity(limits[k])}
    return {name: limits[name] if name in above else amount for name, amount in requests.items()}


def tolerations(spec: Spec) -> list[dict[str, Any]]:
    """The user's; the GPU taint where GPUs are asked for; and the patience with nodes that do not answer."""
    own = [t.model_dump(by_alias=True, exclude_none=True) for t in spec.workers.template.tolerations]
    if spec.workers.gpus_per_node:
        own.append({"key": names.GPU, "operator": "Exists", "effect": "NoSchedule"})
    if Tier.SPOT in spec.capacity.tiers:
        own += [{"key": key, "value": value, "effect": "NoSchedule"} for key, value in SPOT_TAINTS.items()]
    return own + [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }
        for state, seconds in TOLERATED_SECONDS.items()
    ]


def _volumes(meta: Meta, spec: Spec) -> list[dict[str, Any]]:
    return [
        {"name": "checkpoints", "persistentVolumeClaim": {"claimName": claim_name(meta, spec)}},
        {"name": "config", "downwardAPI": {"items": [_from_annotation(names.ANNOTATION_CONFIG, names.CONFIG_FILE)]}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]


def _progress_volume() -> dict[str, Any]:
    """Return the volume for reports: the authority to trust, and a token that the API server itself does not accept."""
    token = {
        "audience": names.TOKEN_AUDIENCE,
        "expirationSeconds": TOKEN_SECONDS,
        "path": names.PROGRESS_TOKEN_FILE,
    }
    authority = {"items": [_from_annotation(names.ANNOTATION_CA, names.PROGRESS_CA_FILE)]}
    return {
        "name": "progress",
        "projected": {"sources": [{"serviceAccountToken": token}, {"downwardAPI": authority}]},
    }


def _from_annotation(annotation: str, path: str) -> dict[str, Any]:
    return {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
