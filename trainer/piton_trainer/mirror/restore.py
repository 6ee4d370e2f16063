"""Download of the newest checkpoint from the bucket to a volume.

It is written to `.restoring-<its folder in the bucket>` and becomes a checkpoint by one rename, after the digest of
every file was compared with the manifest. An incomplete checkpoint is logged, and the next older one is tried.

An interrupted download is continued, also that of an earlier attempt: the name of the folder identifies the manifest,
and the digests verify the contents.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from piton.contract import names
from piton.contract.manifest import FileEntry, Manifest, NewerFormatError
from piton_trainer.checkpoint.format import layout
from piton_trainer.clock import Clock
from piton_trainer.errors import OutOfSpace
from piton_trainer.mirror.bucket import Bucket
from piton_trainer.mirror.keys import Latest, folder_of, parse_folder
from piton_trainer.mirror.transfer import TransferMeter
from piton_trainer.s3 import ObjectNotFound

logger = logging.getLogger(__name__)

RESTORING_PREFIX = ".restoring-"
_FILES_AT_ONCE = 4


def restore(
    bucket: Bucket, latest: Latest | None, directory: Path, *, newer_than: int, meter: TransferMeter | None = None
) -> int | None:
    """Fetch the newest complete checkpoint, if it is newer than this step; return its step, or None.

    Without a record (`latest` is None) the newest of all folders is taken.

    Raises:
        OutOfSpace: the volume is full. No partial download is left on it.
        S3Error: the bucket does not answer. The partial download stays, for the next try.
        VolumeLost: a newer version of Piton wrote the checkpoint.
    """
    meter = meter or TransferMeter(Clock(), lambda _: None, is_restore=True)
    for folder in _candidates(bucket, latest):
        step = parse_folder(folder)
        if step is None or step <= newer_than:
            continue
        sweep(directory, keep=folder)
        try:
            with layout.raise_out_of_space(directory):
                problem = _fetch(bucket, folder, step, directory, meter)
        except OutOfSpace:
            sweep(directory)
            raise
        if problem is None:
            return step
        logger.warning("%s in the mirror is passed over: %s", folder, problem)
    sweep(directory)
    return None


def sweep(directory: Path, *, keep: str | None = None) -> None:
    """Delete partial downloads, except that of folder `keep` of the bucket."""
    for entry in directory.iterdir():
        if entry.name.startswith(RESTORING_PREFIX) and entry.name != f"{RESTORING_PREFIX}{keep}":
            layout.discard(entry)


def _candidates(bucket: Bucket, latest: Latest | None) -> list[str]:
    """Return the folder that `latest` names, then the complete older ones, newest first."""
    newest = None if latest is None else latest.newest
    if latest is not None and newest is None:
        return []
    whole = [name for name, files in bucket.folders().items() if names.MANIFEST_FILE in files]
    if newest is None:
        return sorted((name for name in whole if parse_folder(name) is not None), reverse=True)
    older = [name for name in whole if (parse_folder(name) or 0) <= newest.step and name != newest.folder]
    return [newest.folder, *sorted(older, reverse=True)]


def _fetch(bucket: Bucket, folder: str, step: int, directory: Path, meter: TransferMeter) -> str | None:
    """Download a folder and make it a checkpoint of the volume; return the problem with it, or None."""
    try:
        text = bucket.read(folder, names.MANIFEST_FILE)[0]
        manifest = Manifest.from_json(text)
    except ObjectNotFound:
        return "it has no manifest"
    except NewerFormatError as error:
        raise layout.too_new(f"{folder} in the mirror", error) from error
    except ValueError as error:
        return str(error)
    if folder_of(step, text) != folder:
        return "its manifest is another folder's"
    aside = directory / f"{RESTORING_PREFIX}{folder}"
    layout.make_folder(aside)
    for left in aside.iterdir():
        if left.name not in manifest.files:
            left.unlink()
    meter.begin(step, manifest.size)
    if problem := _files(bucket, folder, manifest, aside, meter):
        return problem
    layout.Disk().write(aside / names.MANIFEST_FILE, text)
    target = directory / names.step_folder(step)
    layout.discard(target)
    aside.rename(target)
    layout.sync_folder(directory)
    return None


def _files(bucket: Bucket, folder: str, manifest: Manifest, aside: Path, meter: TransferMeter) -> str | None:
    def fetch(item: tuple[str, FileEntry]) -> str | None:
        name, entry = item
        path = aside / name
        has_leftover = path.exists()
        download = partial(bucket.download, path, folder, name, like=entry, kept=meter.kept, moved=meter.moved)
        try:
            there = download()
            if there != entry and has_leftover:
                # The leftover is not the start of the object: a node that crashed has not written all data to disk.
                path.unlink()
                meter.kept(-there.size)
                there = download()
        except ObjectNotFound:
            return f"{name} is missing"
        return None if there == entry else f"{name} is not what the manifest says"

    with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="restore") as pool:
        problems = list(pool.map(fetch, manifest.files.items()))
    return next((problem for problem in problems if problem), None)
