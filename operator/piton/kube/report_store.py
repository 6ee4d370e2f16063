"""The newest reports of the trainers, in memory, and the time at which a pass over their run is worth it.

A pass reads half a dozen objects, and a trainer speaks every few seconds: so news of mere steps waits until the status
would be written anyway. Nothing here is a source of truth: after a restart the next reports fill it again.

The reconcile loop takes in reports and looks at them; the thread of the progress server only asks for answers. One lock
guards both: nothing waits while it is held.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from piton.contract.progress import Progress, StopAt, TrainerRequests
from piton.kube.events import Key
from piton.kube.workqueue import Timer

RUNS_MAX = 8192
"""Runs that are remembered; beyond that, whoever has been silent the longest is forgotten."""
URGENT_SECONDS = 1.0
"""Not even news of checkpoints makes passes follow each other more quickly than this."""
_ATTEMPTS_MAX = 4
"""Attempts of one name that may speak at the same time: those of a deleted run, of an older attempt, of the current."""


@dataclass(frozen=True, kw_only=True)
class Sender:
    """The sender of a report, as the cluster vouches for it."""

    namespace: str
    run: str
    run_uid: str
    """Tells a run from an earlier one of its name, whose pods may still be there."""
    attempt: int


@dataclass(kw_only=True)
class _Memory:
    """One name's reports, and what the last pass saw of them."""

    newest: OrderedDict[tuple[str, int], "_Report"] = field(default_factory=OrderedDict)
    looked_at: float | None = None
    seen: Progress | None = None
    requested: dict[tuple[str, int], "_Requested"] = field(default_factory=dict)
    """Of the attempt in flight alone."""


@dataclass(frozen=True, kw_only=True)
class _Report:
    """A report, and when it came, by the timer."""

    progress: Progress
    time: float


@dataclass(kw_only=True)
class _Requested:
    """The requests of the newest pass to an attempt."""

    requests: TrainerRequests
    save: str
    """The text of the annotation piton.dev/save."""
    saved: str
    """The text at the last request for a save; at first the current one."""
    time: float
    """The time of that pass, by the timer."""


class Reports:
    """The newest report of each attempt."""

    def __init__(self, timer: Timer, *, pass_seconds: float) -> None:
        self._timer = timer
        self._pass_seconds = pass_seconds
        self._listens_since = timer.time()
        self._runs: OrderedDict[Key, _Memory] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Runs that are remembered."""
        return len(self._runs)

    def take(self, sender: Sender, progress: Progress) -> float:
        """Remember a report; in how many seconds a pass should look at it."""
        key = (sender.namespace, sender.run)
        with self._lock:
            memory = self._runs.setdefault(key, _Memory())
            memory.newest[sender.run_uid, sender.attempt] = _Report(progress=progress, time=self._timer.time())
            memory.newest.move_to_end((sender.run_uid, sender.attempt))
            if len(memory.newest) > _ATTEMPTS_MAX:
                memory.newest.popitem(last=False)
            self._runs.move_to_end(key)
            if len(self._runs) > RUNS_MAX:
                self._runs.popitem(last=False)
            return self._wait(memory, progress)

    def look(self, key: Key, *, run_uid: str, attempt: int) -> Progress | None:
        """Return the newest report of this attempt, for a pass."""
        with self._lock:
            memory = self._runs.get(key)
            if memory is None:
                return None
            memory.looked_at = self._timer.time()
            newest = memory.newest.get((run_uid, attempt))
            memory.seen = newest.progress if newest else None
            return memory.seen

    def silent_seconds(self, key: Key, *, run_uid: str, attempt: int) -> float:
        """Return the seconds since the newest report of this attempt, or since this process listens."""
        with self._lock:
            memory = self._runs.get(key)
            newest = memory.newest.get((run_uid, attempt)) if memory else None
            return self._timer.time() - (newest.time if newest else self._listens_since)

    def request(self, key: Key, *, run_uid: str, attempt: int, requests: TrainerRequests, save: str) -> None:
        """Set the answers to this attempt's next reports. `save` is the text for which it saves once."""
        with self._lock:
            memory = self._runs.get(key)
            if memory is None:
                return
            before = memory.requested.get((run_uid, attempt))
            saved = save if before is None else before.saved
            memory.requested = {
                (run_uid, attempt): _Requested(requests=requests, save=save, saved=saved, time=self._timer.time())
            }

    def answer(self, sender: Sender) -> TrainerRequests:
        """Return the requests to the attempt that has just reported. A save is requested in one answer only.

        May be called from any thread.
        """
        with self._lock:
            memory = self._runs.get((sender.namespace, sender.run))
            requested = memory.requested.get((sender.run_uid, sender.attempt)) if memory else None
            if requested is None:
                return TrainerRequests()
            wants_save = bool(requested.save) and requested.save != requested.saved
            requested.saved = requested.save
            stop_at = _after(requested.requests.stop_at, self._timer.time() - requested.time)
            return replace(requested.requests, checkpoint=wants_save, stop_at=stop_at)

    def forget(self, key: Key) -> None:
        """The run is gone."""
        with self._lock:
            self._runs.pop(key, None)

    def _wait(self, memory: _Memory, progress: Progress) -> float:
        if memory.looked_at is None:
            return 0.0
        urgent = memory.seen is None or memory.seen.checkpoint_step != progress.checkpoint_step
        due = memory.looked_at + (URGENT_SECONDS if urgent else self._pass_seconds)
        return max(0.0, due - self._timer.time())


def _after(stop_at: StopAt | None, seconds: float) -> StopAt | None:
    """Return the same moment, as it is after so many seconds."""
    if stop_at is None or stop_at.seconds is None:
        return stop_at
    return replace(stop_at, seconds=stop_at.seconds - seconds)
