"""The last words of a trainer: what became of it, for a person on stderr and for Piton in the termination message."""

import fcntl
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from piton.contract.termination import Outcome, ScriptEnd, Termination
from piton_trainer.config import Config, termination_log
from piton_trainer.errors import BadConfig, DeviceLost, Ended
from piton_trainer.runtime.device_faults import is_device_fault, is_out_of_memory
from piton_trainer.runtime.process_group import Ranks

_LESS_MEMORY = (
    "It needs more memory than there is: make each pass smaller (a recipe's deviceBatchSize, or more accumulation), "
    "or compute activations again (activationCheckpointing, gradientCheckpointing)."
)


def print_status(text: str) -> None:
    """Tell the person in front of the terminal, or whoever reads the pod's log."""
    sys.stderr.write(f"piton: {text}\n")
    sys.stderr.flush()


def outcome_of(error: BaseException | None) -> tuple[Outcome, str]:
    """Return the outcome of an exception that leaves the session, and its sentence."""
    if error is None:
        return Outcome.FINISHED, ""
    if isinstance(error, Ended):
        return error.outcome, error.detail
    if isinstance(error, SystemExit):
        return Outcome.FAILED, f"the script called sys.exit({error.code!r}) before its training was done"
    lines = str(error).strip().splitlines()
    told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if is_device_fault(error):
        return Outcome.DEVICE_LOST, told
    return Outcome.FAILED, f"{told} {_LESS_MEMORY}" if is_out_of_memory(error) else told


def end_as_lost_device(error: BaseException | None) -> None:
    """Give an error that says so the exit code of a lost device; its traceback, which that would hide, goes to stderr.

    Raises:
        DeviceLost: a device is lost.
    """
    outcome, detail = outcome_of(error)
    if error is not None and outcome is Outcome.DEVICE_LOST and not isinstance(error, DeviceLost):
        traceback.print_exception(error)
        raise DeviceLost(detail) from error


def config_of_environment() -> Config:
    """Return the trainer's configuration, from its environment.

    Raises:
        BadConfig: a variable makes no sense; the termination message says so.
    """
    try:
        return Config.from_env(os.environ)
    except ValueError as error:
        print_status(str(error))
        refusal = Termination(outcome=Outcome.BAD_CONFIG, detail=str(error))
        TerminationLog(termination_log(os.environ), Ranks()).leave(refusal)
        raise BadConfig(str(error)) from error


class TerminationLog:
    """The container's termination message. The file exists before us and cannot be replaced, only written."""

    def __init__(self, path: Path | None, ranks: Ranks) -> None:
        self._path = path
        self._ranks = ranks

    def clear(self) -> None:
        """Forget what an earlier process on this machine left behind."""
        if self._path is not None and self._ranks.local_rank == 0 and self._path.exists():
            self._write("")

    def leave(self, termination: Termination) -> None:
        """Write the message: one process of the container, or for a failure whoever fails first."""
        if self._path is None:
            return
        failed = termination.outcome in (Outcome.FAILED, Outcome.DEVICE_LOST, Outcome.DATA_UNAVAILABLE)
        if self._is_empty() if failed else self._ranks.local_rank == 0:
            self._write(termination.to_json())

    def note_script(self, end: ScriptEnd, error: str | None) -> None:
        """Add to the message of a finished training how the script ended: the last process, or whoever fails."""
        if self._path is None:
            return
        with suppress(OSError, UnicodeDecodeError), self._path.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            written = Termination.from_json(file.read())
            if written is None or not written.is_proof or written.script is ScriptEnd.FAILED:
                return
            left = (written.scripts_left or 1) - 1
            if end is ScriptEnd.ENDED and left:
                end = ScriptEnd.RUNNING
            file.seek(0)
            file.truncate()
            file.write(replace(written, script=end, script_error=error, scripts_left=left or None).to_json())

    def _is_empty(self) -> bool:
        return self._path is not None and not (self._path.exists() and self._path.stat().st_size)

    def _write(self, text: str) -> None:
        if self._path is not None:
            try:
                self._path.write_text(text, encoding="utf-8")
            except OSError as error:
                print_status(f"the termination message cannot be written: {error}")
