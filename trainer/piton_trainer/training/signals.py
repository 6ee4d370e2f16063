"""SIGTERM and SIGINT as a flag.

A handler does nothing but remember; the training loop looks at the flag at a step boundary, where all ranks agree.
A terminal that vanishes (SIGHUP) ends no training. A second Ctrl-C ends a step that does not end by itself.

torchrun and terminals signal a whole process group. A data loader's workers are in it, die at once, and the step under
way with them, before there is a boundary to save at. So what is forked while the signals are ours leaves the group, and
so does what multiprocessing starts by exec (`spawn`, and the server of `forkserver`): it hears from the trainer alone.
It ends with the trainer all the same, as multiprocessing and torch see to.
"""

import multiprocessing.util
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from piton.contract.termination import ExitCode

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STDERR = 2
SAME_SECONDS = 1.0
"""Seconds in which a second SIGINT is the same Ctrl-C: a terminal signals the group, and a launcher passes it on."""
_FIRST_INTERRUPT = b"piton: the training saves and stops after this step; Ctrl-C once more ends it at once, unsaved\n"
_holders: "set[StopFlag]" = set()
"""The flags that have installed their handlers."""


class StopFlag:
    """Remembers that a stop signal came, from `install` until `restore`."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._interrupted_at: float | None = None
        self._owner = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take the signals over. Python allows that in the main thread only; elsewhere nothing happens."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in STOP_SIGNALS:
            self._before[signum] = signal.signal(signum, self._remember)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _holders.add(self)

    def listen(self) -> None:
        """Take them over from whoever has done so since. Those from before `install` are still the ones given back."""
        for signum in STOP_SIGNALS:
            if signum in self._before:
                signal.signal(signum, self._remember)

    def restore(self) -> None:
        """Give the signals back to whoever had them before."""
        for signum, handler in self._before.items():
            # None: the handler before was not installed from Python, so it cannot be given back.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
        _holders.discard(self)

    def _remember(self, signum: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # A child that was forked with our handler, by a data loader say, has no boundary to stop at.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.received = signal.Signals(signum)
        if self.received is signal.SIGINT:
            self._interrupt()

    def _interrupt(self) -> None:
        """Ctrl-C: after the first the training stops at a boundary; the second is for a step that does not end.

        Raises:
            KeyboardInterrupt: it is the second.
        """
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            with suppress(OSError):
                os.write(_STDERR, _FIRST_INTERRUPT)  # a print may be under way, which cannot be entered again
        elif now - self._interrupted_at >= SAME_SECONDS:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the third ends what does not even heed an exception
            raise KeyboardInterrupt


def stop_at_once() -> None:
    """End on SIGTERM, until a `StopFlag` takes it over: training has not begun, so there is nothing to save.

    The kernel ignores signals to a container's first process that have no handler. Without one, a pod that is told to
    stop while torch is imported would be held for its whole grace of 100 s.
    """
    signal.signal(signal.SIGTERM, lambda _signum, _frame: os._exit(ExitCode.STOPPED))


def _leave_the_group() -> None:
    if _holders:
        os.setpgid(0, 0)


_spawn: Callable[..., int] = multiprocessing.util.spawnv_passfds


def _spawn_outside_the_group(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """Start a process for multiprocessing, which waits for it. Nobody can move it once it has begun: it is begun there.

    Its children, those of a fork server, are in its group.
    """
    if not _holders:
        return _spawn(path, args, passfds)
    process = subprocess.Popen(args, executable=path, pass_fds=passfds, process_group=0, restore_signals=False)
    process.returncode = 0  # it is not ours to wait for
    return process.pid


os.register_at_fork(after_in_child=_leave_the_group)
multiprocessing.util.spawnv_passfds = _spawn_outside_the_group
