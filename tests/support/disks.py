"""Disks that fail where a test says: `FullDisk(step=8, file="shard")`, `SmallDisk(300_000)`."""

import errno
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

from piton.contract import names
from piton_trainer.checkpoint.format import layout
from support.clocks import FakeClock


class FullDisk(layout.Disk):
    """A disk on which a file of a certain kind does not fit any more, from a step on, until another."""

    def __init__(self, *, step: int, file: str, code: int = errno.ENOSPC, until: float = math.inf) -> None:
        self.step, self.file, self.code, self.until = step, file, code, until

    def _fails(self, folder: Path) -> bool:
        digits = folder.name.removeprefix(f"{names.SAVING_PREFIX}{names.STEP_PREFIX}").split("-")[0]
        return folder.name.startswith(names.SAVING_PREFIX) and self.step <= int(digits) < self.until

    def writer(self, folder: Path, *, apart: bool = False) -> FileSystemWriter:
        writer = super().writer(folder, apart=apart)
        if self.file == "shard" and self._fails(folder):
            writer.fs = FullFileSystem(self.code)
        return writer

    def write(self, path: Path, text: str) -> None:
        if path.name == self.file and self._fails(path.parent):
            raise OSError(self.code, os.strerror(self.code))
        super().write(path, text)


class SlowDisk(layout.Disk):
    """A disk on which a checkpoint takes so long."""

    def __init__(self, clock: FakeClock, *, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def write(self, path: Path, text: str) -> None:
        if path.name == names.MANIFEST_FILE:
            self.clock.pass_seconds(self.seconds)
        super().write(path, text)


class SmallDisk(layout.Disk):
    """A volume of so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def free_bytes(self, directory: Path) -> int:
        return self.size - sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


class FullFileSystem(FileSystem):
    """Takes some bytes of a file, then no more."""

    def __init__(self, code: int, *, room: int = 9000) -> None:
        self.code, self.room = code, room

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with io.BufferedWriter(FullFile(path, mode, self.code, self.room)) as file:
            yield file


class FullFile(io.FileIO):
    def __init__(self, path: str | os.PathLike[str], mode: str, code: int, room: int) -> None:
        super().__init__(os.fspath(path), mode)
        self.code, self.room = code, room

    def write(self, data: Any) -> int:
        # As the kernel does it: a part of the data at first, and only then the error.
        part = memoryview(data)[: self.room]
        if not part:
            raise OSError(self.code, os.strerror(self.code))
        self.room -= len(part)
        return super().write(part)
