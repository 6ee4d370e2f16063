"""Starts the processes of an AppDef through TorchX's local scheduler, behind an interface of our own.

TorchX turns the AppDef into commands and environments, one per replica, and knows the macros. Its own polling and
killing are not used: they hide exit codes, wait 10 s, and reach only the process group.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path

from torchx import specs
from torchx.schedulers.local_scheduler import CWDImageProvider, LocalScheduler

from piton.api.validation_env import is_reserved
from piton.contract import names
from piton.local import orphans

LOG_FILE = "output.log"
_SHELL_SIGNAL_BASE = 128

logging.getLogger("torchx.schedulers.local_scheduler").setLevel(logging.ERROR)  # it warns of GPUs that we hand out


class Replica:
    """One replica: a process in a session of its own, with its child processes."""

    def __init__(self, *, name: str, process: subprocess.Popen[bytes], mark: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._mark = mark
        self._exit_code: int | None = None
        self.identity = orphans.identify(process.pid)

    @property
    def exit_code(self) -> int | None:
        """Exit code of its main process, as a shell reports it (137 for SIGKILL); None while it runs."""
        if self._exit_code is None and (code := self._process.poll()) is not None:
            self._exit_code = code if code >= 0 else _SHELL_SIGNAL_BASE - code
            self.kill_rest()  # a container takes everything with it, too
        return self._exit_code

    def terminate(self) -> None:
        """Send SIGTERM to the main process only, as the kubelet does; it has to stop its child processes itself."""
        self._process.terminate()

    def kill_group(self) -> None:
        """Send SIGKILL to its process group."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill_rest(self) -> None:
        """Send SIGKILL to its processes outside the group."""
        orphans.kill_marked(self._mark)


def kill(replicas: Sequence[Replica]) -> None:
    """Send SIGKILL to all processes of these replicas, to all groups first, so that they end together."""
    for replica in replicas:
        replica.kill_group()
    for replica in replicas:
        replica.kill_rest()


def literal(text: str) -> str:
    """Escape the text against TorchX's macros."""
    return text.replace("$", "$$")


def start(app: specs.AppDef, *, logs: Path, devices: Sequence[str]) -> tuple[Replica, ...]:
    """Start every replica of the app's only role; each gets its share of the devices.

    Raises:
        OSError: a program cannot be started; nothing is left running.
    """
    role = app.roles[0]
    scheduler = _scheduler(role)
    info = scheduler.submit_dryrun(app, {"log_dir": str(logs)})
    request = info.request
    request.log_dir = str(logs)
    request.role_log_dirs[role.name] = [str(logs / f"{role.name}-{i}") for i in range(role.num_replicas)]
    for index, parameters in enumerate(request.role_params[role.name]):
        parameters.stdout = str(logs / f"{role.name}-{index}" / LOG_FILE)
        parameters.stderr = parameters.combined = None
        if role.resource.gpu:
            share = devices[index * role.resource.gpu : (index + 1) * role.resource.gpu]
            parameters.env["CUDA_VISIBLE_DEVICES"] = ",".join(share)
    try:
        scheduler.schedule(info)
    except OSError:
        for process in scheduler.started:
            process.kill()
            process.wait()
        raise
    return tuple(
        Replica(
            name=f"{role.name}-{index}",
            process=process,
            mark=f"{names.ENV_TERMINATION_LOG}={parameters.env[names.ENV_TERMINATION_LOG]}",
            log=Path(parameters.stdout),
        )
        for index, (process, parameters) in enumerate(
            zip(scheduler.started, request.role_params[role.name], strict=True)
        )
    )


def _scheduler(role: specs.Role) -> "_Scheduler":
    """A scheduler for one attempt. Its constructor takes SIGTERM and SIGINT away from us; they are taken back."""
    with _own_signals():
        return _Scheduler(own_env=frozenset(role.env))


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = (signal.SIGINT, signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)
    handlers = {signum: signal.getsignal(signum) for signum in ours}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Scheduler(LocalScheduler):  # type: ignore[misc]
    """TorchX's scheduler with processes started our way."""

    def __init__(self, own_env: frozenset[str]) -> None:
        super().__init__("piton", CWDImageProvider)
        self.own_env = own_env
        self.started: list[subprocess.Popen[bytes]] = []

    def run_local_job(
        self, args: list[str], env: dict[str, str], stdout: FileIO | None, stderr: None, cwd: str | None = None
    ) -> "subprocess.Popen[bytes]":
        """Both outputs in one file, no terminal to read from, and no rank of a surrounding job in the environment."""
        stale = [name for name in env if is_reserved(name) and name not in self.own_env]
        env = {name: value for name, value in env.items() if name not in stale}
        env["PATH"] = search_path()
        with stdout or contextlib.nullcontext():  # the child has its own
            process = subprocess.Popen(
                args,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr or stdout,
                cwd=cwd,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def close(self) -> None:
        """Nothing: TorchX would stop the processes as soon as the scheduler is forgotten."""


def search_path() -> str:
    """PATH with this interpreter's programs first, so that a command's `python` is this one."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


@contextlib.contextmanager
def watchdog(variable: str, grace_seconds: float) -> Iterator[None]:
    """While this lasts, whatever carries the variable is stopped should this process vanish."""
    command = [sys.executable, "-P", "-m", "piton.local.watchdog", variable, str(grace_seconds)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
