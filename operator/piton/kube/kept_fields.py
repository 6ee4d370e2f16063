"""The fields of each kind of object that the operator reads. The others are not kept in memory.

A change of any other field is no change: a node's heartbeat, for one. Each function leaves what it is given as it is;
the metadata that it returns are its own.
"""

from collections.abc import Mapping
from typing import Any

from piton.kube.resources import Body

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
LIMIT_RANGER = "kubernetes.io/limit-ranger"
"""Annotation with which the API server says what a LimitRange has set in a pod."""
_POD_METADATA = (
    "name",
    "namespace",
    "uid",
    "labels",
    "ownerReferences",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
)
_POD_SPEC = ("nodeName", "tolerations", "resources", "activeDeadlineSeconds", "terminationGracePeriodSeconds")
_POD_STATUS = ("phase", "reason", "message", "startTime", "conditions", "initContainerStatuses", "containerStatuses")
_CONTAINER_STATUS = ("name", "state", "lastState", "restartCount", "started")
_CONDITION = ("type", "status", "reason", "message", "lastTransitionTime")
_NODE_METADATA = ("name", "uid", "labels", "annotations", "creationTimestamp", "deletionTimestamp")
_EVENT = (
    "apiVersion",
    "type",
    "reason",
    "message",
    "reportingComponent",
    "reportingInstance",
    "firstTimestamp",
    "eventTime",
    "lastTimestamp",
)


def of_own(body: Body) -> Body:
    """Keep all that a run, a sweep, a job, a claim or a Workload says, but who has written which field of it."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    annotations = metadata.get("annotations") or {}
    if _LAST_APPLIED in annotations:
        metadata["annotations"] = {key: value for key, value in annotations.items() if key != _LAST_APPLIED}
    return {**body, "metadata": metadata}


def of_service(body: Body) -> Body:
    """Keep the name and the owner of a service."""
    return {"metadata": _only(body["metadata"], _POD_METADATA)}


def of_pod(body: Body) -> Body:
    """Keep what says where a pod is, how it fares, what it requests and runs, and which claims it mounts."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    kept_spec = _only(spec, _POD_SPEC)
    kept_spec["containers"] = [_of_container(each) for each in spec.get("containers") or ()]
    inits = [_only(each, ("name", "restartPolicy")) for each in spec.get("initContainers") or ()]
    kept_spec |= {"initContainers": inits} if inits else {}
    field = "persistentVolumeClaim"
    claims = [_only(each, (field,)) for each in spec.get("volumes") or () if field in each]
    kept_spec |= {"volumes": claims} if claims else {}
    kept_status = _only(status, _POD_STATUS)
    kept_status |= _conditions(status)
    for field in ("initContainerStatuses", "containerStatuses"):
        if status.get(field):
            kept_status[field] = [_only(each, _CONTAINER_STATUS) for each in status[field]]
    metadata = _only(body["metadata"], _POD_METADATA)
    told = _only(body["metadata"].get("annotations") or {}, (LIMIT_RANGER,))
    metadata |= {"annotations": told} if told else {}
    return {"metadata": metadata, "spec": kept_spec, "status": kept_status}


def _of_container(container: Body) -> Body:
    """Keep the program of the command, since its arguments may be long, and which volumes the container mounts."""
    kept = _only(container, ("name", "resources"))
    if "volumeMounts" in container:
        kept["volumeMounts"] = [_only(each, ("name",)) for each in container["volumeMounts"]]
    command = container.get("command")
    return kept | {"command": command[:1]} if command else kept


def of_node(body: Body) -> Body:
    """Keep labels, price, taints, conditions and capacity of a node. The time of its heartbeat is not kept."""
    status = body.get("status") or {}
    metadata = _only(body["metadata"], _NODE_METADATA)
    metadata["annotations"] = {
        key: value for key, value in (metadata.get("annotations") or {}).items() if key.startswith("piton.dev/")
    }
    kept_status = _only(status, ("capacity", "allocatable")) | _conditions(status)
    return {
        "metadata": metadata,
        "spec": _only(body.get("spec") or {}, ("taints", "unschedulable")),
        "status": kept_status,
    }


def of_quota(body: Body) -> Body:
    """Keep how much a ResourceQuota allows in its namespace, and how much of that is used."""
    metadata = _only(body["metadata"], ("name", "namespace", "uid"))
    return {"metadata": metadata, "status": _only(body.get("status") or {}, ("hard", "used"))}


def of_event(body: Body) -> Body:
    """Keep what an Event says, of which object, and when. How often it was repeated is not kept."""
    kept = _only(body, _EVENT)
    kept["metadata"] = _only(body["metadata"], ("name", "namespace", "uid", "creationTimestamp"))
    kept["involvedObject"] = _only(body.get("involvedObject") or {}, ("kind", "name", "namespace", "uid", "fieldPath"))
    kept["source"] = _only(body.get("source") or {}, ("component", "host"))
    kept["series"] = _only(body.get("series") or {}, ("lastObservedTime",))
    return kept


def _only(body: Mapping[str, Any], fields: tuple[str, ...]) -> Body:
    return {field: body[field] for field in fields if field in body}


def _conditions(status: Mapping[str, Any]) -> Body:
    found = status.get("conditions") or ()
    return {"conditions": [_only(each, _CONDITION) for each in found]} if found else {}
