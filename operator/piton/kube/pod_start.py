"""Evidence on the start of a pod: what it waits for, what cannot start, and which init container failed."""

from collections.abc import Iterator, Mapping
from typing import Any

from piton.contract import names
from piton.core.start_words import (
    CREATE_REASONS,
    INIT_CONTAINER,
    INIT_CRASHES,
    PULL_REASONS,
    SIDECAR_STARTS,
    START_ERRORS,
)
from piton.kube.clocks import began_at
from piton.kube.nodes import condition, scheduled_at
from piton.observed import ClusterMessage

_CANNOT_START = PULL_REASONS | CREATE_REASONS
_NEVER_STARTED_EXIT = 128
"""Exit code of a container that its runtime could not start."""
LAST_WORDS_MAX = 500
"""Characters, the last ones, of what a container said before it ended."""


def container_of(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the status of the trainer's container; others, such as a mesh's sidecar, do not speak for the replica."""
    found = status.get("containerStatuses") or []
    return next((c for c in found if c.get("name") == names.CONTAINER), {})


def other_containers(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the statuses of the containers beside the trainer's."""
    return [each for each in status.get("containerStatuses") or () if each.get("name") != names.CONTAINER]


def waiting(pod: Mapping[str, Any], container: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return the reason why it does not start, and True if its kubelet says that it cannot.

    Once the trainer has begun, no init container speaks for it: a native sidecar may have to be started again.
    """
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return _sentence(scheduled.get("reason"), scheduled.get("message")), False
    state = container.get("state") or {}
    ended = state.get("terminated") or {}
    if is_start_error(ended):
        reason = ended["reason"] if ended.get("reason") in START_ERRORS else "StartError"
        return _sentence(reason, ended.get("message")), True
    for other in _init_containers(pod.get("status") or {}, container):
        waits = (other.get("state") or {}).get("waiting") or {}
        if waits.get("reason") in _CANNOT_START:
            return f"{INIT_CONTAINER}{other['name']}: {_sentence(waits['reason'], waits.get('message'))}", True
    found = state.get("waiting") or {}
    reason = found.get("reason")
    return _sentence(reason, found.get("message")), reason in _CANNOT_START


def program(pod: Mapping[str, Any]) -> str | None:
    """Return the first word of the trainer's command, after all webhooks; None where it has none."""
    found = (pod.get("spec") or {}).get("containers") or ()
    command = next((each.get("command") for each in found if each["name"] == names.CONTAINER), None)
    return command[0] if command else None


def is_start_error(ended: Mapping[str, Any]) -> bool:
    """True if the container has ended without having begun, by its reason or by a start that never was."""
    if ended.get("reason") in START_ERRORS:
        return True
    started = ended.get("startedAt") or ""
    return ended.get("exitCode") == _NEVER_STARTED_EXIT and started.startswith("1970-")


def init_failure(pod: Mapping[str, Any], container: Mapping[str, Any]) -> str | None:
    """Return the init container that failed, with its exit code and last words; None once the trainer has begun."""
    status = pod.get("status") or {}
    if status.get("phase") != "Failed":
        return None
    for other in _init_containers(status, container):
        ended = (other.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            said = _last_words(ended)
            where = f"{INIT_CONTAINER}{other['name']} of {pod['metadata']['name']}"
            return f"{where} ended with exit code {ended['exitCode']}" + (f": {said}" if said else "")
    return None


def _init_containers(status: Mapping[str, Any], container: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the statuses of the init containers that the trainer waits for; empty once it has begun."""
    return [] if _begins(container) else list(status.get("initContainerStatuses") or ())


def _begins(container: Mapping[str, Any]) -> bool:
    """True if the container runs, or has."""
    state = container.get("state") or {}
    return bool(container.get("lastState")) or "running" in state or "terminated" in state


def words(pod: Mapping[str, Any]) -> tuple[ClusterMessage, ...]:
    """Return the pod's own messages about its start; its events have more."""
    status = pod.get("status") or {}
    scheduled = condition(pod, "PodScheduled")
    found = [_message(scheduled)] if scheduled.get("status") == "False" else []
    container = container_of(status)
    crashing = {other["name"]: words for other in _init_containers(status, container) if (words := _crash_of(other))}
    found += [ClusterMessage(reason=INIT_CRASHES, message=words) for words in crashing.values()]
    states = [*(each for each in _init_containers(status, container) if each["name"] not in crashing), container]
    found += [_message(waits) for state in states if (waits := (state.get("state") or {}).get("waiting"))]
    return (*found, *_initializing(pod, container))


def _crash_of(container: Mapping[str, Any]) -> str | None:
    """Return how an init container has ended that is started again and again, a sidecar; None if it has not."""
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if not ended or not container.get("restartCount"):
        return None
    said = _last_words(ended)
    crashes = f"{INIT_CONTAINER}{container['name']} ends with exit code {ended.get('exitCode')} each time"
    return f"{crashes}: {said}" if said else crashes


def _last_words(ended: Mapping[str, Any]) -> str:
    return str(ended.get("message") or ended.get("reason") or "").strip()[-LAST_WORDS_MAX:]


def _message(found: Mapping[str, Any]) -> ClusterMessage:
    return ClusterMessage(reason=str(found.get("reason") or ""), message=str(found.get("message") or ""))


def _initializing(pod: Mapping[str, Any], trainer: Mapping[str, Any]) -> Iterator[ClusterMessage]:
    """The init container that runs; a sidecar among them keeps the trainer from starting until it has started."""
    specs = (pod.get("spec") or {}).get("initContainers") or []
    sidecars = {spec["name"] for spec in specs if spec.get("restartPolicy") == "Always"}
    for container in _init_containers(pod.get("status") or {}, trainer):
        running = (container.get("state") or {}).get("running")
        if running is not None and container["name"] in sidecars and container.get("started") is False:
            message = f"its startup probe has not passed in the init container {container['name']}"
            yield ClusterMessage(reason=SIDECAR_STARTS, message=message)
        elif running is not None and container["name"] not in sidecars:
            message = f"{container['name']} is running"
            first = began_at(pod, container, scheduled_at(pod))
            yield ClusterMessage(reason="InitContainer", message=message, first_time=first)


def _sentence(reason: str | None, message: str | None) -> str | None:
    return f"{reason}: {message}" if reason and message else reason
