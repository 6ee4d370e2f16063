"""Files that a run creates once and every attempt needs: on the checkpoint volume, outside of checkpoints.

    <checkpoint directory>/cache/<name>/          whole, or not there
    <checkpoint directory>/cache/.making-<name>/  under way; swept by whoever makes it next

A name has to say all that the content depends on: what is there under that name is taken as it is, if it has the files
that were written, in their sizes. Nothing here is mirrored, as it can be made again.
"""

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from piton_trainer.checkpoint.format import layout
from piton_trainer.runtime.process_group import Ranks

T = TypeVar("T")
FOLDER = "cache"
_SIZES = ".sizes.json"
"""In each folder that this version has made."""
_log = logging.getLogger(__name__)


class RunCache:
    """All ranks call its methods together."""

    def __init__(self, directory: Path, ranks: Ranks) -> None:
        self.directory = directory
        self._ranks = ranks

    @property
    def rank(self) -> int:
        """This process among all ranks."""
        return self._ranks.rank

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self._ranks.world_size

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something on rank 0; its result, or its failure, is everybody's."""
        return self._ranks.on_main(action)

    def together(self, action: Callable[[], T]) -> list[T]:
        """Do something on every rank; when it fails on one, it fails on all."""
        return self._ranks.together(action)

    def has(self, name: str) -> bool:
        """True if it was made before."""
        return self.on_main((self.directory / name).is_dir)

    def folder(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of this name; rank 0 has `make` fill it if it is not there."""
        self.on_main(lambda: self._make(self.directory / name, make))
        return self.directory / name

    def _make(self, folder: Path, make: Callable[[Path], object]) -> None:
        if folder.is_dir() and not _is_damaged(folder):
            return
        aside = folder.with_name(f".making-{folder.name}")
        with layout.raise_out_of_space(self.directory):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            make(aside)
            (aside / _SIZES).write_text(json.dumps(_sizes(aside)), encoding="utf-8")
            for path in aside.iterdir():
                layout.seal(path)
            layout.discard(folder)  # it is not there, or damaged
            aside.rename(folder)
            layout.sync_folder(self.directory)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != _SIZES}


def _is_damaged(folder: Path) -> bool:
    """True if files of a folder are missing or have other sizes. Of one that an earlier version made nobody knows."""
    with suppress(FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        if json.loads((folder / _SIZES).read_text(encoding="utf-8")) != _sizes(folder):
            _log.warning("%s: files are missing or have other sizes than when it was made; it is made anew", folder)
            return True
    return False
