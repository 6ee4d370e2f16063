"""Folders and files of a checkpoint directory, and durable writes.

    FENCE                       the attempt that may commit
    step-000001200/             a checkpoint, if its MANIFEST.json is valid
    weights-000001200/          the weights of a thin checkpoint, if its WEIGHTS.json is valid; see `weights_only`
    .saving-step-…-<attempt>-<owner>/   in flight; never read
    .swept-<random>/            being deleted; never read
    COMPLETE.json               the run is finished

A folder becomes or stops being a checkpoint by one rename, so that a partial checkpoint never exists.

On a network volume a response can be lost and the request sent again: a folder that was created "exists already", one
that was renamed "is not there". The result is checked before this counts as an error. A file that is still open stays
in its deleted folder under another name (.nfs…), and so does the folder; it is swept later.
"""

import errno
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from piton.contract import InputError, names
from piton.contract.manifest import FileEntry, Manifest, NewerFormatError
from piton_trainer.checkpoint.format.file_digest import FileDigest
from piton_trainer.errors import OutOfSpace, VolumeLost

if TYPE_CHECKING:  # the writer process does not import torch
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

STATE_FILE = "state.json"
INDEX_FILE = ".metadata"
"""Index of the shards, in torch's format."""
WEIGHTS = ("model", "ema")
"""Names of the objects that are weights. The key of a tensor begins with the name of its object and a slash."""
DESCRIPTION = "huggingface"
"""Name of the object that describes the model for transformers. It holds no tensors."""
RECIPE = "recipe"
"""Key of the recipe and its config in the state of a checkpoint."""
PER_RANK = "per_rank"
"""Key in a rank's part of the state of a checkpoint, true if the rank has all objects of its own."""
WEIGHTS_SHARD = "weights_"
"""Prefix of the names of shards that hold only weights."""
WEIGHTS_STATE_FILE = "weights.json"
WEIGHTS_INDEX_FILE = "weights.metadata"
WEIGHTS_FILES = (WEIGHTS_STATE_FILE, WEIGHTS_INDEX_FILE)
"""State and index of the weights only."""
SWEPT_PREFIX = ".swept-"
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_SUCH_SYNC = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""Error numbers of a file system that does not support fsync of a folder."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CommittedCheckpoint:
    """A folder with a valid manifest."""

    folder: Path
    manifest: Manifest


class Disk:
    """Durable writes. An interface: tests pass a full disk."""

    def writer(self, folder: Path, *, apart: bool = False) -> "FileSystemWriter":
        """Return a writer of shards, with separate weights if `apart`. It does not fsync: `seal` does so later."""
        from piton_trainer.checkpoint.format.shards import ShardWriter

        return ShardWriter(folder, apart=apart)

    def write(self, path: Path, text: str) -> None:
        """Write a complete file, durably, or leave the previous one unchanged."""
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            try:
                aside.replace(path)
            except FileNotFoundError:
                if not _contains(path, text):
                    raise
        finally:
            with suppress(OSError):  # the first error is more useful
                aside.unlink(missing_ok=True)
        sync_folder(path.parent)

    def free_bytes(self, directory: Path) -> int | None:
        """Return the free bytes of the volume; None if unknown."""
        try:
            volume = os.statvfs(directory)
        except OSError:
            return None
        return volume.f_bavail * volume.f_frsize if volume.f_blocks else None


@contextmanager
def raise_out_of_space(directory: Path) -> Iterator[None]:
    """Translate the error of a full disk, or of an exhausted quota, to OutOfSpace."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise OutOfSpace(f"the disk of {directory} is full; the checkpoints that are there are untouched") from error


@contextmanager
def translate_os_errors(directory: Path) -> Iterator[None]:
    """Translate the error of a full disk to OutOfSpace, and any other OSError during a save to VolumeLost."""
    try:
        with raise_out_of_space(directory):
            yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise VolumeLost(f"the volume of {directory} fails ({reason}); what it holds is untouched") from error


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_SYNC:
            raise
    finally:
        os.close(descriptor)


def _contains(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def make_folder(folder: Path) -> None:
    """Create a folder if it is missing. Another rank, or a request with a lost response, may have created it."""
    with suppress(FileExistsError):
        folder.mkdir()


def rename(source: Path, target: Path, *, witness: str, text: str) -> None:
    """Rename a folder. If it is gone, but file `witness` at the target has this text, the rename is done."""
    try:
        source.rename(target)
    except FileNotFoundError:
        if not _contains(target / witness, text):
            raise


def seal(path: Path) -> FileEntry:
    """Make the bytes of a file durable, and return its size and digest."""
    digest = FileDigest()
    with path.open("rb") as file:
        size = _update(digest, file)
        os.fsync(file.fileno())
    return FileEntry(size=size, digest=digest.text())


def wrong_size(path: Path, entry: FileEntry) -> str | None:
    """Return the problem if the size of a file differs from its manifest entry; None if it matches.

    Raises:
        OSError: the size cannot be read.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        path.parent.stat()  # raises if the folder is missing as well
        return f"{path.name} is missing"
    return None if size == entry.size else f"{path.name} has {size} bytes instead of {entry.size}"


def look(folder: Path) -> tuple[Manifest | None, str | None]:
    """Return the manifest of a folder if it is valid, and the problem with it or with the sizes of its files.

    Raises:
        NewerFormatError: the manifest has a newer, unknown format.
        OSError: it cannot be read.
    """
    try:
        manifest = read_manifest(folder)
    except NewerFormatError:
        raise
    except ValueError as error:
        return None, str(error)
    problems = (wrong_size(folder / name, entry) for name, entry in manifest.files.items())
    return manifest, next((problem for problem in problems if problem), None)


