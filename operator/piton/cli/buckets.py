"""`piton checkpoint ls`, `verify` and `restore` of a bucket that a run is mirrored to."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from piton.cli.checkpoints import of_step, print_table, report, row_of
from piton.contract import InputError

if TYPE_CHECKING:
    from piton_trainer.checkpoint.inspect import CheckpointInfo
    from piton_trainer.mirror.bucket import Bucket
    from piton_trainer.mirror.keys import Latest


def ls(uri: str, *, as_json: bool) -> int:
    """Print what is there, by names and manifests."""
    bucket = _bucket(uri)
    latest, found = _listing(bucket)
    newest = None if latest is None or latest.newest is None else latest.newest.folder
    rows = [row_of(item, is_newest=item.folder.name == newest, is_best=False) for item in found]
    fence = None if latest is None else latest.attempt
    if as_json:
        click.echo(json.dumps({"directory": str(bucket.place), "fence": fence, "complete": None, "checkpoints": rows}))
        return 0
    print_table(rows)
    click.echo("fence: nobody has claimed it" if fence is None else f"fence: held by attempt {fence}")
    return 0


def verify(uri: str, *, step: int | None, as_json: bool) -> int:
    """Read and hash every file, keep none, and print what is bad."""
    bucket = _bucket(uri)
    from piton_trainer.checkpoint import inspect
    from piton_trainer.mirror.inspect import problem_of

    found = of_step(_listing(bucket)[1], step, str(bucket.place))
    with _unreadable(str(bucket.place)):
        return report(inspect.verify(found, partial(problem_of, bucket)), found, as_json=as_json)


def restore(uri: str, directory: Path) -> int:
    """Fetch the newest checkpoint that a mirror has, and note on the volume which mirror that is.

    By that note a run that goes on from the folder proves that the mirror is its own.
    """
    bucket = _bucket(uri)
    from piton_trainer.checkpoint.format import layout
    from piton_trainer.errors import Ended
    from piton_trainer.mirror import restore as fetch
    from piton_trainer.mirror.ownership import Lineage
    from piton_trainer.mirror.upload import read_latest, write_lineage

    place = bucket.place
    try:
        with _unreadable(str(place)):
            latest, _ = read_latest(bucket)
            if latest is None or latest.newest is None:
                raise InputError(
                    f"{place} has no checkpoint; name the folder of the run, with its namespace if it has one"
                )
            directory.mkdir(parents=True, exist_ok=True)
            _refuse_other_checkpoints(directory, latest.lineage, str(place))
            write_lineage(directory, Lineage(id=latest.lineage, base=latest.attempt), layout.Disk())
            step = fetch.restore(bucket, latest, directory, newer_than=-1)
    except OSError as error:
        raise InputError(f"{directory} cannot be written to: {error.strerror or error}") from error
    except Ended as error:  # no room, or a newer format
        raise InputError(error.detail) from error
    if step is None:
        click.echo(f"nothing is restored: {place} has no good checkpoint", err=True)
        return 1
    click.echo(f"step {step:,} of attempt {latest.attempt} is restored into {directory}")
    return 0


def _refuse_other_checkpoints(directory: Path, lineage: str, place: str) -> None:
    """Refuse a folder with the checkpoints of another mirror, which would be mixed with these."""
    from piton_trainer.checkpoint.format import layout
    from piton_trainer.mirror.upload import read_lineage

    there = read_lineage(directory)
    if there is not None and there.id != lineage and next(layout.committed(directory), None) is not None:
        raise InputError(f"{directory} holds the checkpoints of another run than {place}; name an empty folder")


def _listing(bucket: "Bucket") -> "tuple[Latest | None, list[CheckpointInfo]]":
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
