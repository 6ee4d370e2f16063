"""Around the shards of a save: room and a folder before, manifest, fence and rename after; then retention.

Whoever commits does it here: rank 0 itself, or its writer, which has no torch.
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
from piton_trainer.checkpoint.retention.manager import RetentionManager, never
from piton_trainer.clock import Clock

_SHOWN_SECONDS = 10.0
"""How long a file that another node has written may stay invisible to this one."""


@dataclass(frozen=True, kw_only=True)
class ManifestDraft:
    """What a manifest says, but for the files."""

    step: int
    world_size: int
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    created: str


class Committer:
    """The first and the last part of every save, on rank 0."""

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
        """Where a save of this step is in flight."""
        return layout.saving_folder(self.directory, step=step, attempt=self.fence.attempt, owner=self.fence.owner)

    def begin(self, step: int, size: int) -> None:
        """Make sure that a checkpoint may be saved, and fits, and have its folder.

        Raises:
            Fenced: another process may save instead.
            OutOfSpace: it does not fit.
        """
        self.fence.check()
        folder = self.folder(step)
        mine = folder.name.removeprefix(f"{names.SAVING_PREFIX}{names.step_folder(step)}")
        # What an earlier save could not clean up; another attempt's is not ours to take away.
        layout.sweep(self.directory, keep=lambda name: name == folder.name or not name.endswith(mine))
        self._retention.make_room(step, size)
        layout.make_folder(folder)

    def commit(self, draft: ManifestDraft, files: Mapping[str, FileEntry]) -> Saved:
        """Make the folder in flight a checkpoint. Its files are durable already.

        Raises:
            Fenced: another process may commit instead.
            VolumeLost: a file is not on the volume.
            OSError: the volume did not do it.
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
        """Make sure that the files of all ranks are there, as this process sees the volume.

        A network volume may show what another node has written some seconds late.
        """
        for name, entry in files.items():
            self._retry(partial(self._expect_file, folder / name, entry), folder / name)

    def _expect_file(self, path: Path, entry: FileEntry) -> None:
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            self.fence.check()  # a later attempt takes away what is in flight
            raise OSError(errno.ENOENT, "no such file; do all ranks save into the same volume?") from error
        if size != entry.size:
            raise OSError(errno.EIO, f"it has {size} bytes, and {entry.size} were written")

    def follow_up(self, saved: Saved, *, is_wanted: Callable[[], bool] = never) -> None:
        """What comes after a commit and is no part of it: retention."""
        self._retention.retain(saved.step, is_wanted=is_wanted)


def is_good(folder: Path) -> bool:
    """Whether a folder is a checkpoint whose files are what its manifest says.

    Raises:
        OSError: a file of it cannot be read, so nobody can tell.
    """
    try:
        manifest = layout.read_manifest(folder)
    except (FileNotFoundError, ValueError):
        return False
    return not any(layout.flaw(folder / name, entry) for name, entry in manifest.files.items())
