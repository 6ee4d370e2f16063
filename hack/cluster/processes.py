"""Long-running processes: each in a session of its own, with a log and a pid file, stopped by its id.

A pid file names the start time as well, so that a number that the kernel has given to somebody else is never killed.
What runs on a node also runs in the node's cgroup, and so does everything that it starts:
that is how a whole node is killed.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hack.cluster.layout import LOGS, PIDS
from hack.cluster.shell import BoxError

_POLL_SECONDS = 0.05
_DEATH_SECONDS = 10.0
_CGROUPS = Path("/sys/fs/cgroup")
_IN_CGROUP = 'echo $$ > "$0" && exec "$@"'


def start(name: str, command: Sequence[str | Path], *, cgroup: str | None = None) -> None:
    """Start `command` and leave it running; its output goes to its log."""
    words = [str(word) for word in command]
    if cgroup:
        words = ["sh", "-c", _IN_CGROUP, str(_join(cgroup)), *words]
    LOGS.mkdir(parents=True, exist_ok=True)
    PIDS.mkdir(parents=True, exist_ok=True)
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log_of(name)), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawnp(words[0], words, os.environ, file_actions=files, setsid=True)  # nobody here waits for it
    _pid_file(name).write_text(f"{pid} {_start_time(pid)}\n")


def stop(name: str, *, seconds: float = 5.0) -> None:
    """SIGTERM, and SIGKILL to its process group when that takes too long. Stopping what is not running is fine."""
    if pid := running(name):
        os.kill(pid, signal.SIGTERM)
        if not _true_within(seconds, lambda: not running(name)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            _true_within(_DEATH_SECONDS, lambda: not running(name))  # its port is free only then
    _pid_file(name).unlink(missing_ok=True)


def running(name: str) -> int | None:
    """Its process id, or None when it does not run."""
    try:
        pid, started = _pid_file(name).read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    lives = _start_time(int(pid)) == started
    with contextlib.suppress(ChildProcessError):  # reap it where we are the parent, whenever it is found dead
        os.waitpid(int(pid), os.WNOHANG)
    return int(pid) if lives else None


def names() -> list[str]:
    """Everything that was started and not stopped since."""
    return sorted(path.stem for path in PIDS.glob("*.pid"))


def log_of(name: str) -> Path:
    """Where its output goes."""
    return LOGS / f"{name}.log"


def wait_for(what: str, true: Callable[[], bool], *, seconds: float, of: str | None = None) -> None:
    """Wait until `true()`.

    Raises:
        BoxError: It took too long, or the process `of` has died; quotes the end of its log.
    """
    if _true_within(seconds, lambda: true() or (of is not None and not running(of))) and true():
        return
    tail = log_of(of).read_text(errors="replace")[-1500:] if of and log_of(of).exists() else ""
    raise BoxError(f"waited {seconds:.0f} s in vain: {what}" + (f"; {log_of(of)} ends with:\n{tail}" if of else ""))


def kill_cgroup(cgroup: str) -> None:
    """SIGKILL to everything in it, all at one moment: as a machine dies, nothing on it sees the rest die.

    Raises:
        BoxError: Something survived.
    """
    top = _hierarchy() / cgroup.lstrip("/")
    _freeze(top, frozen=True)
    for pid in _pids(top):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _freeze(top, frozen=False)
    if not _true_within(20, lambda: not _pids(top)):
        raise BoxError(f"processes in {top} survived SIGKILL: {_pids(top)}")


def members(cgroup: str) -> dict[int, str]:
    """Everything that runs in it: process ids and command lines."""
    found = {}
    for pid in _pids(_hierarchy() / cgroup.lstrip("/")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            found[pid] = line.decode(errors="replace")
    return found


def remove_cgroup(cgroup: str) -> None:
    """Remove it and those below it, in every hierarchy."""
    tops = [_CGROUPS / cgroup.lstrip("/"), *_CGROUPS.glob(f"*/{cgroup.lstrip('/')}")]
    for top in tops:
        below = sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True)
        for folder in [*below, top]:
            with contextlib.suppress(FileNotFoundError):
                _true_within(2, lambda folder=folder: _removed(folder))  # type: ignore[misc]


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True


def _hierarchy() -> Path:
    """The tree to count processes by: the freezer's in cgroup v1, the only one in v2."""
    freezer = _CGROUPS / "freezer"
    return freezer if freezer.is_dir() else _CGROUPS


def _join(cgroup: str) -> Path:
    """The file to write a pid to. In v2 a cgroup with children may hold no processes itself, hence the leaf."""
    if _hierarchy() != _CGROUPS:  # v1: the kubelet wants its root in every hierarchy
        for procs in _CGROUPS.glob("*/cgroup.procs"):
            (procs.parent / cgroup.lstrip("/")).mkdir(parents=True, exist_ok=True)
    leaf = _hierarchy() / cgroup.lstrip("/") / "daemons"
    leaf.mkdir(parents=True, exist_ok=True)
    return leaf / "cgroup.procs"


def _freeze(top: Path, *, frozen: bool) -> None:
    for name, values in (("freezer.state", ("THAWED", "FROZEN")), ("cgroup.freeze", ("0", "1"))):
        if (top / name).exists():
            (top / name).write_text(values[frozen])


def _pids(top: Path) -> list[int]:
    return [int(pid) for path in top.rglob("cgroup.procs") for pid in path.read_text().split()]


def _pid_file(name: str) -> Path:
    return PIDS / f"{name}.pid"


def _start_time(pid: int) -> str | None:
    """The 22nd field of its stat, after the name in parentheses; None for the dead and for zombies.

    A process whose first thread is a zombie lives on, with its ports, until the last of its threads is gone.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" and threads <= 1 else fields[19]


def _true_within(seconds: float, true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
