"""Folders and files of a checkpoint directory, and writing so that it lasts.

    FENCE                       which attempt may commit
    step-000001200/             a checkpoint, if its MANIFEST.json is valid
    weights-000001200/          what is left of one that was made thin, if its WEIGHTS.json is valid; see `weights_only`
    .saving-step-…-<attempt>-<owner>/   in flight; never read
    .swept-<random>/            on its way out; never read
    COMPLETE.json               the run is finished

A folder becomes or stops being a checkpoint by one rename, so that there is no moment at which half of one is there.

On a network volume an answer can be lost and the request sent again: a folder that was made "exists already", one that
was renamed "is not there". What was asked for then is looked at before anybody calls it an error. A file that somebody
still has open stays in its deleted folder under another name (.nfs…), and with it the folder; it is swept later.
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

from piton.contract import names
from piton.contract.manifest import FileEntry, Manifest, NewerFormatError
from piton_trainer.checkpoint.format.file_digest import FileDigest
from piton_trainer.errors import OutOfSpace, VolumeLost

if TYPE_CHECKING:  # the process that writes checkpoints does without torch
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

STATE_FILE = "state.json"
INDEX_FILE = ".metadata"
"""torch's index of the shards."""
WEIGHTS = ("model", "ema")
"""The objects that are weights. The key of a tensor begins with its object's name and a slash."""
DESCRIPTION = "huggingface"
"""The object that says what kind of model the weights are of, for transformers. It holds no tensors."""
RECIPE = "recipe"
"""Where a checkpoint's state says which recipe it is of, and with which config."""
WEIGHTS_SHARD = "weights_"
"""What the name of a shard begins with that holds nothing but weights."""
WEIGHTS_STATE_FILE = "weights.json"
WEIGHTS_INDEX_FILE = "weights.metadata"
WEIGHTS_FILES = (WEIGHTS_STATE_FILE, WEIGHTS_INDEX_FILE)
"""State and index of the weights alone."""
SWEPT_PREFIX = ".swept-"
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_SUCH_SYNC = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""What a file system says that knows no fsync of a folder."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CommittedCheckpoint:
    """A folder that has a valid manifest."""

    folder: Path
    manifest: Manifest


class Disk:
    """Writes that lasts. A port: tests hand in a disk that is full."""

    def writer(self, folder: Path, *, apart: bool = False) -> "FileSystemWriter":
        """A writer of shards, those of the weights apart if that is wished. It does not fsync: `seal` does it later."""
        from piton_trainer.checkpoint.format.shards import ShardWriter

        return ShardWriter(folder, apart=apart)

    def write(self, path: Path, text: str) -> None:
        """Write a whole file, durably, or leave the one before."""
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            try:
                aside.replace(path)
            except FileNotFoundError:
                if not _says(path, text):
                    raise
        finally:
            with suppress(OSError):  # what went wrong before says more
                aside.unlink(missing_ok=True)
        sync_folder(path.parent)

    def free_bytes(self, directory: Path) -> int | None:
        """What still fits onto the volume; None where nobody can tell."""
        try:
            volume = os.statvfs(directory)
        except OSError:
            return None
        return volume.f_bavail * volume.f_frsize if volume.f_blocks else None


@contextmanager
def raise_out_of_space(directory: Path) -> Iterator[None]:
    """Turn the operating system's word for a full disk, or a used-up quota, into OutOfSpace."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise OutOfSpace(f"the disk of {directory} is full; the checkpoints that are there are untouched") from error


@contextmanager
def translate_os_errors(directory: Path) -> Iterator[None]:
    """The same, and VolumeLost for whatever else the operating system says while a checkpoint is written."""
    try:
        with raise_out_of_space(directory):
            yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise VolumeLost(f"the volume of {directory} fails ({reason}); what it holds is untouched") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_SYNC:
            raise
    finally:
        os.close(descriptor)


def _says(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def make_folder(folder: Path) -> None:
    """Have a folder. Another rank, or the request whose answer was lost, may have made it."""
    with suppress(FileExistsError):
        folder.mkdir()


def rename(source: Path, target: Path, *, witness: str, text: str) -> None:
    """Rename a folder. When it is gone, but what is at the target has this text in that file, it has arrived."""
    try:
        source.rename(target)
    except FileNotFoundError:
        if not _says(target / witness, text):
            raise


def seal(path: Path) -> FileEntry:
    """Make a file's bytes durable, and say what they are."""
    digest = FileDigest()
    with path.open("rb") as file:
        size = _update(digest, file)
        os.fsync(file.fileno())
    return FileEntry(size=size, digest=digest.text())


