"""The operator without its watches: a queue of runs, workers that reconcile them, and a resync that forgets nobody.

Watches and timers only add keys. A lost event costs time, at most until the next resync, and never correctness.
"""

import asyncio
import logging
import traceback
from collections import defaultdict
from collections.abc import Callable

from piton.contract.progress import Progress
from piton.core.conditions import TRAINING
from piton.core.effects import Decision
from piton.core.increments import increments
from piton.core.observed import Observed
from piton.core.render import ProgressServer
from piton.drive import reconcile
from piton.kube.client import RUNS, Client
from piton.kube.events import EventAnnouncer, Key, Ration
from piton.kube.metrics import RUN, Meter
from piton.kube.queue import Timer, WorkQueue
from piton.kube.reports import Reports, Sender
from piton.kube.settings import Settings
from piton.kube.world import KubeWorld
from piton.ports import Clock, Conflict, PortError

_CONFLICTS_AT_ONCE = 3
"""Conflicts in a row after which a run waits as after any other error: somebody keeps writing to it."""

ServerNow = Callable[[], ProgressServer | None]
"""Where new attempts report to, with the certificate of today; None: nowhere."""

_log = logging.getLogger(__name__)


class Controller:
    """Everything that one operator process does."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        timer: Timer,
        settings: Settings,
        meter: Meter,
        server: ServerNow = lambda: None,
    ) -> None:
        self.queue: WorkQueue[Key] = WorkQueue(timer)
        self._meter = meter
        meter.watch_queue(RUN, self.queue.__len__)
        self._client = client
        self._clock = clock
        self._timer = timer
        self._settings = settings
        self._server = server
        self._reports = Reports(timer, pass_seconds=settings.pace.progress_seconds)
        self._ration = Ration(clock)
        self._runs_on_node: defaultdict[str, set[Key]] = defaultdict(set)
        self._busy_since: dict[Key, float] = {}
        self._resync_at = timer.time()

    # --- what wakes a run ---------------------------------------------------------------------------------------------

    def wake(self, namespace: str, run: str) -> None:
        """Something about this run may have changed."""
        self.queue.add((namespace, run))

    def saw_pod(self, namespace: str, run: str, node: str | None) -> None:
        """A pod of the run changed. Where it is is only a hint: it says whom to wake when a node changes."""
        if node:
            self._runs_on_node[node].add((namespace, run))
        self.wake(namespace, run)

    def saw_node(self, node: str, *, deleted: bool) -> None:
        """A node changed or went."""
        for namespace, run in self._runs_on_node.get(node, ()):
            self.wake(namespace, run)
        if deleted:
            self._runs_on_node.pop(node, None)

    def hear(self, sender: Sender, progress: Progress) -> None:
        """A trainer reported. Many do, all the time: a pass follows when there is something in it."""
        if self._settings.namespaces and sender.namespace not in self._settings.namespaces:
            return
        self.queue.add_after((sender.namespace, sender.run), self._reports.take(sender, progress))

    async def resync(self) -> None:
        """Have every run that exists looked at. What is not listed here is no run, whatever a watch believes."""
        for namespace in self._settings.namespaces or (None,):
            for manifest in await self._client.list(RUNS, namespace=namespace):
                self.wake(manifest["metadata"]["namespace"], manifest["metadata"]["name"])

    # --- what happens then --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._resync_forever(), name="resync")
            for number in range(self._settings.workers):
                tasks.create_task(self._work(), name=f"worker {number}")

    async def _resync_forever(self) -> None:
        while True:
            try:
                await self.resync()
            except PortError as error:
                _log.warning("resync failed", extra={"fields": {"error": str(error)}})
            self._resync_at = self._timer.time()
            await asyncio.sleep(self._settings.resync_seconds)

    async def _work(self) -> None:
        while True:
            await self.handle(await self.queue.get())

    async def handle(self, key: Key) -> None:
        """One key from the queue: a pass over the run, and when to look again."""
        self._busy_since[key] = self._timer.time()
        try:
            with self._meter.reconciling(RUN):
                await self._pass(key)
        except Conflict:
            self.queue.retry(key, free=_CONFLICTS_AT_ONCE)
        except PortError as error:
            self._failed(key, str(error), level=logging.WARNING)
        except Exception as error:  # noqa: BLE001 - a bug that one run meets must not stop the others
            self._failed(key, repr(error), level=logging.ERROR)
        else:
            self.queue.forget(key)
        finally:
            del self._busy_since[key]
            self.queue.done(key)

    async def _pass(self, key: Key) -> None:
        world = KubeWorld(self._client, self._clock, *key, reports=self._reports, server=self._server())
        announcer = EventAnnouncer(self._client, self._clock, self._ration, lambda: world.meta)
        decision = await reconcile(world, self._clock, announcer, self._settings.pace)
        if decision is None:
            self._forget(key)
            return
        _tell(key, decision, world.observed)
        self._measure(key, decision, world.observed)
        waits = [s for s in (decision.look_again_seconds, world.look_again_seconds()) if s is not None]
        if waits:
            self.queue.add_after(key, min(waits))

    def _measure(self, key: Key, decision: Decision, observed: Observed | None) -> None:
        """The pass went well, so the status is written: what it says can be shown and counted."""
        self._meter.show(key, decision.status)
        if observed is not None:
            self._meter.count(increments(observed.status, decision.status))

    def _forget(self, key: Key) -> None:
        self._meter.forget(key)
        self._ration.forget(key)
        self._reports.forget(key)
        for node in [node for node, runs in self._runs_on_node.items() if key in runs]:
            self._runs_on_node[node].discard(key)
            if not self._runs_on_node[node]:
                del self._runs_on_node[node]

    def _failed(self, key: Key, why: str, *, level: int) -> None:
        seconds = self.queue.retry(key)
        fields: dict[str, object] = {"run": "/".join(key), "error": why, "retryInSeconds": seconds}
        if level >= logging.ERROR:
            fields["traceback"] = traceback.format_exc()
        _log.log(level, "pass failed", extra={"fields": fields})

    def ailment(self) -> str | None:
        """What is wrong with this process, in a sentence; None while it works."""
        now = self._timer.time()
        for (namespace, run), since in self._busy_since.items():
            if now - since > self._settings.stuck_seconds:
                return f"a pass over {namespace}/{run} has taken {now - since:.0f} s"
        silence = now - self._resync_at
        if silence > 2 * self._settings.resync_seconds + self._settings.stuck_seconds:
            return f"the runs have not been listed for {silence:.0f} s"
        return None


def _tell(key: Key, decision: Decision, observed: Observed | None) -> None:
    """One line for each decision that changes something."""
    if observed is None or (not decision.effects and decision.status == observed.status):
        return
    training = decision.status.condition(TRAINING)
    fields: dict[str, object] = {
        "run": "/".join(key),
        "rule": decision.rule,
        "reason": training.reason.value if training else None,
        "phase": decision.status.phase.value,
        "attempt": decision.status.attempt,
        "effects": [f"{type(effect).__name__}({effect.reason})" for effect in decision.effects],
        "told": [news.message for news in decision.announcements],
    }
    _log.info("decided", extra={"fields": fields})
