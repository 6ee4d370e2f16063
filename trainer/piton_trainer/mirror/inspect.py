"""What is in a bucket, for people and their tools.

Listing reads manifests and names; `problem_of` reads a file.

The checksums that S3 keeps do not tell whether an object is what its manifest says: of one that went in parts they are
of the parts, and the manifest has the digest of the whole. So a file is verified by reading it, as a restore would.
"""

from pathlib import Path

from piton.contract import names
from piton.contract.manifest import FileEntry, Manifest
from piton_trainer.checkpoint.inspect import CheckpointInfo
from piton_trainer.mirror.bucket import Bucket
from piton_trainer.mirror.keys import Latest, parse_folder
from piton_trainer.mirror.upload import read_latest
from piton_trainer.s3 import ObjectNotFound


def listing(bucket: Bucket) -> tuple[Latest | None, list[CheckpointInfo]]:
    """The record, and everything that is named like a checkpoint, newest first.

    Raises:
        ValueError: the record is not one of ours.
        Trouble: the bucket does not answer.
    """
    latest, _ = read_latest(bucket)
    found = [
        _look(bucket, folder, step, set(files))
        for folder, files in bucket.folders().items()
        if (step := parse_folder(folder)) is not None
    ]
    return latest, sorted(found, key=lambda item: (item.step, item.folder), reverse=True)


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
    """What an object's bytes have against its entry in the manifest; None if nothing.

    Raises:
        Trouble: the bucket does not answer.
    """
    try:
        there = bucket.digest(found.folder.name, name, like=entry)
    except ObjectNotFound:
        return f"{name} is missing"
    if there.size != entry.size:
        return f"{name} has {there.size} bytes instead of {entry.size}"
    return None if there == entry else f"{name} has flipped bits: its digest is another"
