"""Evidence on the ranks of a node that hangs: their stacks, and the state of their processes in /proc."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from piton_trainer.hangs.heartbeats import (
    NCCL_DUMP,
    NCCL_PIPE,
    STACKS_SIGNAL,
    Heartbeat,
    RankPhase,
    Reader,
    stacks_path,
)

STACKS_SECONDS = 5.0
"""Seconds that a rank may take to write its stacks."""
KEPT_ATTEMPTS = 5
_STOPPED = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})
_FRAMES = 3
_GROUPS = 3
_STALE_SECONDS = 3600.0
_KERNEL_FILES = ("status", "wchan", "stack", "syscall")
_STATUS_FIELDS = ("State", "SigBlk", "SigIgn", "SigCgt", "Threads", "VmRSS", "voluntary_ctxt_switches")


def stacks(folder: Path, beats: Sequence[Heartbeat], *, wait: Callable[[float], object] = time.sleep) -> dict[int, str]:
    """By rank, what can be said of its process. One that is stopped, or inside the kernel, writes no stacks."""
    requested = [beat for beat in beats if state_of(beat.pid) not in _STOPPED]
    for beat in requested:
        with suppress(OSError):
            os.kill(beat.pid, STACKS_SIGNAL)
    waited = 0.0
    while waited < STACKS_SECONDS and not all(_is_written(stacks_path(folder, beat.rank)) for beat in requested):
        wait(0.1)
        waited += 0.1
    return {beat.rank: _text(folder, beat) for beat in beats}


def _text(folder: Path, beat: Heartbeat) -> str:
    return "\n".join([_header(beat), *_kernel(beat.pid), "", _read(stacks_path(folder, beat.rank))])


def collectives(
    folder: Path, beats: Sequence[Heartbeat], *, wait: Callable[[float], object] = time.sleep
) -> list[Path]:
    """Return the records of NCCL's flight recorder by rank; empty without a GPU."""
    requested = [beat.rank for beat in beats if _requests(folder / f"{NCCL_PIPE}{beat.rank}.pipe")]
    dumps, sizes, waited = [folder / f"{NCCL_DUMP}{rank}" for rank in requested], [-1], 0.0
    while requested and waited < STACKS_SECONDS:
        before, sizes = sizes, [path.stat().st_size if path.exists() else 0 for path in dumps]
        if all(sizes) and sizes == before:
            break
        wait(0.5)
        waited += 0.5
    return [path for path in dumps if path.exists()]


def _requests(pipe: Path) -> bool:
    try:
        end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # there is none, or nobody reads from it
        return False
    with os.fdopen(end, "wb") as file:
        file.write(b"1\n")
    return True


