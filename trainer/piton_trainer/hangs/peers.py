"""Exchange between the watchdogs of a job's nodes, through one file each on the checkpoint volume.

A node whose ranks all wait may wait for a rank elsewhere that reads its data, evaluates, or restores for all.
"""

import json
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from piton_trainer.hangs.detection import Hang, Idle

_FRESH_WRITES = 3
"""A file that is older than so many tellings is of a watchdog that does not run any more."""


@dataclass(frozen=True, kw_only=True)
class Stillness:
    """Seconds for which all ranks of a node have stood still."""

    silence: float = 0.0
    """Inside one step."""
    idle: float = 0.0
    """Without reading, writing or computing anything, in a start, a restore or a wait for data."""


class Peers:
    """One node's view of the others. Times are compared by the volume's clock alone."""

    def __init__(self, folder: Path, *, node: int, nodes: int, every_seconds: float) -> None:
        self._folder = folder
        self._own = folder / f"node-{node}.json"
        self._others = [folder / f"node-{other}.json" for other in range(nodes) if other != node]
        self.every_seconds = every_seconds

    def publish(self, own: Stillness) -> None:
        """Say for how long this node's ranks have stood still.

        Raises:
            OSError: the volume does not take it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = self._own.with_suffix(".tmp")
        aside.write_text(json.dumps(asdict(own)), encoding="utf-8")
        aside.replace(self._own)

    def read(self) -> Stillness | None:
        """For how long every other node has stood still; None where none of them says anything any more."""
        found = [stillness for path in self._others if (stillness := self._read(path)) is not None]
        if not found:
            return None
        return Stillness(
            silence=min(stillness.silence for stillness in found), idle=min(stillness.idle for stillness in found)
        )

    def _read(self, path: Path) -> Stillness | None:
        try:
            age = self._own.stat().st_mtime - path.stat().st_mtime
            fields = json.loads(path.read_text(encoding="utf-8"))
            stillness = Stillness(silence=float(fields["silence"]), idle=float(fields["idle"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return stillness if age <= _FRESH_WRITES * self.every_seconds else None


class Exchange(threading.Thread):
    """Tells and asks from time to time, in a thread: a volume that does not answer must not hold up the watchdog."""

    def __init__(self, peers: Peers) -> None:
        super().__init__(name="piton-peers", daemon=True)
        self._peers = peers
        self.own = Stillness()
        self._others: tuple[float, Stillness | None] | None = None
        """Time of the last exchange, and the answers so far."""

    def run(self) -> None:
        """Go on until the process ends."""
        while True:
            try:
                self._peers.publish(self.own)
                self._others = (time.monotonic(), self._peers.read())
            except OSError:  # asked again; whoever needs the volume says what is wrong with it
                pass
            time.sleep(self._peers.every_seconds)

    def agrees(self, trouble: Hang | Idle, now: float) -> bool:
        """True if all other nodes have stood still in the same way for most of that time, or cannot be asked."""
        if self._others is None:
            return True
        read_at, stillness = self._others
        if stillness is None or now - read_at > _FRESH_WRITES * self._peers.every_seconds:
            return True
        if isinstance(trouble, Hang):
            return stillness.silence >= trouble.limit / 2
        return stillness.idle >= trouble.seconds / 2
