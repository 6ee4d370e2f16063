"""Contents of a bucket, for the command line and other tools.

Listing reads manifests and names; `problem_of` reads a file.

The checksums of S3 cannot verify an object against its manifest: after a multipart upload they are those of the parts,
and the manifest has the digest of the whole. So a file is verified by reading it, as a restore does.
"""

from pathlib import Path

from piton.contract import names
from piton.contract.manifest import FileEntry, Manifest
from piton_trainer.checkpoint.inspect import CheckpointInfo
from piton_trainer.mirror.bucket import Bucket
from piton_trainer.mirror.keys import Latest, parse_folder
from piton_trainer.mirror.upload import RECORD_KINDS, read_latest
from piton_trainer.s3 import ObjectNotFound, S3Error


def record(bucket: Bucket) -> tuple[Latest | None, S3Error | None]:
    """Return the record, and the error if it is not valid.

    Raises:
        S3Error: the bucket does not answer.
    """
    try:
        return read_latest(bucket)[0], None
    except S3Error as trouble:
        if trouble.kind not in RECORD_KINDS:
            raise
        return None, trouble


def listing(bucket: Bucket) -> list[CheckpointInfo]:
    """Return all folders with the name of a checkpoint, newest first.

    Raises:
        S3Error: the bucket does not answer.
    """
    found = [
        _look(bucket, folder, step, set(files))
        for folder, files in bucket.folders().items()
        if (step := parse_folder(folder)) is not None
    ]
    return sorted(found, key=lambda item: (item.step, item.folder), reverse=True)


def _look(bucket: Bucket, folder: str, step: int, there: set[str]) -> CheckpointInfo:
    try:
        manifest = Manifest.from_json(bucket.read(folder, names.MANIFEST_FILE)[0])
    except ObjectNotFound:
        return CheckpointInfo(folder=Path(folder), step=step, manifest=None, problem="it has no manifest")
    except ValueError as error:
        return CheckpointInfo(folder=Path(folder), step=step, manifest=None, problem=str(error))
    missing = sorted(manifest.files.keys() - there)
    problem = f"{missing[0]} is missing" if missing else None
    return CheckpointInfo(folder=Path(folder), step=step, manifest=manifest, problem=problem)


def problem_of(bucket: Bucket, found: CheckpointInfo, name: str, entry: FileEntry) -> str | None:
    """Return the problem if the bytes of an object differ from its manifest entry; None if they match.

    Raises:
        S3Error: the bucket does not answer.
    """
    try:
        there = bucket.digest(found.folder.name, name, like=entry)
    except ObjectNotFound:
        return f"{name} is missing"
    if there.size != entry.size:
        return f"{name} has {there.size} bytes instead of {entry.size}"
    return None if there == entry else f"{name} has flipped bits: its digest is another"
