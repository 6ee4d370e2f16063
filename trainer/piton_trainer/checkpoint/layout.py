"""Folders and files of a checkpoint directory, and writing so that it lasts.

    FENCE                       which attempt may commit
    step-000001200/             a checkpoint, if its MANIFEST.json is valid
    .saving-step-…-<attempt>-<owner>/   in flight; never read
    .swept-<random>/            on its way out; never read
    COMPLETE.json               the run is finished

A folder becomes or stops being a checkpoint by one rename, so that there is no moment at which half of one is there.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from piton.contract import names
from piton.contract.manifest import FileEntry, Manifest
from piton_trainer.errors import OutOfSpace

if TYPE_CHECKING:  # the process that writes checkpoints does without torch
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

STATE_FILE = "state.json"
INDEX_FILE = ".metadata"
"""torch's index of the shards."""
SWEPT_PREFIX = ".swept-"
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder that has a valid manifest."""

    folder: Path
    manifest: Manifest


class Disk:
    """Writes that lasts. A port: tests hand in a disk that is full."""

    def writer(self, folder: Path) -> "FileSystemWriter":
        """A writer of shards. It does not fsync: torch does so before it flushes, so `seal` does it afterwards."""
        from piton_trainer.checkpoint.shards import ShardWriter

        return ShardWriter(folder, sync_files=False)

    def write(self, path: Path, text: str) -> None:
        """Write a whole file, durably, or leave the one before."""
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def full_disk_is_an_end(directory: Path) -> Iterator[None]:
    """Turn the operating system's word for a full disk, or a used-up quota, into OutOfSpace."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise OutOfSpace(f"the disk of {directory} is full; the checkpoints that are there are untouched") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(path: Path) -> FileEntry:
    """Make a file's bytes durable, and say what they are."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = _update(digest, file)
        os.fsync(file.fileno())
    return FileEntry(size=size, sha256=digest.hexdigest())


def wrong_size(path: Path, entry: FileEntry) -> str | None:
    """What a file's size has against its entry in the manifest; None if nothing."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None if size == entry.size else f"{path.name} has {size} bytes instead of {entry.size}"


def what_is_wrong(path: Path, entry: FileEntry) -> str | None:
    """What a file's bytes have against its entry in the manifest; None if nothing."""
    if problem := wrong_size(path, entry):
        return problem
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            _update(digest, file)
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return wrong_digest(path, entry, digest.hexdigest())


def wrong_digest(path: Path, entry: FileEntry, digest: str) -> str | None:
    """What the SHA-256 of a file has against its entry in the manifest; None if nothing."""
    return None if digest == entry.sha256 else f"{path.name} has flipped bits: its SHA-256 is another"


def _update(digest: "hashlib._Hash", file: BinaryIO) -> int:
    """Hash what is left of a file; its size. One buffer does for all of it."""
    size, buffer = 0, memoryview(bytearray(_CHUNK_BYTES))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
        size += count
    return size


def saving_folder(directory: Path, *, step: int, attempt: int, owner: str) -> Path:
    """Where a save is in flight."""
    return directory / f"{names.SAVING_PREFIX}{names.step_folder(step)}-{attempt}-{owner[:8]}"


def step_folders(directory: Path) -> list[tuple[int, Path]]:
    """Folders that are named like checkpoints, newest first, good or not."""
    found = [(names.parse_step_folder(entry.name), entry) for entry in directory.iterdir() if entry.is_dir()]
    return sorted(((step, path) for step, path in found if step is not None), reverse=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        ValueError: the folder is not a checkpoint; the message says why.
    """
    try:
        text = (folder / names.MANIFEST_FILE).read_bytes().decode()
    except FileNotFoundError:
        raise ValueError("it has no manifest") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"its manifest cannot be read: {error}") from error
    manifest = Manifest.from_json(text)
    if names.step_folder(manifest.step) != folder.name:
        raise ValueError(f"its manifest speaks of step {manifest.step}")
    return manifest


def committed(directory: Path) -> Iterator[Checkpoint]:
    """Checkpoints with a valid manifest, newest first. Their files have not been looked at."""
    for _, folder in step_folders(directory):
        try:
            yield Checkpoint(folder=folder, manifest=read_manifest(folder))
        except ValueError:
            continue


def read_document(folder: Path) -> dict[str, Any]:
    """A checkpoint's state.json."""
    document = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"{STATE_FILE} is not a JSON object")
    return document


def discard(folder: Path) -> None:
    """Delete a folder; it stops being what it was at once, however long the deletion takes."""
    swept = folder.with_name(f"{SWEPT_PREFIX}{uuid.uuid4().hex[:8]}")
    try:
        folder.rename(swept)
    except FileNotFoundError:
        return
    shutil.rmtree(swept, ignore_errors=True)
