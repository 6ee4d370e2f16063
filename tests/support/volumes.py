"""Volumes that fail in the middle of a run, in real processes.

trouble = Trouble(directory)    in a rank's process: from now on it and its writer depend on the volume's health
trouble.begin(errno.EIO)        every use of a file in the directory fails so
trouble.end()

small = mounted("4m")           a real volume of its own; root only
"""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SHIM = """
import errno, os, sys

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}

def reads(event, arguments):
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    return event in {"os.listdir", "os.scandir"} or (event == "open" and not (arguments[2] or 0) & writing)

def hook(event, arguments):
    if event not in EVENTS or os.environ["VOLUME"] not in str(arguments[0]):
        return
    if os.path.exists(os.environ["VOLUME_TROUBLE"]):
        code = int(open(os.environ["VOLUME_TROUBLE"]).read())
        if code != errno.EROFS or not reads(event, arguments):
            raise OSError(code, os.strerror(code))

sys.addaudithook(hook)
"""
_IN_THE_WRITER = f"import sys\nif 'piton_trainer.checkpoint.save.writer' in sys.orig_argv:\n    exec({_SHIM!r})\n"


class Trouble:
    """What this process and its writer get to hear from the volume of a directory. There is no way back: fork first."""

    def __init__(self, directory: Path) -> None:
        self._file = directory.with_name(f"trouble-{os.environ['RANK']}")
        os.environ.update({"VOLUME": str(directory), "VOLUME_TROUBLE": str(self._file)})
        site = self._file.with_suffix(".site")
        site.mkdir()
        (site / "sitecustomize.py").write_text(_IN_THE_WRITER)
        sys.path.insert(0, str(site))
        exec(_SHIM, {})

    def begin(self, code: int) -> None:
        """From now on."""
        aside = self._file.with_suffix(".new")
        aside.write_text(str(code))
        aside.rename(self._file)

    def end(self) -> None:
        """All is well again."""
        self._file.unlink()


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A volume of its own, which may be filled and made read-only. It is unmounted whatever happens."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a volume")
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a volume")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, how: str) -> None:
    """`ro` or `rw`."""
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def fill(folder: Path, *, leave: int) -> Path:
    """Leave so many bytes; the file that takes the rest."""
    volume = os.statvfs(folder)
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, volume.f_bavail * volume.f_frsize - leave)
    assert ballast.stat().st_size > 0, errno.errorcode[errno.ENOSPC]
    return ballast
