"""The queue of PyTorchJobs, for `engine: bundled`. Apart from the runs' queue, so neither waits for the other.

Watches only add keys, and a resync forgets nobody, as in `controller.py`.
"""

import asyncio
import logging
import traceback
from collections.abc import Mapping

from piton.contract import names
from piton.engine.job import LABEL_JOB
from piton.engine.scene import Decision
from piton.kube.client import JOBS, Client
from piton.kube.errors import NotFound
from piton.kube.jobs import JobPass
from piton.kube.metrics import JOB, Meter
from piton.kube.queue import Timer, WorkQueue
from piton.kube.settings import Settings
from piton.ports import Clock, Conflict, PortError

Key = tuple[str, str]
"""Namespace and name of a PyTorchJob."""

_CONFLICTS_AT_ONCE = 3
"""Conflicts in a row after which a job waits as after any other error: somebody keeps writing to it."""

_log = logging.getLogger(__name__)


class JobController:
    """Serves the PyTorchJobs that carry Piton's label."""

    def __init__(self, client: Client, clock: Clock, timer: Timer, settings: Settings, meter: Meter) -> None:
        self.queue: WorkQueue[Key] = WorkQueue(timer)
        self._meter = meter
        meter.watch_queue(JOB, self.queue.__len__)
        self._client = client
        self._clock = clock
        self._timer = timer
        self._settings = settings
        self._busy_since: dict[Key, float] = {}
        self._resync_at = timer.time()

    def wake(self, namespace: str, job: str) -> None:
        """Something about this job may have changed."""
        self.queue.add((namespace, job))

    def saw_replica(self, namespace: str, labels: Mapping[str, str]) -> None:
        """A pod or a service changed; its label says whose it is."""
        if LABEL_JOB in labels:
            self.wake(namespace, labels[LABEL_JOB])

    async def resync(self) -> None:
        """Have every job that is Piton's looked at."""
        for namespace in self._settings.namespaces or (None,):
            for manifest in await self._client.list(JOBS, namespace=namespace, labels=names.LABEL_RUN):
                self.wake(manifest["metadata"]["namespace"], manifest["metadata"]["name"])

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._resync_forever(), name="resync of jobs")
            for number in range(self._settings.workers):
                tasks.create_task(self._work(), name=f"job worker {number}")

    async def _resync_forever(self) -> None:
        while True:
            try:
                await self.resync()
            except NotFound:  # the resource is not installed; a run that needs it says so
                pass
            except PortError as error:
                _log.warning("resync of jobs failed", extra={"fields": {"error": str(error)}})
            self._resync_at = self._timer.time()
            await asyncio.sleep(self._settings.resync_seconds)

    async def _work(self) -> None:
        while True:
            await self.handle(await self.queue.get())

    async def handle(self, key: Key) -> None:
        """One key from the queue: a pass over the job, and when to look again."""
        self._busy_since[key] = self._timer.time()
        try:
            with self._meter.reconciling(JOB):
                decision = await JobPass(self._client, self._clock, *key).run()
        except Conflict:
            self.queue.retry(key, free=_CONFLICTS_AT_ONCE)
        except PortError as error:
            self._failed(key, str(error), level=logging.WARNING)
        except Exception as error:  # noqa: BLE001 - a bug that one job meets must not stop the others
            self._failed(key, repr(error), level=logging.ERROR)
        else:
            self.queue.forget(key)
            self._look_again(key, decision)
        finally:
            del self._busy_since[key]
            self.queue.done(key)

    def _look_again(self, key: Key, decision: Decision | None) -> None:
        """What was written may call for more at once: a job that has just failed is to be cleaned up."""
        if decision is None:
            return
        if decision.changes:
            _tell(key, decision)
            self.wake(*key)
        elif decision.look_again_seconds is not None:
            self.queue.add_after(key, max(0.0, decision.look_again_seconds))

    def _failed(self, key: Key, why: str, *, level: int) -> None:
        seconds = self.queue.retry(key)
        fields: dict[str, object] = {"job": "/".join(key), "error": why, "retryInSeconds": seconds}
        if level >= logging.ERROR:
            fields["traceback"] = traceback.format_exc()
        _log.log(level, "pass over job failed", extra={"fields": fields})

    def ailment(self) -> str | None:
        """What is wrong with this half of the process, in a sentence; None while it works."""
        now = self._timer.time()
        for (namespace, job), since in self._busy_since.items():
            if now - since > self._settings.stuck_seconds:
                return f"a pass over the job {namespace}/{job} has taken {now - since:.0f} s"
        silence = now - self._resync_at
        if silence > 2 * self._settings.resync_seconds + self._settings.stuck_seconds:
            return f"the jobs have not been listed for {silence:.0f} s"
        return None


def _tell(key: Key, decision: Decision) -> None:
    """One line for each decision that changes something."""
    fields: dict[str, object] = {
        "job": "/".join(key),
        "rule": decision.rule,
        "conditions": [f"{c.type}={c.status}" for c in decision.status.conditions],
        "created": [create.body["metadata"]["name"] for create in decision.creates],
        "deleted": [f"{delete.kind} {delete.name}" for delete in decision.deletes],
    }
    _log.info("job decided", extra={"fields": fields})
