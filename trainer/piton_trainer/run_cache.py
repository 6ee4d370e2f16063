"""Files that a run creates once and every attempt needs: on the checkpoint volume, outside of checkpoints.

    <checkpoint directory>/cache/<name>/          whole, or not there
    <checkpoint directory>/cache/.making-<name>/  under way; swept by whoever makes it next

A name has to say all that the content depends on: what is there under that name is taken as it is. Nothing here is
mirrored, as it can be made again.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from piton_trainer.checkpoint.format import layout
from piton_trainer.runtime.process_group import Ranks

T = TypeVar("T")
FOLDER = "cache"


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
        if folder.is_dir():
            return
        aside = folder.with_name(f".making-{folder.name}")
        with layout.raise_out_of_space(self.directory):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            make(aside)
            for path in aside.iterdir():
                layout.seal(path)
            aside.rename(folder)
            layout.sync_folder(self.directory)