def what_is_wrong(path: Path, entry: FileEntry) -> str | None:
    """Return the problem if the bytes of a file differ from its manifest entry; None if they match."""
    try:
        return flaw(path, entry)
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def flaw(path: Path, entry: FileEntry) -> str | None:
    """Return the problem as `what_is_wrong` does, but raise read errors: the file itself may be intact.

    Raises:
        OSError: it cannot be read.
    """
    if problem := wrong_size(path, entry):
        return problem
    digest = FileDigest(entry)
    with path.open("rb") as file:
        _update(digest, file)
    return wrong_digest(path, entry, digest.text())


def wrong_digest(path: Path, entry: FileEntry, digest: str) -> str | None:
    """Return the problem if the digest of a file differs from its manifest entry; None if it matches."""
    return None if digest == entry.digest else f"{path.name} has flipped bits: its digest is another"


def _update(digest: FileDigest, file: BinaryIO) -> int:
    """Hash the rest of a file through one buffer, and return its size."""
    size, buffer = 0, memoryview(bytearray(_CHUNK_BYTES))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
        size += count
    return size


def saving_folder(directory: Path, *, step: int, attempt: int, owner: str) -> Path:
    """Return the folder of a save in flight."""
    return directory / f"{names.SAVING_PREFIX}{names.step_folder(step)}-{attempt}-{owner[:8]}"


def step_folders(directory: Path) -> list[tuple[int, Path]]:
    """Return the folders with the name of a checkpoint, newest first, valid or not."""
    return _numbered(directory, names.parse_step_folder)


def weights_folders(directory: Path) -> list[tuple[int, Path]]:
    """Return the folders with the name of a thin checkpoint, newest first, valid or not."""
    return _numbered(directory, names.parse_weights_folder)


def _numbered(directory: Path, parse: Callable[[str], int | None]) -> list[tuple[int, Path]]:
    found = ((parse(entry.name), entry) for entry in directory.iterdir())
    return sorted(((step, path) for step, path in found if step is not None and _is_folder(path)), reverse=True)


def _is_folder(path: Path) -> bool:
    """Return True if the folder exists. `Path.is_dir` of Python 3.14 also returns False on errors."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:  # another process has deleted it
        return False


def too_new(checkpoint: object, error: NewerFormatError) -> VolumeLost:
    """Return the error for a checkpoint of a newer version of Piton: to skip it would lose its progress."""
    return VolumeLost(
        f"{checkpoint} cannot be resumed from: {error}; train on with the image of the version that wrote it"
    )


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint, whole or thin according to the name of its folder.

    Raises:
        NewerFormatError: it has a newer, unknown format.
        ValueError: the folder is not a checkpoint; the message gives the reason.
        OSError: it cannot be read.
    """
    is_thin = names.parse_weights_folder(folder.name) is not None
    try:
        text = (folder / (names.WEIGHTS_FILE if is_thin else names.MANIFEST_FILE)).read_bytes().decode()
    except (FileNotFoundError, IsADirectoryError):
        folder.stat()  # raises if the folder is missing as well
        raise InputError("it has no manifest") from None
    except UnicodeDecodeError as error:
        raise InputError(f"its manifest has flipped bits: {error}") from error
    manifest = Manifest.from_json(text)
    if folder.name not in (names.step_folder(manifest.step), names.weights_folder(manifest.step)):
        raise InputError(f"its manifest speaks of step {manifest.step}")
    if manifest.weights_only != is_thin:
        raise InputError(f"its manifest is that of a {'whole' if is_thin else 'thin'} checkpoint")
    return manifest


def committed(directory: Path) -> Iterator[CommittedCheckpoint]:
    """Yield the checkpoints with a valid manifest, newest first. Their files are not checked.

    Raises:
        OSError: a manifest cannot be read.
    """
    for _, folder in step_folders(directory):
        try:
            yield CommittedCheckpoint(folder=folder, manifest=read_manifest(folder))
        except (FileNotFoundError, ValueError):  # it is not a checkpoint, or another process has deleted it
            continue


def shards_of(checkpoint: CommittedCheckpoint, rank: int) -> Mapping[str, FileEntry]:
    """Return the files of a checkpoint that this rank has written."""
    kinds = tuple(f"{kind}{rank}_" for kind in ("__", WEIGHTS_SHARD))
    return {name: entry for name, entry in checkpoint.manifest.files.items() if name.startswith(kinds)}


def read_document(folder: Path) -> dict[str, Any]:
    """Read the state.json of a checkpoint, or the weights.json of a thin one."""
    is_thin = names.parse_weights_folder(folder.name) is not None
    path = folder / (WEIGHTS_STATE_FILE if is_thin else STATE_FILE)
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise InputError(f"{path.name} is not a JSON object")
    return document


def discard(folder: Path) -> None:
    """Delete a folder. It loses its name at once, however long the deletion takes.

    Files that cannot be deleted yet are swept at the next save.
    """
    swept = folder.with_name(f"{SWEPT_PREFIX}{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):  # another process did it, or the response was lost
        folder.rename(swept)
    shutil.rmtree(swept, ignore_errors=True)


def sweep(directory: Path, *, keep: Callable[[str], bool]) -> None:
    """Delete folders that are being deleted, and folders in flight except those to keep."""
    for entry in directory.iterdir():
        if entry.name.startswith(SWEPT_PREFIX):
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name.startswith(names.SAVING_PREFIX) and not keep(entry.name):
            discard(entry)
