"""From an error to one sentence on stderr and an exit code.

Bad input is 2, and so is what the machine refuses: a disk is full, a folder read-only, a reader gone. A bug is 70.
"""

import errno
import sys
import traceback

import click

from piton.contract import InputError

BAD_INPUT = 2
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def complain(sentence: str, code: int = BAD_INPUT) -> int:
    """Print the sentence, and return the exit code."""
    click.echo(f"piton: {' '.join(sentence.split())}", err=True)
    return code


def explain(error: Exception) -> int:
    """Say what is wrong with the input or the machine, or that Piton has made a mistake; return the exit code."""
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    if isinstance(error, InputError):
        return complain(str(error))
    if isinstance(error, OSError):
        return complain(_about(error))
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of Python, for `~`
        return complain("this user has no home, and HOME is not set; say export HOME=… with a folder to write to")
    if isinstance(error, ImportError) and not (error.name or "").startswith("piton."):  # commands import what they need
        part = "operator" if "operator" in sys.argv[1:3] else "trainer"
        return complain(f"the {part} is not installed here ({error}); say pip install 'piton-operator[{part}]'")
    what = f"internal error, {type(error).__name__}: {error}; that is a mistake of Piton's and not of your input"
    return complain(f"{what}. piton --debug with the same command prints the trace for a report", INTERNAL_ERROR)


def explain_end(error: SystemExit) -> int:
    """Say how something of the trainer's ended in this process; return the exit code."""
    detail = getattr(error, "detail", None)  # of a trainer's end: the disk is full, the volume is gone
    if detail is not None:
        return complain(str(detail))
    if isinstance(error.code, int | None):
        return error.code or 0
    return complain(str(error.code))


def _about(error: OSError) -> str:
    """Return a sentence about what the machine has refused."""
    name = error.filename2 or error.filename
    where = "" if name is None else f"{name if isinstance(name, str) else repr(name)}: "
    what = error.strerror or str(error) or type(error).__name__
    if error.errno in _FULL:
        return f"{where}{what}; make room on that disk, or name a folder on another one"
    if error.errno in _FORBIDDEN:
        return f"{where}{what}; name a place that you may read and write"
    return f"{where}{what}; piton --debug with the same command prints where that happened"
