"""The newest checkpoint out of the bucket into a volume.

It goes into `.restoring-…` and becomes a checkpoint by one rename, after every file's digest was compared with the
manifest. One that is not whole is named, and the next older one is tried.
"""

import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from piton.contract import names
from piton.contract.manifest import FileEntry, Manifest
from piton_trainer.checkpoint import layout
from piton_trainer.mirror.bucket import Bucket
from piton_trainer.mirror.place import Latest, folder_of, parse_folder
from piton_trainer.s3 import Missing

logger = logging.getLogger(__name__)

RESTORING_PREFIX = ".restoring-"
_FILES_AT_ONCE = 4


def restore(bucket: Bucket, latest: Latest, directory: Path, *, newer_than: int) -> int | None:
    """Fetch the newest whole checkpoint, if it is newer than this step; its step, or None.

    Raises:
        OutOfSpace: the volume is full.
        Trouble: the bucket does not answer.
    """
    _sweep(directory)
    for folder in _candidates(bucket, latest):
        step = parse_folder(folder)
        if step is None or step <= newer_than:
            continue
        with layout.full_disk_is_an_end(directory):
            problem = _fetch(bucket, folder, step, directory)
        if problem is None:
            return step
        logger.warning("%s in the mirror is passed over: %s", folder, problem)
    return None


def _candidates(bucket: Bucket, latest: Latest) -> list[str]:
    """What `latest` names, then what is whole and older."""
    if latest.newest is None:
        return []
    whole = [name for name, files in bucket.folders().items() if names.MANIFEST_FILE in files]
    older = [name for name in whole if (parse_folder(name) or 0) <= latest.newest.step and name != latest.newest.folder]
    return [latest.newest.folder, *sorted(older, reverse=True)]


def _sweep(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.name.startswith(RESTORING_PREFIX):
            layout.discard(entry)


def _fetch(bucket: Bucket, folder: str, step: int, directory: Path) -> str | None:
    """Make it a checkpoint of the volume; what is wrong with it otherwise."""
    try:
        text = bucket.read(folder, names.MANIFEST_FILE)[0]
        manifest = Manifest.from_json(text)
    except Missing:
        return "it has no manifest"
    except ValueError as error:
        return str(error)
    if folder_of(step, text) != folder:
        return "its manifest is another folder's"
    aside = directory / f"{RESTORING_PREFIX}{names.step_folder(step)}-{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        if problem := _files(bucket, folder, manifest, aside):
            return problem
        layout.Disk().write(aside / names.MANIFEST_FILE, text)
        target = directory / names.step_folder(step)
        layout.discard(target)
        aside.rename(target)
        layout.sync_folder(directory)
    finally:
        if aside.exists():
            layout.discard(aside)
    return None


def _files(bucket: Bucket, folder: str, manifest: Manifest, aside: Path) -> str | None:
    def fetch(item: tuple[str, FileEntry]) -> str | None:
        name, entry = item
        try:
            there = bucket.download(aside / name, folder, name, like=entry)
        except Missing:
            return f"{name} is missing"
        return None if there == entry else f"{name} is not what the manifest says"

    with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="restore") as pool:
        problems = list(pool.map(fetch, manifest.files.items()))
    return next((problem for problem in problems if problem), None)
