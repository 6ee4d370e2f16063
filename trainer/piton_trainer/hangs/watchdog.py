"""The process that watches the ranks of one node. It imports no torch, and ends with the rank that started it.

the trainer   Watchdog(settings)          leave()
the process   a look every second -> Rule -> stacks on the volume, the termination message, the end of the ranks
"""

import select
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from piton.contract.duration import format_duration
from piton.contract.termination import Outcome, Termination
from piton_trainer.config import Config
from piton_trainer.hangs import collect
from piton_trainer.hangs.detection import AUTO_SECONDS, Hang, HangDetector, Idle
from piton_trainer.hangs.heartbeats import EXIT_SIGNAL, Heartbeat, Heartbeats, Reader, SharedHeartbeats, folder_of
from piton_trainer.hangs.peers import Exchange, Peers, Stillness
from piton_trainer.runtime import child_process

if TYPE_CHECKING:
    from piton_trainer.runtime.process_group import Ranks

LOOK_SECONDS = 1.0
LOOKS = 20
"""In a limit there are at least so many looks."""
TELL_SECONDS = 30.0
OTHERS_SECONDS = 5.0
"""Seconds that the ranks live on after their stacks are written: other nodes write theirs before connections break."""
KEEP_SECONDS = 20.0
"""Seconds that the checkpoint volume may take to store the stacks."""


@dataclass(frozen=True, kw_only=True)
class WatchdogSettings:
    """Settings of the process."""

    beats: Path
    """Folder in which the ranks of the node write."""
    directory: Path
    """The checkpoint directory."""
    attempt: int
    limit_seconds: float | None
    """None: the automatic limit."""
    termination_log: Path | None
    node: int
    nodes: int

    @property
    def folder(self) -> Path:
        """Folder in which stacks are kept."""
        return self.directory / FOLDER / f"attempt-{self.attempt}"

    @property
    def look_seconds(self) -> float:
        """From one look to the next."""
        return min(LOOK_SECONDS, self._limit / LOOKS)

    @property
    def asleep_seconds(self) -> float:
        """A look that comes so long after the one before: the machine, or the container, has slept."""
        return max(1.0, min(10.0, self._limit / 4))

    def exchange(self) -> Exchange | None:
        """Return the running exchange with the watchdogs of other nodes, if there are any."""
        if self.nodes == 1:
            return None
        every = min(TELL_SECONDS, self._limit / 4)
        exchange = Exchange(Peers(self.directory / FOLDER, node=self.node, nodes=self.nodes, every_seconds=every))
        exchange.start()
        return exchange

    @property
    def _limit(self) -> float:
        return AUTO_SECONDS if self.limit_seconds is None else self.limit_seconds


FOLDER = ".hangs"


class Watchdog:
    """The process, as the rank that starts it sees it."""

    def __init__(self, settings: WatchdogSettings) -> None:
        """Start to watch.

        Raises:
            OSError: no process can be started.
        """
        self._helper = child_process.ChildProcess("piton_trainer.hangs.watchdog")
        self._helper.line.send(settings)

    def leave(self) -> None:
        """The attempt ends in order, or by an error that is known: nobody has to watch."""
        self._helper.kill()


