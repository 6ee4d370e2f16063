"""Data that is read once, and kept in a folder of the run's cache whose name says of what it was made.

The name is a digest of the content of the sources. Earlier versions of Piton named the folder by sizes and modification
times. A folder with such a name is taken once, for the content that its sources have then: `<kind>-<content>.is` beside
it says so. So a run goes on with what it has prepared, and sees each other content from then on.
"""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from piton_trainer.data.content import write_note
from piton_trainer.data.skipped import MANIFEST, SkippedData, Skips, load
from piton_trainer.data.stream import earlier_version_of, version_of
from piton_trainer.errors import BadConfig
from piton_trainer.run_cache import RunCache

VersionOf = Callable[[str], str]
_DIGEST = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class Key:
    """Digests of the sources that data was made of."""

    content: str
    """Digest of the sources' content and of the settings."""
    stamps: str
    """The same of sizes and modification times, as earlier versions of Piton have it in checkpoints."""
    folder: str
    """The one of such digests by which the folder is named."""

    @property
    def earlier(self) -> frozenset[str]:
        """Digests under which a checkpoint of an earlier version may know this content."""
        return frozenset({self.stamps, self.folder})


def prepare_folder(
    kind: str,
    parts: Callable[[VersionOf], object],
    make: Callable[[Path, Skips], object],
    run_cache: RunCache,
    skipped_data: SkippedData | None,
) -> tuple[Key, Path]:
    """Return the key of data and the folder that holds it. All ranks call it together.

    Args:
        kind: the first part of the folder's name.
        parts: returns all that the data depends on, with the version of each source that the given function has.
        make: fills a folder that is there; it hands damaged examples to the given `Skips`.
        run_cache: where the folder is, or is made.
        skipped_data: takes the list of what was left out. With None nothing may be left out.

    Raises:
        BadConfig: a source cannot be used, changes while it is read, or more of it was left out than is accepted.
    """
    skipped_data = skipped_data or SkippedData()
    memory, versions = run_cache.directory, dict[str, str]()

    def version(source: str) -> str:
        versions[source] = version_of(source, memory)
        return versions[source]

    def make_key() -> Key:
        content = _digest(parts(version))  # this fills `versions`
        stamps = _digest(parts(lambda source: earlier_version_of(source, versions[source])))
        return Key(content=content, stamps=stamps, folder=_folder(kind, content, stamps, memory))

    def fill(folder: Path) -> None:
        skips = Skips(skipped_data.most)
        make(folder, skips)
        for source, before in versions.items():
            if version_of(source, memory) != before:
                raise BadConfig(
                    f"trainer.config.data: {source} has changed while it was read; start again when it is complete"
                )
        skips.save(folder)

    key = run_cache.on_main(make_key)
    folder = run_cache.folder(f"{kind}-{key.folder}", fill)
    skipped_data.add(folder / MANIFEST, load(folder, skipped_data.most))
    return key, folder


def _folder(kind: str, content: str, stamps: str, memory: Path) -> str:
    note = memory / f"{kind}-{content}.is"
    if noted := _read_note(note):
        return noted
    if content == stamps or not (memory / f"{kind}-{stamps}").is_dir():
        return content
    for other in memory.glob(f"{kind}-*.is"):
        if other != note and _read_note(other) in (stamps, None):
            return content  # it was, or may have been, made of another content, which had the same size and time
    write_note(note, stamps)
    return stamps


def _read_note(path: Path) -> str | None:
    """Return the digest in a note; None where there is none, or the note is damaged."""
    with suppress(OSError, UnicodeDecodeError):
        text = path.read_text(encoding="utf-8")
        return text if _DIGEST.fullmatch(text) else None
    return None


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