def keep(folder: Path, texts: dict[int, str], dumps: Iterable[Path]) -> None:
    """Write what was found, a file for each rank; older attempts' folders beside it are bounded.

    Raises:
        OSError: the volume does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for rank, text in texts.items():
        (folder / f"rank-{rank}.txt").write_text(text, encoding="utf-8")
    for dump in dumps:
        shutil.copyfile(dump, folder / dump.name)
    others = sorted(folder.parent.glob("attempt-*"), key=lambda path: path.stat().st_mtime)
    for old in others[:-KEPT_ATTEMPTS]:
        shutil.rmtree(old, ignore_errors=True)


def summary(texts: Mapping[int, str]) -> str:
    """Summarise the positions of the ranks in one line; those with the fewest ranks first: the others wait for them."""
    groups: dict[str, list[int]] = {}
    for rank, text in sorted(texts.items()):
        groups.setdefault(where(text), []).append(rank)
    shown = sorted(groups.items(), key=lambda group: len(group[1]))[:_GROUPS]
    return "; ".join(f"rank {', '.join(map(str, ranks))}: {place}" for place, ranks in shown)


def where(text: str) -> str:
    """The innermost frames of the main thread, in one line; what the kernel says, where there are no stacks."""
    _, _, main = text.partition("Current thread")
    frames = [line.strip() for line in main.splitlines() if line.strip().startswith("File ")]
    if frames:
        return " < ".join(_short(frame) for frame in frames[:_FRAMES])
    state = next((line for line in text.splitlines() if line.startswith("State:")), "State: unknown")
    return f"no stack, process {state.partition(':')[2].strip()}"


def _short(frame: str) -> str:
    """`File "/a/b/c.py", line 3 in f` as `f (b/c.py:3)`."""
    path, _, rest = frame.removeprefix('File "').partition('", line ')
    line, _, function = rest.partition(" in ")
    return f"{function} ({'/'.join(path.split('/')[-2:])}:{line})"


def end(beats: Iterable[Heartbeat], *, signum: int, wait: Callable[[float], object] = time.sleep) -> None:
    """End the ranks, also those that are stopped and those with PID 1 of a container."""
    pids = [beat.pid for beat in beats]
    for each in (signal.SIGCONT, signum):
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, each)
    for _ in range(10):
        if not any(_is_alive(pid) for pid in pids):
            return
        wait(0.1)
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def sweep(own: Path) -> None:
    """Take away what ranks have left behind that were killed, beside the folder of these."""
    for folder in own.parent.glob(f"{own.name.rpartition('-')[0]}-*"):
        with suppress(OSError):
            old = own.stat().st_mtime - folder.stat().st_mtime > _STALE_SECONDS
            if old and folder != own and folder.stat().st_uid == os.getuid() and not Reader(folder).read():
                shutil.rmtree(folder, ignore_errors=True)


def with_stopped(beats: Iterable[Heartbeat]) -> list[Heartbeat]:
    """The same; a process that is stopped (SIGSTOP) counts as one inside a step: it will not go on by itself."""
    waits = (RankPhase.STARTING, RankPhase.BETWEEN)
    return [
        replace(beat, phase=RankPhase.STEPPING)
        if beat.phase in waits and state_of(beat.pid) == psutil.STATUS_STOPPED
        else beat
        for beat in beats
    ]


def state_of(pid: int) -> str:
    """The state of a process, as psutil calls it; dead where it does not exist."""
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return psutil.STATUS_DEAD


def _is_alive(pid: int) -> bool:
    return state_of(pid) not in (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE)


def _is_written(path: Path) -> bool:
    """True if the stacks are there to the end: faulthandler writes the thread that got the signal last."""
    text = _read(path)
    return "Current thread" in text and text.endswith("\n")


def _header(beat: Heartbeat) -> str:
    return f"rank {beat.rank}, process {beat.pid}, step {beat.step}, {beat.phase.name.lower()}"


def _kernel(pid: int) -> Iterator[str]:
    for name in _KERNEL_FILES:
        text = _read(Path(f"/proc/{pid}/{name}"))
        if name == "status":
            yield from (line for line in text.splitlines() if line.split(":")[0] in _STATUS_FIELDS)
        elif text.strip():
            yield f"{name}: {text.strip()}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


class Moved:
    """Counts the minutes in which the ranks and their children have read, written or computed something.

    What a process does beside its work, a metrics endpoint that is read for example, is less than that in a minute.
    """

    WINDOW_SECONDS, BYTES, CPU_SECONDS = 60.0, 262_144, 3.0

    def __init__(self) -> None:
        self._before: tuple[float, int, float] | None = None
        self._count = 0

    def look(self, pids: Iterable[int], now: float) -> int:
        """The count, after a look at these processes and all below them but this one."""
        if self._before is not None and now - self._before[0] < self.WINDOW_SECONDS:
            return self._count
        found = [_usage(process) for process in _with_children(pids)]
        size, seconds = sum(each[0] for each in found), sum(each[1] for each in found)
        if self._before is not None:
            _, old_size, old_seconds = self._before
            fell = size < old_size or seconds < old_seconds  # a process has ended
            self._count += fell or size - old_size >= self.BYTES or seconds - old_seconds >= self.CPU_SECONDS
        self._before = (now, size, seconds)
        return self._count


def _usage(process: psutil.Process) -> tuple[int, float]:
    """Bytes read and written by system calls, and seconds of CPU, of one process."""
    try:
        counts, times = process.io_counters(), process.cpu_times()
    except psutil.Error:
        return 0, 0.0
    return counts.read_chars + counts.write_chars, times.user + times.system


def _with_children(pids: Iterable[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            found += [process, *(child for child in process.children(recursive=True) if child.pid != os.getpid())]
    return found