def watched(config: Config, ranks: "Ranks", *, attempt: int) -> tuple[Heartbeats, Watchdog | None]:
    """Return this rank's heartbeats; one rank of each node also starts the watchdog process."""
    if config.hang_timeout is None:
        return Heartbeats(), None
    folder = folder_of(config.checkpoint_dir)
    try:
        beats = SharedHeartbeats(folder, ranks.rank)
        if ranks.local_rank != 0:
            return beats, None
        settings = WatchdogSettings(
            beats=folder,
            directory=config.checkpoint_dir,
            attempt=attempt,
            limit_seconds=None if config.hang_timeout == "auto" else config.hang_timeout,
            termination_log=config.termination_log,
            node=ranks.rank // ranks.local_world_size,
            nodes=-(-ranks.world_size // ranks.local_world_size),
        )
        return beats, Watchdog(settings)
    except OSError as error:
        print_status(f"nobody watches for hangs: {error}")
        return Heartbeats(), None


def watch(
    settings: WatchdogSettings, sleep: Callable[[float], bool], *, now: Callable[[], float] = time.monotonic
) -> None:
    """Look at the ranks until they hang. `sleep` says whether there is anybody left to watch."""
    rule, moved, reader = (
        HangDetector(limit_seconds=settings.limit_seconds, now=now()),
        collect.Moved(),
        Reader(settings.beats),
    )
    exchange = settings.exchange()
    collect.sweep(settings.beats)
    looked = now()
    while sleep(settings.look_seconds):
        before, looked = looked, now()
        if looked - before > settings.asleep_seconds:
            rule.forgive(looked)
        beats = collect.with_stopped(reader.read())
        if not beats:
            continue
        trouble = rule.judge(beats, moved=moved.look((beat.pid for beat in beats), looked), now=looked)
        if exchange is not None:
            exchange.own = Stillness(silence=rule.silence(beats, looked), idle=rule.idle(looked))
            if trouble is not None and not exchange.agrees(trouble, looked):
                continue
        if trouble is not None:
            end(settings, beats, trouble)
            return


def end(settings: WatchdogSettings, beats: list[Heartbeat], trouble: Hang | Idle) -> None:
    """Collect what there is, say it, and end the ranks."""
    texts = collect.stacks(settings.beats, beats)
    outcome, cause = _cause(trouble)
    said = f"{cause}; {collect.summary(texts)}; stacks: {settings.folder}"
    print_status(said)
    durable = [beat.durable_step for beat in beats if beat.durable_step is not None]
    last = Termination(outcome=outcome, step=trouble.step, checkpoint_step=max(durable, default=None), detail=said)
    _leave(settings.termination_log, last)
    _keep(settings, beats, texts)
    if settings.nodes > 1:
        time.sleep(OTHERS_SECONDS)
    shutil.rmtree(settings.beats, ignore_errors=True)
    child_process.outlive()
    collect.end(beats, signum=EXIT_SIGNAL)


def _keep(settings: WatchdogSettings, beats: list[Heartbeat], texts: dict[int, str]) -> None:
    """Write the stacks to the volume. It may be the volume that does not answer: the ranks are ended all the same."""

    def keep() -> None:
        try:
            collect.keep(settings.folder, texts, collect.collectives(settings.beats, beats))
        except OSError as error:
            print_status(f"the stacks could not be written to {settings.folder}: {error}")

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    thread.join(KEEP_SECONDS)
    if thread.is_alive():
        print_status(f"{settings.folder} takes no stacks: the checkpoint volume does not answer")


def _cause(trouble: Hang | Idle) -> tuple[Outcome, str]:
    seconds = format_duration(round(trouble.seconds))
    if isinstance(trouble, Hang):
        limit = format_duration(round(trouble.limit)) if trouble.limit >= 1 else f"{trouble.limit:g}s"
        return Outcome.HUNG, f"no step for {seconds} after step {trouble.step}; limits.hangTimeout is {limit}"
    return Outcome.VOLUME_LOST, (
        f"nothing was read, written or computed for {seconds} after step {trouble.step}, in a start, a restore or a "
        "wait for data"
    )


def _leave(path: Path | None, termination: Termination) -> None:
    """Write the termination message, unless a rank has written one."""
    if path is None:
        return
    try:
        if not path.exists() or path.stat().st_size == 0:
            path.write_text(termination.to_json(), encoding="utf-8")
    except OSError as error:
        print_status(f"the termination message cannot be written: {error}")


def print_status(text: str) -> None:
    """Tell whoever reads the pod's log."""
    sys.stderr.write(f"piton: {text}\n")
    sys.stderr.flush()


def _sleeper(line: Connection) -> Callable[[float], bool]:
    """Sleeps until the time has passed, or the trainer has hung up."""
    return lambda seconds: not select.select([line], [], [], seconds)[0]


def main() -> None:
    """Watch until the trainer is gone."""
    line, _ = child_process.join()
    watch(line.recv(), _sleeper(line))


if __name__ == "__main__":
    main()
