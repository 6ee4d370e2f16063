"""`piton checkpoint ls`, `verify` and `restore` of a bucket that a run is mirrored to."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from piton.cli.checkpoints import directory_of, is_of_checkpoints, of_step, print_table, report, row_of
from piton.contract import InputError

if TYPE_CHECKING:
    from piton_trainer.checkpoint.inspect import CheckpointInfo
    from piton_trainer.mirror.bucket import Bucket


def ls(uri: str, *, as_json: bool) -> int:
    """Print what is there, by names and manifests. Without a valid record that is all the more needed."""
    bucket = _bucket(uri)
    from piton_trainer.mirror.inspect import record

    with _unreadable(str(bucket.place)):
        latest, trouble = record(bucket)
    found = _listing(bucket)
    newest = None if latest is None or latest.newest is None else latest.newest.folder
    rows = [row_of(item, is_newest=item.folder.name == newest, is_best=False) for item in found]
    fence = None if latest is None else latest.attempt
    if trouble is not None:
        click.echo(f"{bucket.place}: {trouble}", err=True)
    if as_json:
        click.echo(json.dumps({"directory": str(bucket.place), "fence": fence, "complete": None, "checkpoints": rows}))
        return 0
    print_table(rows)
    nobody = "nobody has claimed it" if trouble is None else "unknown"
    click.echo(f"fence: {nobody}" if fence is None else f"fence: held by attempt {fence}")
    return 0


def verify(uri: str, *, step: int | None, as_json: bool) -> int:
    """Read and hash every file, keep none, and print what is bad."""
    bucket = _bucket(uri)
    from piton_trainer.checkpoint import inspect
    from piton_trainer.mirror.inspect import problem_of

    found = of_step(_listing(bucket), step, str(bucket.place))
    with _unreadable(str(bucket.place)):
        return report(inspect.verify(found, partial(problem_of, bucket)), found, as_json=as_json)


def restore(uri: str, place: Path) -> int:
    """Fetch the newest checkpoint that a mirror has, and then note on the volume which mirror that is.

    By that note a run that goes on from the folder proves that the mirror is its own. A restore that fails notes
    nothing: a run that begins there anew would prove the same.
    """
    bucket = _bucket(uri)
    from piton_trainer.checkpoint.format import layout
    from piton_trainer.errors import Ended
    from piton_trainer.mirror import restore as fetch
    from piton_trainer.mirror.inspect import record
    from piton_trainer.mirror.ownership import Lineage
    from piton_trainer.mirror.upload import NO_RECORD, write_lineage

    directory = _checkpoints_of(place)
    try:
        with _unreadable(str(bucket.place)):
            latest, trouble = record(bucket)
            if trouble is not None and trouble.kind != NO_RECORD:
                raise trouble
            if trouble is None and (latest is None or latest.newest is None):
                raise InputError(
                    f"{bucket.place} has no checkpoint; name the folder of the run, with its namespace if it has one"
                )
            _refuse_other_checkpoints(directory, None if latest is None else latest.lineage, str(bucket.place))
            directory.mkdir(parents=True, exist_ok=True)
            step = fetch.restore(bucket, latest, directory, newer_than=-1)
            if latest is not None and step is not None:
                write_lineage(directory, Lineage(id=latest.lineage, base=latest.attempt), layout.Disk())
    except OSError as error:
        raise InputError(f"{directory} cannot be written to: {error.strerror or error}") from error
    except Ended as error:  # no room, or a newer format
        raise InputError(error.detail) from error
    if step is None:
        click.echo(f"nothing is restored: {bucket.place} has no good checkpoint", err=True)
        return 1
    if latest is None:
        click.echo(f"{bucket.place}: {trouble}", err=True)
    attempt = "" if latest is None else f" of attempt {latest.attempt}"
    click.echo(f"step {step:,}{attempt} is restored into {directory}")
    return 0


def _checkpoints_of(place: Path) -> Path:
    """Return the checkpoints folder that is meant: that of a run, also where it is not there yet, or the folder."""
    from piton.local import own_files

    try:
        is_run = own_files.RUN.owner(place) is not None
        return place / own_files.CHECKPOINTS if is_run else directory_of(place)
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror or error}") from error


def _refuse_other_checkpoints(directory: Path, lineage: str | None, place: str) -> None:
    """Refuse a folder with checkpoints that are not of this mirror: they would be mixed with these, or replaced.

    Checkpoints that nothing is mirrored of are those of another run too. So are all, of a mirror without a record.
    """
    from piton_trainer.mirror.upload import read_lineage

    if not directory.is_dir() or not any(is_of_checkpoints(path.name) for path in directory.iterdir()):
        return
    there = read_lineage(directory)
    if there is None or there.id != lineage:
        raise InputError(f"{directory} holds the checkpoints of another run than {place}; name an empty folder")


def _listing(bucket: "Bucket") -> "list[CheckpointInfo]":
    from piton_trainer.mirror.inspect import listing

    with _unreadable(str(bucket.place)):
        return listing(bucket)


@contextmanager
def _unreadable(place: str) -> Iterator[None]:
    """Say in a sentence that a bucket does not answer, or refuses."""
    from piton_trainer.s3 import S3Error

    try:
        yield
    except S3Error as trouble:
        raise InputError(f"{place} cannot be read: {trouble}") from trouble


def _bucket(uri: str) -> "Bucket":
    from piton_trainer.mirror.bucket import Bucket
    from piton_trainer.mirror.keys import BucketPrefix

    with _unreadable(uri):
        return Bucket(BucketPrefix.parse(uri))
