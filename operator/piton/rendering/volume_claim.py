"""The PersistentVolumeClaim that holds a run's checkpoints."""

from typing import Any

from piton.api.spec import Meta, Spec
from piton.contract import names


def claim_name(meta: Meta, spec: Spec) -> str:
    """The claim that holds the checkpoints."""
    return spec.checkpoint.volume.claim_name or f"{meta.name}-checkpoints"


def how_to_go_on(meta: Meta, name: str) -> str:
    """Return what a new run has to be to go on from the checkpoints in this claim, which Piton has made."""
    return (
        f"a new run goes on from its checkpoints if it has the same name and namespace ({meta.name} in "
        f"{meta.namespace}) and the line spec.checkpoint.volume: {{claimName: {name}}}, with nothing else in it: no "
        "size, accessModes, storageClassName or reclaim. A run of another name has another folder there and begins anew"
    )


def volume_claim(meta: Meta, spec: Spec) -> dict[str, Any]:
    """The PersistentVolumeClaim for a run that brings none. Without an owner, so that nothing takes it along.

    See `core.cleanup` for when the run becomes its owner.
    """
    volume, name = spec.checkpoint.volume, claim_name(meta, spec)
    description = (
        f"Checkpoints of the {names.KIND} {meta.name}, which it may outlive "
        f"(spec.checkpoint.volume.reclaim): {how_to_go_on(meta, name)}."
    )
    claim: dict[str, Any] = {
        "accessModes": list(volume.access_modes) or ["ReadWriteOnce"],
        "resources": {"requests": {"storage": volume.size}},
    }
    if volume.storage_class_name:
        claim["storageClassName"] = volume.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": meta.namespace,
            "labels": {names.LABEL_RUN: meta.name},
            "annotations": {names.ANNOTATION_RUN_UID: meta.uid, names.ANNOTATION_DESCRIPTION: description},
        },
        "spec": claim,
    }
