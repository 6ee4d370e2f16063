"""Owners of objects, creation of an object that may exist already, and the claim of a run with its owners."""

from collections.abc import Mapping
from typing import Any

from piton.api.spec import Meta, Spec
from piton.contract import names
from piton.kube.client import Client
from piton.kube.errors import AlreadyExists
from piton.kube.nodes import moment
from piton.kube.resources import Body, Resource
from piton.observed import VolumeSeen
from piton.ports import Conflict, Refused

_FOR_ONE_NODE = frozenset({"ReadWriteOnce", "ReadWriteOncePod"})
"""Access modes of a claim that may be mounted by one node or pod at a time. One of several modes is not told."""


def controller(thing: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The owner reference of the object's controller."""
    owners = thing["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def owned(thing: Mapping[str, Any], meta: Meta) -> bool:
    """True if this very run or sweep, and not an earlier one of its name, is the object's controller."""
    owner = controller(thing)
    return owner is not None and bool(meta.uid) and owner.get("uid") == meta.uid


def made_for(thing: Mapping[str, Any], meta: Meta) -> bool:
    """True if the claim or the job was made for this very run.

    A claim has no owner while the run lives, and neither has a job any more whose run is deleted with cascade=orphan.
    """
    found = (thing["metadata"].get("annotations") or {}).get(names.ANNOTATION_RUN_UID)
    return owned(thing, meta) or (bool(meta.uid) and found == meta.uid and controller(thing) is None)


def made_for_earlier(claim: Mapping[str, Any], meta: Meta) -> bool:
    """True if the claim was made for a run of the same name that is gone."""
    metadata = claim["metadata"]
    found = (metadata.get("annotations") or {}).get(names.ANNOTATION_RUN_UID)
    return bool(found) and (metadata.get("labels") or {}).get(names.LABEL_RUN) == meta.name and found != meta.uid


def attempt_of(thing: Mapping[str, Any]) -> int | None:
    """Return the number of the attempt that the label of a job or pod names; None without such a label."""
    digits = str((thing["metadata"].get("labels") or {}).get(names.LABEL_ATTEMPT, ""))
    return int(digits) if digits.isascii() and digits.isdigit() and int(digits) > 0 else None


def belongs_to_attempt(pod: Mapping[str, Any], meta: Meta, number: int, job: Mapping[str, Any] | None) -> bool:
    """Return True if the pod is of this attempt: by its owner's uid where the job exists, else by name and age.

    Without the job its uid is not known; but a pod that is older than the run is of an earlier run of the same name. An
    orphan, whose owner reference was removed, still runs and still counts.
    """
    owner = controller(pod)
    if job is not None:
        return owner is not None and owner.get("uid") == job["metadata"]["uid"]
    attempt = names.attempt_name(meta.name, number)
    born = moment(pod["metadata"].get("creationTimestamp"))
    if born is not None and born < meta.created:
        return False
    if owner is None:
        return str(pod["metadata"]["name"]).startswith(f"{attempt}-")
    return owner.get("kind") == "PyTorchJob" and owner.get("name") == attempt


async def create(client: Client, resource: Resource, body: Body, meta: Meta, *, owner: str) -> None:
    """Create it; what is there already is success only if it is the owner's (a run, a sweep), and what was meant.

    Raises:
        Conflict: it was there a moment ago.
        Refused: somebody else's object has the name.
    """
    try:
        await client.create(resource, body)
    except AlreadyExists:
        await _recognise(client, resource, body, meta, owner)


async def _recognise(client: Client, resource: Resource, body: Body, meta: Meta, owner: str) -> None:
    name = body["metadata"]["name"]
    found = await client.get(resource, name, namespace=meta.namespace)
    if found is None:
        raise Conflict(f"{resource.plural} {name!r} was there and is gone again")
    labels = found["metadata"].get("labels") or {}
    if not made_for(found, meta) or body["metadata"]["labels"].items() - labels.items():
        raise Refused(f"{resource.plural} {name!r} exists and does not belong to this {owner}; it is left alone")


def claims_of(pod: Mapping[str, Any]) -> list[str]:
    """Return the names of the claims that the pod mounts."""
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    return [each["persistentVolumeClaim"]["claimName"] for each in volumes if each.get("persistentVolumeClaim")]


def is_shared(claim: Mapping[str, Any] | None) -> bool:
    """True if pods on several nodes may mount the claim at once, whichever of its access modes is in effect."""
    modes = set(((claim or {}).get("spec") or {}).get("accessModes") or ())
    return "ReadWriteMany" in modes and not modes & _FOR_ONE_NODE


def volume_of(claim: Body | None, meta: Meta, spec: Spec | None) -> VolumeSeen:
    """Return what is known of the claim. One that the user brings is never ours to create, so it is in nobody's way."""
    if spec is None or claim is None:
        return VolumeSeen(exists=False)
    name, wanted = claim["metadata"]["name"], claim.get("spec") or {}
    if spec.checkpoint.volume.claim_name:
        maker = str((claim["metadata"].get("labels") or {}).get(names.LABEL_RUN) or "")
        return VolumeSeen(exists=True, name=name, owned=owned(claim, meta), made_for=maker)
    made = made_for(claim, meta)
    return VolumeSeen(
        exists=True,
        name=name,
        ours=made,
        requested=str(((wanted.get("resources") or {}).get("requests") or {}).get("storage") or ""),
        storage_class=str(wanted.get("storageClassName") or ""),
        access_modes=tuple(map(str, wanted.get("accessModes") or ())),
        made=made,
        reclaim=spec.checkpoint.volume.reclaim,
        owned=owned(claim, meta),
        of_earlier_run=made_for_earlier(claim, meta),
    )
