"""The operator's half for PyTorchJobs, with `engine: bundled`. Apart from the runs', so neither waits for the other."""

import logging
from collections.abc import Mapping

from piton.contract import names
from piton.engine.job import LABEL_JOB
from piton.engine.state import Decision
from piton.kube.cache import ClusterCache
from piton.kube.client import Client
from piton.kube.controller_base import Worker
from piton.kube.errors import NotFound
from piton.kube.events import Key, RepeatLimiter
from piton.kube.job_pass import JobPass, NoRoom
from piton.kube.metrics import JOB, OperatorMetrics
from piton.kube.resources import JOBS, PODS, QUOTAS, SERVICES
from piton.kube.settings import PitonSettings
from piton.kube.store import Change
from piton.kube.workqueue import Timer
from piton.ports import Clock

ROOM_SECONDS = 600.0
"""Seconds between two tries of a job whose pods a ResourceQuota has no room for, while quotas are watched. Room wakes
it before that, but a larger job may have been tried instead, or another API server's copy of the quota was late."""

_log = logging.getLogger(__name__)


class JobController(Worker):
    """Serves the PyTorchJobs that carry Piton's label."""

    kind = JOB
    resource = JOBS
    labels = names.LABEL_RUN

    def __init__(
        self,
        client: Client,
        clock: Clock,
        timer: Timer,
        settings: PitonSettings,
        meter: OperatorMetrics,
        *,
        cache: ClusterCache | None = None,
    ) -> None:
        super().__init__(client, clock, timer, settings, meter, cache=cache)
        self._repeats = RepeatLimiter(clock)

    def subscribe(self, cache: ClusterCache) -> None:
        """Look at a job when it changes, or one of its pods or services; when it waits for room, and there is some."""
        cache.subscribe(JOBS, self._on_job)
        cache.subscribe(QUOTAS, self.on_quota)
        for resource in (PODS, SERVICES):
            cache.subscribe(resource, self._on_replica)

    def _on_job(self, change: Change) -> None:
        metadata = change.body["metadata"]
        self.wake(metadata["namespace"], metadata["name"], urgent=change.before is None)

    def _on_replica(self, change: Change) -> None:
        metadata = change.body["metadata"]
        self.saw_replica(metadata["namespace"], metadata.get("labels") or {})

    def saw_replica(self, namespace: str, labels: Mapping[str, str]) -> None:
        """A pod or a service changed; its label says whose it is."""
        if LABEL_JOB in labels:
            self.wake(namespace, labels[LABEL_JOB])

    async def resync(self, *, seconds: float = 0.0) -> None:
        """Have every job that is Piton's looked at."""
        try:
            await super().resync(seconds=seconds)
        except NotFound:  # the resource is not installed; a run that needs it says so
            return

    async def reconcile(self, key: Key) -> None:
        """One pass. What was written may call for more at once: a job that has just failed is to be cleaned up."""
        try:
            cache, repeats = self.reads(key), self._repeats
            decision = await JobPass(
                self._client, self._clock, *key, cache=cache, repeats=repeats, failures=self.failures(key)
            ).run()
        except NoRoom as refusal:
            if not (self.hears_of_room(key) and self.speaks(key, str(refusal))):
                raise
            self._wait_for_room(key, refusal)
            return
        self.hold_back(key, refused=False)
        self._repeats.forget(key)
        if decision is None:
            self.forget_failures(key)
            return
        if decision.changes:
            _log_decision(key, decision)
            self.wake(*key)
        elif decision.look_again_seconds is not None:
            self.queue.add_after(key, max(0.0, decision.look_again_seconds))

    def _wait_for_room(self, key: Key, refusal: NoRoom) -> None:
        """Try again when there is room, or rarely. The copy in the cache is not to blame, so no list is read live."""
        self._waits.was_refused(key)
        self.hold_back(key, refused=True)
        seconds = self.queue.postpone(key, ROOM_SECONDS)
        if refusal.look_again_seconds is not None:
            self.queue.add_after(key, max(0.0, refusal.look_again_seconds))
        fields: dict[str, object] = {"job": "/".join(key), "error": str(refusal), "retryInSeconds": seconds}
        _log.info("waits for room", extra={"fields": fields})


def _log_decision(key: Key, decision: Decision) -> None:
    """One line for each decision that changes something."""
    fields: dict[str, object] = {
        "job": "/".join(key),
        "rule": decision.rule,
        "conditions": [f"{c.type}={c.status}" for c in decision.status.conditions],
        "created": [create.body["metadata"]["name"] for create in decision.creates],
        "deleted": [f"{delete.kind} {delete.name}" for delete in decision.deletes],
    }
    _log.info("job decided", extra={"fields": fields})
