"""What Pod Security says of a pod where a namespace enforces `restricted`: those of its rules that ours could break."""

from collections.abc import Iterator, Mapping
from typing import Any

_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
_HOST = ("hostNetwork", "hostPID", "hostIPC")
_PROFILES = ("RuntimeDefault", "Localhost")


def violations(pod: Mapping[str, Any]) -> list[str]:
    """Every rule of `restricted` that the spec of this pod breaks, in the words of Kubernetes."""
    return [*_of_the_pod(pod), *(found for container in _containers(pod) for found in _of(container, pod))]


def _containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _of_the_pod(pod: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{field}=true" for field in _HOST if pod.get(field))
    for volume in pod.get("volumes", ()):
        if not _VOLUMES & set(volume):
            yield f"restricted volume types: {volume['name']}"
    if pod.get("securityContext", {}).get("runAsUser") == 0:
        yield "runAsUser=0"


def _of(container: Mapping[str, Any], pod: Mapping[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}
    both = {**(pod.get("securityContext") or {}), **own}
    dropped, added = (set((own.get("capabilities") or {}).get(word, ())) for word in ("drop", "add"))
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "allowPrivilegeEscalation != false"
    if "ALL" not in dropped or added - {"NET_BIND_SERVICE"}:
        yield "unrestricted capabilities"
    if both.get("runAsNonRoot") is not True:
        yield "runAsNonRoot != true"
    if own.get("runAsUser") == 0:
        yield "runAsUser=0"
    if (both.get("seccompProfile") or {}).get("type") not in _PROFILES:
        yield "seccompProfile"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "hostPort"
