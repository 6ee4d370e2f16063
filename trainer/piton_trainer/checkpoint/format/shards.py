"""Shard writer of torch, for saves that training waits for, and separate shards for weights.

A checkpoint that may be made thin later has its weights in separate files with a separate index, so that making it thin
needs no torch and moves no bytes. See `weights_only`.
"""

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter, _StoragePrefix
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from piton_trainer.checkpoint.format import layout

_SHARD = "__"
"""Prefix that torch gives to the names of shards."""


def prefix_of(*, apart: bool) -> Callable[[str], str]:
    """Return the function that gives the file name prefix of a tensor, with or without separate weights."""
    return lambda key: layout.WEIGHTS_SHARD if apart and is_weight(key) else _SHARD


def is_weight(key: str) -> bool:
    """Return True if a tensor belongs to the model or to its average."""
    return key.split("/", 1)[0] in layout.WEIGHTS


def weights_index(index: Metadata) -> bytes | None:
    """Return the part of an index for the weights, pickled for its file; None if there are no weights."""
    weights = {key: entry for key, entry in index.state_dict_metadata.items() if is_weight(key)}
    places = {place: where for place, where in (index.storage_data or {}).items() if is_weight(place.fqn)}
    return pickle.dumps(replace(index, state_dict_metadata=weights, storage_data=places)) if weights else None


class _Files(FileSystem):
    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Rename the index. It exists nowhere else, so if it is at the target, only the response was lost."""
        try:
            super().rename(path, new_path)
        except FileNotFoundError:
            if not self.exists(new_path):
                raise


class ShardWriter(FileSystemWriter):
    """Writes shards, and raises the original error of the disk."""

    def __init__(self, folder: Path, *, apart: bool) -> None:
        # torch calls fsync before it flushes, so `seal` does it afterwards.
        super().__init__(folder, sync_files=False)
        self.fs = _Files()
        self._apart = apart

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the shards, and raise the OSError that torch.save hides behind a RuntimeError."""
        prefix = prefix_of(apart=self._apart)
        written: list[WriteResult] = []
        try:
            for kind in dict.fromkeys(prefix(item.index.fqn) for item in plan.items):
                items = [item for item in plan.items if prefix(item.index.fqn) == kind]
                name = _StoragePrefix(plan.storage_data.prefix.replace(_SHARD, kind, 1))
                written += super().write_data(replace(plan, items=items, storage_data=name), planner).wait()
        except RuntimeError as error:
            cause = error.__context__
            if isinstance(cause, OSError):
                raise cause from None
            raise
        done: Future[list[WriteResult]] = Future()
        done.set_result(written)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index, and that of the weights."""
        super().finish(metadata, results)
        if self._apart and (index := weights_index(metadata)) is not None:
            (Path(self.path) / layout.WEIGHTS_INDEX_FILE).write_bytes(index)