def wrong_size(path: Path, entry: FileEntry) -> str | None:
    """What a file's size has against its entry in the manifest; None if nothing.

    Raises:
        OSError: nobody can tell.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        path.parent.stat()  # the folder is not missing as well
        return f"{path.name} is missing"
    return None if size == entry.size else f"{path.name} has {size} bytes instead of {entry.size}"


def look(folder: Path) -> tuple[Manifest | None, str | None]:
    """A folder's manifest if it has a valid one, and what is wrong with it or with the sizes of its files.

    Raises:
        NewerFormatError: the manifest is of a format that is not known yet.
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
    """What a file's bytes have against its entry in the manifest; None if nothing."""
    try:
        return flaw(path, entry)
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def flaw(path: Path, entry: FileEntry) -> str | None:
    """The same; but that a file cannot be read need not be the file's fault.

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
    """What the digest of a file has against its entry in the manifest; None if nothing."""
    return None if digest == entry.digest else f"{path.name} has flipped bits: its digest is another"


def _update(digest: FileDigest, file: BinaryIO) -> int:
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
    return _numbered(directory, names.parse_step_folder)


def weights_folders(directory: Path) -> list[tuple[int, Path]]:
    """Folders that are named like what is left of thin ones, newest first, good or not."""
    return _numbered(directory, names.parse_weights_folder)


def _numbered(directory: Path, parse: Callable[[str], int | None]) -> list[tuple[int, Path]]:
    found = ((parse(entry.name), entry) for entry in directory.iterdir())
    return sorted(((step, path) for step, path in found if step is not None and _is_folder(path)), reverse=True)


def _is_folder(path: Path) -> bool:
    """Whether there is such a folder. `Path.is_dir` of Python 3.14 says no as well where nobody can tell."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:  # somebody has deleted it meanwhile
        return False


def too_new(checkpoint: object, error: NewerFormatError) -> VolumeLost:
    """The end of an attempt that meets a checkpoint of a newer Piton's: to pass it over would lose what it has."""
    return VolumeLost(
        f"{checkpoint} cannot be resumed from: {error}; train on with the image of the version that wrote it"
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint, whole or thin as the folder's name says.

    Raises:
        NewerFormatError: it is of a format that is not known yet.
        ValueError: the folder is not a checkpoint; the message says why.
        OSError: it cannot be read.
    """
    is_thin = names.parse_weights_folder(folder.name) is not None
    try:
        text = (folder / (names.WEIGHTS_FILE if is_thin else names.MANIFEST_FILE)).read_bytes().decode()
    except (FileNotFoundError, IsADirectoryError):
        folder.stat()  # the folder is not missing as well
        raise ValueError("it has no manifest") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"its manifest has flipped bits: {error}") from error
    manifest = Manifest.from_json(text)
    if folder.name not in (names.step_folder(manifest.step), names.weights_folder(manifest.step)):
        raise ValueError(f"its manifest speaks of step {manifest.step}")
    if manifest.weights_only != is_thin:
        raise ValueError(f"its manifest is that of a {'whole' if is_thin else 'thin'} checkpoint")
    return manifest


def committed(directory: Path) -> Iterator[CommittedCheckpoint]:
    """Checkpoints with a valid manifest, newest first. Their files have not been looked at.

    Raises:
        OSError: a manifest cannot be read.
    """
    for _, folder in step_folders(directory):
        try:
            yield CommittedCheckpoint(folder=folder, manifest=read_manifest(folder))
        except (FileNotFoundError, ValueError):  # it is none, or somebody has deleted it meanwhile
            continue


def shards_of(checkpoint: CommittedCheckpoint, rank: int) -> Mapping[str, FileEntry]:
    """The files of a checkpoint that the rank of this number has written."""
    kinds = tuple(f"{kind}{rank}_" for kind in ("__", WEIGHTS_SHARD))
    return {name: entry for name, entry in checkpoint.manifest.files.items() if name.startswith(kinds)}


def read_document(folder: Path) -> dict[str, Any]:
    """A checkpoint's state.json, or what takes its place in a thin one."""
    is_thin = names.parse_weights_folder(folder.name) is not None
    path = folder / (WEIGHTS_STATE_FILE if is_thin else STATE_FILE)
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return document


def discard(folder: Path) -> None:
    """Delete a folder; it stops being what it was at once, however long the deletion takes.

    What cannot be deleted yet is swept at the next save.
    """
    swept = folder.with_name(f"{SWEPT_PREFIX}{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):  # somebody else did it, or the answer to us was lost
        folder.rename(swept)
    shutil.rmtree(swept, ignore_errors=True)


def sweep(directory: Path, *, keep: Callable[[str], bool]) -> None:
    """Delete what is on its way out, and what was in flight and is not to be kept."""
    for entry in directory.iterdir():
        if entry.name.startswith(SWEPT_PREFIX):
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name.startswith(names.SAVING_PREFIX) and not keep(entry.name):
            discard(entry)
