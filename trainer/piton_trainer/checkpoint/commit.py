"""From shards that are written to a folder that counts: manifest, fence, rename; then retention.

Whoever commits does it here: rank 0 itself, or its writer, which has no torch.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from piton.contract import names
from piton.contract.assignment import Objective, SavePolicy
from piton.contract.manifest import FileEntry, Manifest
from piton_trainer.checkpoint import Saved, layout
from piton_trainer.checkpoint.fence import Fence
from piton_trainer.checkpoint.retention import steps_to_delete

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a manifest says, but for the files."""

    step: int
    world_size: int
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    created: str


class Committer:
    """The last part of every save, on rank 0."""

    def __init__(
        self,
        directory: Path,
        *,
        fence: Fence,
        policy: SavePolicy,
        objective: Objective | None = None,
        disk: layout.Disk,
    ) -> None:
        self.directory = directory
        self.fence = fence
        self._policy = policy
        self._objective = objective
        self._disk = disk

    def folder(self, step: int) -> Path:
        """Where a save of this step is in flight."""
        return layout.saving_folder(self.directory, step=step, attempt=self.fence.attempt, owner=self.fence.owner)

    def commit(self, draft: Draft, files: Mapping[str, FileEntry]) -> Saved:
        """Make the folder in flight a checkpoint. Its files are durable already.

        Raises:
            Fenced: another process may commit instead.
            OutOfSpace: the manifest does not fit.
        """
        folder, target = self.folder(draft.step), self.directory / names.step_folder(draft.step)
        manifest = Manifest(
            step=draft.step,
            attempt=self.fence.attempt,
            world_size=draft.world_size,
            files=files,
            metrics=draft.metrics,
            versions=draft.versions,
            created=draft.created,
        )
        with layout.full_disk_is_an_end(self.directory):
            self._disk.write(folder / names.MANIFEST_FILE, manifest.to_json())
        self.fence.check()
        if is_good(target):
            layout.discard(folder)
        else:
            layout.discard(target)
            folder.rename(target)
        layout.sync_folder(self.directory)
        return Saved(step=draft.step, folder=target, size=manifest.size)

    def follow_up(self, saved: Saved) -> None:
        """What comes after a commit and is no part of it: retention."""
        self._retain(saved.step)

    def _retain(self, newest: int) -> None:
        # A folder of a later step is one that a resume passed over: it is no reason to delete a good one.
        present = [c for c in layout.committed(self.directory) if c.manifest.step <= newest]
        measured = [(c.manifest.step, c.manifest.metrics) for c in present]
        for step in steps_to_delete(measured, policy=self._policy, objective=self._objective):
            try:
                layout.discard(self.directory / names.step_folder(step))
            except OSError as error:
                logger.warning("the checkpoint of step %d cannot be deleted: %s", step, error)


def is_good(folder: Path) -> bool:
    """Whether a folder is a checkpoint whose files are what its manifest says."""
    try:
        manifest = layout.read_manifest(folder)
    except ValueError:
        return False
    return not any(layout.what_is_wrong(folder / name, entry) for name, entry in manifest.files.items())
