"""One watch on the runs: when each got its first status, its phases, and why it waits.

It costs the API server one client, and neither the operator nor the server anything per question.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientError
from kubernetes.aio.client import ApiClient, Configuration, CustomObjectsApi

from hack.cluster.layout import KUBECONFIG, LOGS
from piton.kube.resources import Resource

_LOOK_SECONDS = 0.05
_SAY_SECONDS = 5.0

Say = Callable[[str], None]
Take = Callable[[str, dict[str, Any], float], None]
"""It is given the type of an event, its object, and when it came."""


class LateError(Exception):
    """A scenario did not get where it should within its time."""


@dataclass(slots=True)
class RunSeen:
    """One run, as the watch has shown it."""

    uid: str
    phase: str = ""
    phase_at: float = 0.0
    """When its phase was first seen, in monotonic seconds."""
    first_status_at: float | None = None
    training_at: float | None = None
    stopping_at: float | None = None
    waiting: str | None = None
    """The reason of its condition Waiting, while that is true."""
    is_unheard: bool = False
    """Its condition Reporting is false."""
    attempt: int = 0
    ended: str = ""
    """Verdict and reason of the newest attempt that has ended."""
    phases: int = 0
    """Changes of its phase."""
    step: int = 0
    """The step of the report that its status shows."""


class Runs:
    """All runs of a namespace, and their numbers by phase. Pure: it is fed with events."""

    def __init__(self) -> None:
        self.seen: dict[str, RunSeen] = {}
        self.phases: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        """Runs that show why they wait, by the reason."""
        self.changes = 0
        """Changes of phases, of all runs together."""

    def take(self, kind: str, body: dict[str, Any], now: float) -> None:
        """Note one event of the watch."""
        name = body["metadata"]["name"]
        if kind == "DELETED":
            self._forget(name)
            return
        run = self.seen.get(name)
        if run is None or run.uid != body["metadata"]["uid"]:
            self._forget(name)
            run = self.seen[name] = RunSeen(uid=body["metadata"]["uid"])
        if status := body.get("status"):
            self._note(run, status, now)

    def _forget(self, name: str) -> None:
        if run := self.seen.pop(name, None):
            self.phases[run.phase] -= 1 if run.phase else 0
            self._count_reason(run.waiting, -1)

    def _note(self, run: RunSeen, status: dict[str, Any], now: float) -> None:
        run.first_status_at = run.first_status_at or now
        run.attempt = status.get("attempt", 0)
        run.ended = newest_end(status)
        run.step = (status.get("progress") or {}).get("step") or 0
        run.is_unheard = _condition(status, "Reporting").get("status") == "False"
        phase = status.get("phase", "")
        if phase != run.phase:
            self.phases[run.phase] -= 1 if run.phase else 0
            self.phases[phase] += 1
            self.changes += 1
            run.phase, run.phase_at, run.phases = phase, now, run.phases + 1
        if phase == "Training":
            run.training_at = run.training_at or now
        if phase == "Stopping":
            run.stopping_at = run.stopping_at or now
        self._count_reason(run.waiting, -1)
        run.waiting = waiting_reason(status)
        self._count_reason(run.waiting, 1)

    def _count_reason(self, reason: str | None, change: int) -> None:
        if reason is not None:
            self.reasons[reason] += change


def waiting_reason(status: dict[str, Any]) -> str | None:
    """Return the reason of the condition Waiting, if it is true."""
    found = _condition(status, "Waiting")
    return found.get("reason") if found.get("status") == "True" else None


def _condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in status.get("conditions") or () if c.get("type") == kind), {})


def newest_end(status: dict[str, Any]) -> str:
    """Return verdict and reason of the newest attempt that has ended; empty without one."""
    ends = [attempt for attempt in status.get("attempts") or () if attempt.get("state") == "Ended"]
    return f"{ends[-1].get('verdict')} {ends[-1].get('reason')}" if ends else ""


async def follow(
    configuration: Configuration, resource: Resource, namespace: str, take: Take, *, labels: str = ""
) -> None:
    """Feed `take` with all that exists and all that changes, until cancelled.

    Raises:
        RuntimeError: the API server does not remember the version that was seen last.
    """
    version = ""
    async with ApiClient(configuration) as client:
        listed = CustomObjectsApi(client).list_namespaced_custom_object_without_preload_content
        query = {"watch": True, "allow_watch_bookmarks": True, "label_selector": labels}
        kind = (resource.group, resource.version, namespace, resource.plural)
        while True:
            with suppress(TimeoutError, ClientError):
                async with await listed(*kind, **query, resource_version=version) as response:
                    async for line in response.content:
                        event = json.loads(line)
                        body = event["object"]
                        if event["type"] == "ERROR":
                            raise RuntimeError(f"the watch on {resource.plural} broke: {body.get('message')}")
                        version = body["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            take(event["type"], body, time.monotonic())


async def until(true: Callable[[], bool], *, seconds: float, state: Callable[[], str], say: Say, log: str) -> None:
    """Wait until it is true, and say every few seconds how far it is.

    Raises:
        LateError: it is not, for too long; says where to look.
    """
    began = said = time.monotonic()
    while not true():
        now = time.monotonic()
        if now - began > seconds:
            raise LateError(
                f"{state()} after {seconds:.0f} s; see {LOGS}/{log}.log and kubectl --kubeconfig {KUBECONFIG} -A"
                " get trainingruns,pytorchjobs,pods"
            )
        if now - said >= _SAY_SECONDS:
            say(state())
            said = now
        await asyncio.sleep(_LOOK_SECONDS)
    say(state())
