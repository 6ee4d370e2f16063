"""Steps before and after the shards of a save: free space and a folder before, manifest, fence and rename after.

Retention follows. Every commit uses this module: in rank 0 itself, or in its writer, which has no torch.
"""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from piton.contract import names
from piton.contract.assignment import Objective, SavePolicy
from piton.contract.manifest import FileEntry, Manifest
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.format.retry import Retry
from piton_trainer.checkpoint.retention import RetentionManager, never
from piton_trainer.clock import Clock

_SHOWN_SECONDS = 10.0
"""Time for which a file of another node may stay invisible to this node."""


@dataclass(frozen=True, kw_only=True)
class ManifestDraft:
    """Contents of a manifest, except the files."""

    step: int
    world_size: int
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    created: str


class Committer:
    """First and last part of every save, on rank 0."""

    def __init__(
        self,
        directory: Path,
        *,
        fence: Fence,
        policy: SavePolicy,
        objective: Objective | None = None,
        disk: layout.Disk,
        clock: Clock | None = None,
    ) -> None:
        self.directory = directory
        self.fence = fence
        self._disk = disk
        self._retry = Retry(clock, seconds=_SHOWN_SECONDS, answers=())
        self._retention = RetentionManager(directory, policy=policy, objective=objective, disk=disk)

    def folder(self, step: int) -> Path:
        """Return the folder in flight for a save of this step."""
        return layout.saving_folder(self.directory, step=step, attempt=self.fence.attempt, owner=self.fence.owner)

    def begin(self, step: int, size: int) -> None:
        """Make sure that a checkpoint may be saved and fits, and create its folder.

        Raises:
            Fenced: another process may save instead.
            OutOfSpace: it does not fit.
        """
        self.fence.check()
        folder = self.folder(step)
        mine = folder.name.removeprefix(f"{names.SAVING_PREFIX}{names.step_folder(step)}")
        # Delete the leftovers of earlier saves, but not those of another attempt.
        layout.sweep(self.directory, keep=lambda name: name == folder.name or not name.endswith(mine))
        self._retention.make_room(step, size)
        layout.make_folder(folder)

    def commit(self, draft: ManifestDraft, files: Mapping[str, FileEntry]) -> Saved:
        """Make the folder in flight a checkpoint. Its files are durable already.

        Raises:
            Fenced: another process may commit instead.
            VolumeLost: a file is not on the volume.
            OSError: the volume failed.
        """
        folder, target = self.folder(draft.step), self.directory / names.step_folder(draft.step)
        self._expect_files(folder, files)
        manifest = Manifest(
            step=draft.step,
            attempt=self.fence.attempt,
            world_size=draft.world_size,
            files=files,
            metrics=draft.metrics,
            versions=draft.versions,
            created=draft.created,
        )
        text = manifest.to_json()
        self._disk.write(folder / names.MANIFEST_FILE, text)
        self.fence.check()
        if is_good(target):
            layout.discard(folder)
        else:
            layout.discard(target)
            layout.rename(folder, target, witness=names.MANIFEST_FILE, text=text)
        layout.sync_folder(self.directory)
        self._retention.committed(draft.step)
        return Saved(step=draft.step, folder=target, size=manifest.size, free=self._retention.free)

    def _expect_files(self, folder: Path, files: Mapping[str, FileEntry]) -> None:
        """Check that the files of all ranks are visible to this process.

        A network volume may show files of another node some seconds late.
        """
        for name, entry in files.items():
            self._retry(partial(self._expect_file, folder / name, entry), folder / name)

    def _expect_file(self, path: Path, entry: FileEntry) -> None:
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            self.fence.check()  # a later attempt deletes folders in flight
            raise OSError(errno.ENOENT, "no such file; do all ranks save into the same volume?") from error
        if size != entry.size:
            raise OSError(errno.EIO, f"it has {size} bytes, and {entry.size} were written")

    def follow_up(self, saved: Saved, *, is_wanted: Callable[[], bool] = never) -> None:
        """Apply retention after a commit."""
        self._retention.retain(saved.step, is_wanted=is_wanted)


def is_good(folder: Path) -> bool:
    """Return True if a folder is a checkpoint whose files match its manifest.

    Raises:
        OSError: a file cannot be read, so the result is unknown.
    """
    try:
        manifest = layout.read_manifest(folder)
    except (FileNotFoundError, ValueError):
        return False
    return not any(layout.flaw(folder / name, entry) for name, entry in manifest.files.items())
