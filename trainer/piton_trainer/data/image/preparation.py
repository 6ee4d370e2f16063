"""Makes a file of records from a source, once, however many processes ask for it and however often they are killed.

Whoever comes first holds a lock on the file's name and writes; the others wait, and find the file finished. The system
takes the lock back from a process that died, and the next one goes on after the last whole record.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from piton_trainer.checkpoint.format.layout import raise_out_of_space
from piton_trainer.data.image.image_files import Form
from piton_trainer.data.image.record_writer import Picture, Recorder
from piton_trainer.data.image.records import About, Records
from piton_trainer.data.image.sources import Source, open_source
from piton_trainer.runtime.resources import cores

AT_ONCE = 16
"""Images per thread that are decoded ahead of the writing: some megabytes."""
LINES = 20
"""Seconds between two lines on the progress of a preparation without a terminal."""

_log = logging.getLogger(__name__)


def prepare(name: str, path: Path, form: Form, *, threads: int | None = None) -> None:
    """Make the file of records of what a config's `data` names, unless it is there.

    Raises:
        BadConfig: the source is not there, or cannot be used.
        OutOfSpace: the disk is full; what is written stays, and is continued.
    """
    with raise_out_of_space(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                _write(open_source(name, form), path, threads or cores())


def verify(path: Path) -> None:
    """Compare every checksum of a finished file.

    Raises:
        BadConfig: a record is damaged.
    """
    records = Records(path)
    with _progress_bar(f"verifying {path.name}", len(records)) as bar:
        for number in range(len(records)):
            records.read(number)
            bar.advance()


def _write(source: Source, path: Path, threads: int) -> None:
    about = About(source=source.digest, classes=source.classes)
    with Recorder(path, about) as recorder, ThreadPoolExecutor(threads, thread_name_prefix="piton-prepare") as pool:
        recorder.keep(_same_so_far(source, recorder, pool, AT_ONCE * threads))
        if len(recorder):
            _log.info("%s: %d of %d images are there already", path.name, len(recorder), len(source))
        with _progress_bar(f"preparing {path.name}", len(source), done=len(recorder)) as bar:
            for picture in _pictures(source, len(recorder), pool, AT_ONCE * threads):
                recorder.append(picture)
                bar.advance()
        recorder.finish()


def _pictures(source: Source, first: int, pool: ThreadPoolExecutor, at_once: int) -> Iterator[Picture]:
    for start in range(first, len(source), at_once):
        yield from pool.map(source.picture, range(start, min(start + at_once, len(source))))


def _same_so_far(source: Source, recorder: Recorder, pool: ThreadPoolExecutor, at_once: int) -> int:
    """Return how many records, from the first on, were made of what the source still has in their place."""
    stamps = recorder.stamps()
    for start in range(0, len(stamps), at_once):
        part = range(start, min(start + at_once, len(stamps), len(source)))
        for number, stamp in zip(part, pool.map(source.stamp, part), strict=True):
            if stamp != stamps[number]:
                return number
    return min(len(stamps), len(source))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class _Bar:
    """Says how far it is: a bar on a terminal, a line now and then in a log."""

    def __init__(self, what: str, total: int, done: int, progress: Progress | None) -> None:
        self.what = what
        self.total = total
        self.done = done
        self.progress = progress
        self.task = None if progress is None else progress.add_task(what, total=total, completed=done)

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        if self.progress is not None and self.task is not None:
            self.progress.advance(self.task)
        elif self.done * LINES // self.total > (self.done - 1) * LINES // self.total:
            _log.info("%s: %d of %d", self.what, self.done, self.total)


@contextmanager
def _progress_bar(what: str, total: int, *, done: int = 0) -> Iterator[_Bar]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Bar(what, total, done, None)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        yield _Bar(what, total, done, progress)
