"""Makes a file of records from a source, once, however many processes ask for it and however often they are killed.

Whoever comes first holds a lock on the file's name and writes; the others wait, and find the file finished. The system
takes the lock back from a process that died, and the next one goes on after the last whole record.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from piton_trainer.checkpoint.format.layout import raise_out_of_space
from piton_trainer.data.image.image_files import DamagedImage, Form
from piton_trainer.data.image.origin import Origin, content_of, listing_of
from piton_trainer.data.image.record_writer import Picture, Recorder, SkippedImage
from piton_trainer.data.image.records import About, Records
from piton_trainer.data.image.sources import Source, open_source
from piton_trainer.data.skipped import Skips
from piton_trainer.errors import BadConfig
from piton_trainer.runtime.resources import cores

T = TypeVar("T")
AT_ONCE = 16
"""Images per thread that are decoded ahead of the writing: some megabytes."""
LINES = 20
"""Seconds between two lines on the progress of a preparation without a terminal."""

_log = logging.getLogger(__name__)


class WhenChanged(Enum):
    """The action that `refresh` takes when the images differ from those of a finished file."""

    KEEP = "keep the file, because a training has begun with it"
    RENEW = "delete the file, so that it is made anew"
    REFUSE = "raise BadConfig, because other runs may use the file"


def prepare(name: str, path: Path, form: Form, *, threads: int | None = None, most: int = 0) -> None:
    """Make the file of records of what a config's `data` names, unless it is there.

    Call `refresh` before, because this function compares no images. Leave out up to `most` damaged images. Accept a
    finished file unless more were left out of it. The records do not depend on `most`; the list in the file also holds
    `most` itself.

    Raises:
        BadConfig: the source is not there, cannot be used, or more images are damaged or were left out.
        OutOfSpace: the disk is full; what is written stays, and is continued.
    """
    with raise_out_of_space(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                skips, listing = Skips(most), listing_of(name)
                _write(name, open_source(name, form, skips), path, threads or cores(), skips, listing)
            elif skipped := Records(path).skipped:
                Skips(most).expect_within(skipped, remedy=f"accept more, or delete {path} when the data is mended")


def refresh(name: str, path: Path, form: Form, when: WhenChanged, *, threads: int | None = None, most: int = 0) -> None:
    """Compare a finished file of records with its source, where that is still there. Call it on one rank only.

    Raises:
        BadConfig: the images are other ones, and `when` is REFUSE; or they cannot be read.
    """
    made_of = Origin.load(path) if path.exists() else None
    listing = None if made_of is None else listing_of(name)
    if made_of is None or listing is None or listing == made_of.listing:
        return
    if when is WhenChanged.KEEP:
        _log.warning(
            "%s: files were added, removed or written since %s was made of them; the run goes on with the images that "
            "it began with",
            name,
            path,
        )
        return
    source = open_source(name, form, Skips(most))
    with raise_out_of_space(path.parent), _locked(path.with_name(f".{path.name}.lock")):
        count = threads or cores()
        with ThreadPoolExecutor(count, thread_name_prefix="piton-prepare") as pool:
            stamps = _map_in_parts(source.stamp, range(len(source)), pool, AT_ONCE * count)
            content = content_of(source.digest, (stamp for _, stamp in stamps))
        if content == made_of.content:
            replace(made_of, listing=listing).save(path)
            return
        if when is WhenChanged.REFUSE:
            raise BadConfig(
                f"trainer.config.data: {path} was made of other images than {name} has now; delete the file to have it "
                "made anew, or bring the images back"
            )
        _log.warning("%s: its images are not those that %s was made of; the file is made anew", name, path)
        path.unlink(missing_ok=True)


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


def _write(name: str, source: Source, path: Path, threads: int, skips: Skips, listing: str | None) -> None:
    about = About(source=source.digest, classes=source.classes)
    with Recorder(path, about) as recorder, ThreadPoolExecutor(threads, thread_name_prefix="piton-prepare") as pool:
        first = _keep_what_is_same(source, recorder, pool, AT_ONCE * threads, skips)
        if first:
            _log.info("%s: %d of %d images are there already", path.name, first, len(source))
        with _progress_bar(f"preparing {path.name}", len(source), done=first) as bar:
            for number, picture in _pictures(source, first, pool, AT_ONCE * threads):
                if isinstance(picture, DamagedImage):
                    _skip(picture, skips)
                    recorder.skip(SkippedImage(number=number, stamp=picture.stamp, skip=picture.skip))
                else:
                    recorder.append(picture)
                bar.advance()
        if not len(recorder):
            raise BadConfig(
                f"trainer.config.data: no image of {name} can be used; mend the images or name another source"
            )
        if listing is not None:
            Origin(listing=listing, content=content_of(source.digest, _stamps(recorder))).save(path)
        recorder.finish(skips)


def _stamps(recorder: Recorder) -> Iterator[bytes]:
    """Yield the stamps of all images, in the order of the source: those that were written, and those left out."""
    written, skipped = iter(recorder.stamps()), recorder.skipped()
    for number in range(len(recorder) + len(skipped)):
        yield skipped[number].stamp if number in skipped else next(written)


def _skip(image: DamagedImage, skips: Skips) -> None:
    """Leave an image out.

    Raises:
        BadConfig: it is one more than `skips` takes.
    """
    if not skips.most:
        raise image
    skips.add(image.skip)


def _pictures(
    source: Source, first: int, pool: ThreadPoolExecutor, at_once: int
) -> Iterator[tuple[int, Picture | DamagedImage]]:
    """Yield the images from the first one on, each with its number in the source."""

    def picture(number: int) -> Picture | DamagedImage:
        try:
            return source.picture(number)
        except DamagedImage as damaged:
            return damaged

    yield from _map_in_parts(picture, range(first, len(source)), pool, at_once)


def _map_in_parts(
    function: Callable[[int], T], numbers: range, pool: ThreadPoolExecutor, at_once: int
) -> Iterator[tuple[int, T]]:
    """Yield each number with its result, in order. At most `at_once` results are in memory."""
    for start in range(0, len(numbers), at_once):
        part = numbers[start : start + at_once]
        yield from zip(part, pool.map(function, part), strict=True)


def _keep_what_is_same(source: Source, recorder: Recorder, pool: ThreadPoolExecutor, at_once: int, skips: Skips) -> int:
    """Drop the records of changed images, and return the number of the first image that is still to do.

    Raises:
        BadConfig: more were skipped than `skips` takes.
    """
    stamps, skipped = recorder.stamps(), recorder.skipped()
    kept, out = 0, []
    last = min(len(stamps) + len(skipped), len(source))
    for number, stamp in _map_in_parts(source.stamp, range(last), pool, at_once):
        if number in skipped and skipped[number].stamp == stamp:
            out.append(skipped[number])
        elif kept < len(stamps) and stamps[kept] == stamp:
            kept += 1
        else:
            break
    recorder.keep(kept, out)
    for image in out:
        skips.add(image.skip)
    return kept + len(out)


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
