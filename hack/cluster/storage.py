"""Volumes that are folders of this machine, by three storage classes. What a claim gets is decided purely.

`shared` is a file system that every node mounts (RWX). `zonal` behaves like EBS: RWO, made in the zone of the first
node that needs it, and of no use elsewhere. `bounded` is shared, and full when its size is reached.
"""

from collections.abc import Callable
from typing import Any

from hack.cluster import api, folders
from hack.cluster.layout import VOLUMES

Object = dict[str, Any]
SHARED = "shared"
ZONAL = "zonal"
BOUNDED = "bounded"
_PROVISIONER = "box.local/folders"
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
_SELECTED_NODE = "volume.kubernetes.io/selected-node"
_ZONE = "topology.kubernetes.io/zone"
_ALL_MODES = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"]
_MODES = {SHARED: _ALL_MODES, BOUNDED: _ALL_MODES, ZONAL: ["ReadWriteOnce"]}


def create_classes() -> None:
    """Make the storage classes; `shared` is the default."""
    for name in _MODES:
        default = str(name == SHARED).lower()
        api.create(
            "/apis/storage.k8s.io/v1/storageclasses",
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
                "provisioner": _PROVISIONER,
                "volumeBindingMode": "WaitForFirstConsumer" if name == ZONAL else "Immediate",
                "reclaimPolicy": "Delete",
            },
        )


def provision(claims: list[Object]) -> None:
    """Make the volumes that claims wait for."""
    for claim in claims:
        if volume := volume_for(claim, zone_of):
            bounded = volume["spec"]["storageClassName"] == BOUNDED
            size = folders.size_in_bytes(volume["spec"]["capacity"]["storage"]) if bounded else None
            folders.make(volume["metadata"]["name"], size_bytes=size)
            api.create("/api/v1/persistentvolumes", volume)


def reclaim(volumes: list[Object]) -> None:
    """Delete the volumes whose claims are gone."""
    for volume in volumes:
        if is_released(volume):
            name = volume["metadata"]["name"]
            folders.remove(name)
            api.delete(f"/api/v1/persistentvolumes/{name}")


def is_released(volume: Object) -> bool:
    """Whether it is ours and nobody's any more."""
    ours = (volume["metadata"].get("annotations") or {}).get(_PROVISIONED_BY) == _PROVISIONER
    delete = volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
    return ours and delete and (volume.get("status") or {}).get("phase") == "Released"


def zone_of(node: str) -> str:
    """Where a node is, as its label says."""
    labels: dict[str, str] = api.call("GET", f"/api/v1/nodes/{node}")["metadata"]["labels"]
    return labels[_ZONE]


def volume_for(claim: Object, zone_of: Callable[[str], str]) -> Object | None:
    """The volume that the claim waits for; None if it has one, or is not ours, or its pod has no node yet."""
    metadata, spec = claim["metadata"], claim["spec"]
    kind = spec.get("storageClassName")
    node = (metadata.get("annotations") or {}).get(_SELECTED_NODE, "")
    if kind not in _MODES or spec.get("volumeName") or metadata.get("deletionTimestamp"):
        return None
    if not set(spec.get("accessModes", [])) <= set(_MODES[kind]) or (kind == ZONAL and not node):
        return None
    name = f"pvc-{metadata['uid']}"
    volume: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {_PROVISIONED_BY: _PROVISIONER}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": kind,
            "hostPath": {"path": str(VOLUMES / name), "type": "Directory"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }
    if kind == ZONAL:
        zone = {"key": _ZONE, "operator": "In", "values": [zone_of(node)]}
        volume["spec"]["nodeAffinity"] = {"required": {"nodeSelectorTerms": [{"matchExpressions": [zone]}]}}
    return volume
