"""Finds and kills processes that must not outlive their attempt. Standard library only: the watchdog uses it too.

A process group is not enough: torchrun puts each worker into a session of its own, so SIGKILL to torchrun's group
leaves the workers behind, alone and busy. What every process of an attempt has in common is its environment, and Linux
shows it. Where there is no /proc the recorded process groups have to do.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_START_TIME_FIELD = 19
"""Index of the field in /proc/<pid>/stat, counted after the command's closing parenthesis."""
_LOOK_SECONDS = 0.02
_GONE_SECONDS = 5.0
"""Seconds for which a killed process may still exist; only a disk that hangs makes it that long."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process, distinguishable from a later one with the same id."""

    pid: int
    started: str


def identify(pid: int) -> Process | None:
    """Return the process with that id; None if it does not exist."""
    if (_PROC / "self").exists():
        with contextlib.suppress(OSError, IndexError):
            stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
            fields = stat.rpartition(")")[2].split()
            return None if fields[0] == "Z" else Process(pid=pid, started=fields[_START_TIME_FIELD])
        return None
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return Process(pid=pid, started=answer.stdout.strip()) if answer.stdout.strip() else None


def marked(variable: str) -> list[Process]:
    """Return the processes with `NAME=value` in their environment, except this one; none without /proc."""
    wanted = b"\0" + os.fsencode(variable) + b"\0"
    found = []
    for folder in _PROC.glob("[0-9]*"):
        try:
            environ = b"\0" + (folder / "environ").read_bytes()
        except OSError:  # gone, or somebody else's
            continue
        if wanted in environ and int(folder.name) != os.getpid():
            found.append(identify(int(folder.name)))
    return [process for process in found if process]


def leftovers(variable: str, recorded: Iterable[Process]) -> list[Process]:
    """Return the living processes of an attempt: those with its mark, and recorded ones that are still the same."""
    alive = {process.pid: process for process in recorded if identify(process.pid) == process}
    return list({**alive, **{process.pid: process for process in marked(variable)}}.values())


def send_signal(processes: Iterable[Process], signum: signal.Signals) -> None:
    """Send a signal to the processes themselves."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if identify(process.pid) == process:
                os.kill(process.pid, signum)


def kill(processes: Iterable[Process]) -> None:
    """Send SIGKILL to the processes and to the groups that they lead."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if identify(process.pid) == process and os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
    send_signal(processes, signal.SIGKILL)


def wait_gone(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Wait until the processes have ended; return those that are alive after the given seconds."""
    alive = list(processes)
    for _ in range(int(seconds / _LOOK_SECONDS)):
        alive = [process for process in alive if identify(process.pid) == process]
        if not alive:
            break
        time.sleep(_LOOK_SECONDS)
    return alive


def kill_marked(variable: str, recorded: Iterable[Process] = ()) -> int:
    """Send SIGKILL to all processes of an attempt, including those started meanwhile; return their number."""
    killed: set[Process] = set()
    recorded = tuple(recorded)
    while fresh := [process for process in leftovers(variable, recorded) if process not in killed]:
        kill(fresh)
        killed.update(fresh)
    wait_gone(killed, _GONE_SECONDS)
    return len(killed)
