"""The digest of what a file holds, which is read once and then remembered.

Size and modification time alone prove nothing: a copy may keep both and hold something else, or hold the same and have
others. So the content counts; to read it costs less than a tenth of what it costs to parse it. It is read anew only
when size, modification time, change time or inode differ. Nobody can set the change time, so an edit that puts the
modification time back is seen. A file system that invents change times and inodes may hide such an edit.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from piton_trainer.clock import Clock
from piton_trainer.errors import BadConfig

SETTLED_SECONDS = 2.0
"""A file that was changed later than this is not remembered: a further change might have the same times."""


def content_digest(path: Path, memory: Path | None) -> str:
    """Return the SHA-256 of a file; the folder `memory` remembers it.

    Raises:
        BadConfig: it cannot be read.
    """
    try:
        before = path.stat()
        note = None if memory is None else memory / f"content-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
        if note is not None and (known := _read(note)).get("file") == _signature(before):
            return str(known["sha256"])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = path.stat()
    except OSError as error:
        raise BadConfig(f"trainer.config.data: cannot read {path}: {error.strerror}") from error
    age = Clock().now().timestamp() - after.st_ctime
    if note is not None and _signature(before) == _signature(after) and age > SETTLED_SECONDS:
        write_note(note, json.dumps({"file": _signature(after), "sha256": digest}))
    return digest


def write_note(path: Path, text: str) -> None:
    """Write a small file, in one step. Errors are ignored, because the note only saves work later."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)


def replace_text(path: Path, text: str) -> None:
    """Write a small file, in one step.

    Raises:
        OSError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _read(note: Path) -> dict[str, object]:
    with suppress(OSError, ValueError):
        fields = json.loads(note.read_text(encoding="utf-8"))
        if isinstance(fields, dict) and isinstance(fields.get("sha256"), str):
            return fields
    return {}


def _signature(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
