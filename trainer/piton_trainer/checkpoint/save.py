"""One checkpoint, from tensors in memory to a folder that counts.

    every rank   write shards, then hash them and make them durable
    rank 0       state.json before that; afterwards the manifest, the fence, the rename, retention

A step that fails on one rank fails on all of them, and the folder in flight is removed.
"""

import json
import logging
import platform
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save

from piton.contract import names
from piton.contract.assignment import Objective, SavePolicy
from piton.contract.manifest import FileEntry, Manifest
from piton_trainer.checkpoint import Saved, Snapshot, layout
from piton_trainer.checkpoint.fence import Fence
from piton_trainer.checkpoint.retention import steps_to_delete
from piton_trainer.clock import Clock
from piton_trainer.distributed import Ranks

logger = logging.getLogger(__name__)


class SyncCheckpointer:
    """A `Checkpointer` whose `save` returns when the checkpoint is durable."""

    def __init__(
        self,
        directory: Path,
        *,
        ranks: Ranks,
        fence: Fence,
        policy: SavePolicy,
        objective: Objective | None = None,
        disk: layout.Disk,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._ranks = ranks
        self._fence = fence
        self._policy = policy
        self._objective = objective
        self._disk = disk
        self._clock = clock
        self._durable: Saved | None = None

    @property
    def durable(self) -> Saved | None:
        """The newest checkpoint that this process has made durable."""
        return self._durable

    def wait(self) -> None:
        """Nothing is ever in flight."""

    def save(self, snapshot: Snapshot) -> None:
        """Save, durably, on all ranks together."""
        folder = layout.saving_folder(
            self._directory, step=snapshot.step, attempt=self._fence.attempt, owner=self._fence.owner
        )
        try:
            self._ranks.on_main(partial(self._begin, folder, snapshot))
            self._write_shards(folder, snapshot)
            sealed = self._ranks.together(partial(self._seal, folder))
            files = {name: entry for part in sealed for name, entry in part.items()}
            self._durable = self._ranks.on_main(partial(self._commit, folder, snapshot, files))
        except BaseException:
            if self._ranks.is_main:
                layout.discard(folder)
            # A claim sweeps our folder away under us; then the fence is the reason, not the file that is missing.
            self._ranks.on_main(self._fence.check)
            raise
        if self._ranks.is_main:
            self._retain(snapshot.step)

    def _begin(self, folder: Path, snapshot: Snapshot) -> None:
        self._fence.check()
        with layout.full_disk_is_an_end(self._directory):
            folder.mkdir()
            self._disk.write(folder / layout.STATE_FILE, json.dumps(snapshot.document))

    def _write_shards(self, folder: Path, snapshot: Snapshot) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            try:
                save(
                    dict(snapshot.tensors),
                    storage_writer=self._disk.writer(folder),
                    planner=DefaultSavePlanner(flatten_state_dict=False),
                    process_group=self._ranks.group,
                    no_dist=self._ranks.world_size == 1,
                )
            except CheckpointException as error:
                _raise_first(error, self._directory)

    def _seal(self, folder: Path) -> dict[str, FileEntry]:
        """This rank's files, and on rank 0 those that are everybody's."""
        own = sorted(folder.glob(f"__{self._ranks.rank}_*"))
        if self._ranks.is_main:
            own += [folder / ".metadata", folder / layout.STATE_FILE]
        with layout.full_disk_is_an_end(self._directory):
            return {path.name: layout.seal(path) for path in own}

    def _commit(self, folder: Path, snapshot: Snapshot, files: Mapping[str, FileEntry]) -> Saved:
        manifest = Manifest(
            step=snapshot.step,
            attempt=self._fence.attempt,
            world_size=self._ranks.world_size,
            files=files,
            metrics=snapshot.metrics,
            versions={"torch": torch.__version__, "python": platform.python_version()},
            created=self._clock.now().isoformat(timespec="seconds"),
        )
        with layout.full_disk_is_an_end(self._directory):
            self._disk.write(folder / names.MANIFEST_FILE, manifest.to_json())
        target = self._directory / names.step_folder(snapshot.step)
        self._fence.check()
        if is_good(target):
            layout.discard(folder)
        else:
            layout.discard(target)
            folder.rename(target)
        layout.sync_folder(self._directory)
        return Saved(step=snapshot.step, folder=target, size=manifest.size)

    def _retain(self, newest: int) -> None:
        # A folder of a later step is one that a resume passed over: it is no reason to delete a good one.
        present = [c for c in layout.committed(self._directory) if c.manifest.step <= newest]
        measured = [(c.manifest.step, c.manifest.metrics) for c in present]
        for step in steps_to_delete(measured, policy=self._policy, objective=self._objective):
            try:
                layout.discard(self._directory / names.step_folder(step))
            except OSError as error:
                logger.warning("the checkpoint of step %d cannot be deleted: %s", step, error)


def is_good(folder: Path) -> bool:
    """Whether a folder is a checkpoint whose files are what its manifest says."""
    try:
        manifest = layout.read_manifest(folder)
    except ValueError:
        return False
    return not any(layout.what_is_wrong(folder / name, entry) for name, entry in manifest.files.items())


def _raise_first(error: CheckpointException, directory: Path) -> NoReturn:
    """Raise what the first rank that failed had to say; a full disk on any rank is a full disk."""
    causes = {rank: cause for rank, (cause, _) in error.failures.items()}
    with layout.full_disk_is_an_end(directory):
        for cause in causes.values():
            if isinstance(cause, OSError) and cause.errno in layout.NO_SPACE:
                raise cause
    rank, cause = min(causes.items(), key=lambda item: item[0])
    raise RuntimeError(f"rank {rank} failed to write its shard: {type(cause).__name__}: {cause}") from error
