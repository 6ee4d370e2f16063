"""The end of a script whose session has finished its training, for the container's last words.

An evaluation or an export may follow the session. Its exit code says whether it went well, but torchrun turns every end
of its processes into exit code 1, and libraries abort interpreters that have nothing left to do. So the script's own
end is written down as well, by Python's last hook before the interpreter goes.
"""

import atexit
import os
import sys
from typing import NoReturn

from piton.contract.termination import ScriptEnd
from piton_trainer.termination import TerminationLog

_TORCHRUN, _PROCESSES = "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"
"""Set by torchrun in its processes."""


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
        self._exit_status: object = None

    def watch(self, log: TerminationLog) -> None:
        """Install the hooks, once, and begin anew."""
        if self._process is None:
            self._process = os.getpid()
            atexit.register(self._note)
            if is_launched():
                sys.exit = self._exit
        self.log, self._survived, self._exit_status = log, getattr(sys, "last_value", None), None

    def _exit(self, status: object = None, /) -> NoReturn:
        """Exit as `sys.exit` does. Nothing else tells the last hook with which status."""
        self._exit_status = status
        raise SystemExit(status)

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
        return None if self._exit_status in (None, 0) else f"sys.exit({self._exit_status!r})"


_script = _Script()
