"""The end of a script whose session has finished its training, for the container's last words.

An evaluation or an export may follow the session. Its exit code says whether it went well, but torchrun turns every end
of its processes into exit code 1, and libraries abort interpreters that have nothing left to do. So the script's own
end is written down as well, by Python's last hook before the interpreter goes.
"""

import atexit
import builtins
import dis
import os
import sys
import threading
from types import FrameType
from typing import NoReturn

from piton.contract.termination import ScriptEnd
from piton_trainer.termination import TerminationLog

_TORCHRUN, _PROCESSES = "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"
"""Set by torchrun in its processes."""
_UNKNOWN = object()
"""Exit status of a script that has called neither `sys.exit` nor `exit` nor `quit`."""


def is_launched() -> bool:
    """True if torchrun started this process, and hides its exit code."""
    return _TORCHRUN in os.environ


def processes() -> int | None:
    """Return how many processes of this container run the script; None: torchrun has not started any."""
    return int(os.environ.get(_PROCESSES) or 1) if is_launched() else None


def watch(log: TerminationLog) -> None:
    """Write to this log, from now on, what becomes of the script."""
    _script.watch(log)


def forget() -> None:
    """Begin another session: its end is not the script's."""
    _script.log = None


class _Script:
    """The script that goes on after a session in this process."""

    def __init__(self) -> None:
        self.log: TerminationLog | None = None
        self._process: int | None = None
        """None: the hooks are not installed."""
        self._survived: BaseException | None = None
        """An exception that an interactive session has survived."""
        self._exit_status: object = _UNKNOWN
        """Status of the newest call of `sys.exit`, `exit` or `quit`."""
        self._outermost: FrameType | None = None
        """Outermost frame of the main thread. The script ends when this frame ends."""

    def watch(self, log: TerminationLog) -> None:
        """Install the hooks, once, and begin anew."""
        if self._process is None:
            self._process = os.getpid()
            atexit.register(self._note)
            if is_launched():
                sys.exit = self._exit
                builtins.exit = builtins.quit = self._exit  # type: ignore[assignment]
        self.log, self._survived, self._exit_status = log, getattr(sys, "last_value", None), _UNKNOWN
        self._outermost = _outermost_frame()

    def _exit(self, code: object = None) -> NoReturn:
        """Record the status for the `atexit` hook, which cannot learn it otherwise. Then exit as `sys.exit` does."""
        self._exit_status = code
        raise SystemExit(code)

    def _note(self) -> None:
        if self.log is None or self._process != os.getpid():
            return
        error = self._error()
        self.log.note_script(ScriptEnd.ENDED if error is None else ScriptEnd.FAILED, error)

    def _error(self) -> str | None:
        """Return the exception or the exit status that ends the script; None if it ended well."""
        error = getattr(sys, "last_value", None)
        if error is not None and error is not self._survived:
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        if not is_launched() or self._outermost is None or _has_returned(self._outermost):
            return None  # without torchrun the exit code has the status
        if self._exit_status is _UNKNOWN:
            return "SystemExit"
        return None if self._exit_status in (None, 0) else f"sys.exit({self._exit_status!r})"


def _outermost_frame() -> FrameType | None:
    """Return the outermost frame of the main thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - a public function
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _has_returned(frame: FrameType) -> bool:
    """True if the frame ran to its end. False if an exception ended it, such as `raise SystemExit(3)`."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN_")


_script = _Script()
