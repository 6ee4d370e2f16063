"""A volume whose reads fail: `open`, `read`, `pread`, `stat`, a listing, or a map of a file.

The functions of the interpreter are replaced while a block runs, for files of one directory. Writes go through.
"""

import errno
import io
import mmap
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CODES = (errno.ETIMEDOUT, errno.EIO, errno.ESTALE, errno.EAGAIN)
CALLS = ("open", "read", "preadv", "stat", "list", "mmap")
Fails = Callable[[str], bool]
"""Whether a call of this name fails now."""


@contextmanager
def failing_reads(directory: Path, fails: Fails, *, rng: random.Random | None = None) -> Iterator[None]:
    """Have reads in the directory fail, whenever `fails` says so, with one of `CODES`."""
    volume = _Volume(directory, fails, rng or random.Random(0))
    with pytest.MonkeyPatch.context() as patch:
        opener = volume.opener(io.open)
        patch.setattr(io, "open", opener)
        patch.setattr("builtins.open", opener)
        patch.setattr(os, "open", volume.of_path("open", os.open))
        patch.setattr(os, "stat", volume.of_path("stat", os.stat))
        patch.setattr(os, "scandir", volume.of_path("list", os.scandir))
        patch.setattr(os, "listdir", volume.of_path("list", os.listdir))
        patch.setattr(os, "preadv", volume.of_descriptor("preadv", os.preadv))
        patch.setattr(mmap, "mmap", volume.of_descriptor("mmap", mmap.mmap))
        yield


class _Volume:
    def __init__(self, directory: Path, fails: Fails, rng: random.Random) -> None:
        self._directory = directory
        self._fails = fails
        self._rng = rng

    def strike(self, call: str, path: object) -> None:
        if isinstance(path, str | os.PathLike) and Path(path).is_relative_to(self._directory) and self._fails(call):
            code = self._rng.choice(CODES)
            raise OSError(code, os.strerror(code), str(path))

    def of_path(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", flags: int = os.O_RDONLY, *arguments: Any, **options: Any) -> Any:
            if name != "open":
                self.strike(name, path)
                return function(path, **options)
            if not flags & (os.O_WRONLY | os.O_RDWR):
                self.strike(name, path)
            return function(path, flags, *arguments, **options)

        return call

    def of_descriptor(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *arguments: Any, **options: Any) -> Any:
            if descriptor >= 0:
                self.strike(name, Path(f"/proc/self/fd/{descriptor}").readlink())
            return function(descriptor, *arguments, **options)

        return call

    def opener(self, function: Callable[..., Any]) -> Callable[..., Any]:
        volume = self

        class File(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                volume.strike("read", self.name)
                return super().readinto(buffer) or 0

            def readall(self) -> bytes:
                volume.strike("read", self.name)
                return super().readall() or b""

        def call(path: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wax+") or not isinstance(path, str | os.PathLike):
                return function(path, mode, buffering, *arguments, **options)
            volume.strike("open", path)
            raw = File(os.fspath(path))
            if buffering == 0:
                return raw
            buffered = io.BufferedReader(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

        return call
