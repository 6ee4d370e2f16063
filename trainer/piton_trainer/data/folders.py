"""The files of a folder that are data, and a sentence about everything in it that is not.

Names with a leading dot are no data: notebooks, macOS and git leave such files and folders beside those of a user.
Linked folders are not followed, as a link may lead back to where it stands.
"""

import logging
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

_log = logging.getLogger(__name__)
_MOST = 8
"""Suffixes that are named in a sentence."""
HIDDEN = "with a leading dot"
LINKED = "linked folders"
NO_FILES = "links that lead nowhere, or no files"
CLOSED = "folders without permission to read"


def is_hidden(name: str) -> bool:
    """True if a part of a path has a leading dot; `./x` and `../x` are ways and no names."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


@dataclass
class LeftOut:
    """Counts of what is no data, by kind."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, where: str = "") -> None:
        """Count a file by the end of its name."""
        suffix = ".tar" * Path(name).stem.lower().endswith(".tar") + Path(name).suffix
        self.counts[f"{f'*{suffix}' if suffix else 'without a suffix'}{where}"] += 1

    def say(self, source: str) -> None:
        """Log a line about the source, if anything is left out."""
        if counts := +self.counts:
            told = [f"{count} {kind}" for kind, count in counts.most_common(_MOST)]
            more = len(counts) - len(told)
            rest = f" and {more} other kinds" if more > 0 else ""
            _log.warning("%s: not taken for data are %s%s", printable(source), ", ".join(told), rest)


def files_below(root: Path, suffixes: Collection[str], left_out: LeftOut, *, any_case: bool = True) -> list[Path]:
    """Return the files with these suffixes at any depth, sorted; count the others.

    Raises:
        OSError: the folder cannot be read.
    """
    files: list[Path] = []

    def refused(error: OSError) -> None:
        if not isinstance(error, PermissionError):
            raise error
        left_out.counts[CLOSED] += 1  # a volume's lost+found, which is nobody's data

    for folder, folders, names in os.walk(root, onerror=refused):
        links = {name for name in folders if not is_hidden(name) and Path(folder, name).is_symlink()}
        left_out.counts[HIDDEN] += sum(is_hidden(name) for name in (*folders, *names))
        left_out.counts[LINKED] += len(links)
        folders[:] = [name for name in folders if name not in links and not is_hidden(name)]
        for name in names:
            suffix = Path(name).suffix
            if is_hidden(name):
                continue
            if not Path(folder, name).is_file():
                left_out.counts[NO_FILES] += 1
            elif (suffix.lower() if any_case else suffix) in suffixes:
                files.append(Path(folder, name))
            else:
                left_out.add(name)
    return sorted(files)


def printable(name: str | Path) -> str:
    """Return a name that can be written into a log, also when it is no UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
