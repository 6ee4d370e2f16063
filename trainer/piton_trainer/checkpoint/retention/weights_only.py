"""Thin checkpoints: the weights stay, files that only a resume needs are deleted. No torch is needed, no byte is moved.

    step-000001200/      MANIFEST.json  .metadata  state.json  __0_0.distcp     files that only a resume needs
                         weights.metadata  weights.json  weights_0_0.distcp     files that stay
      + WEIGHTS.json                                                            the manifest of the files that stay
    weights-000001200/   by one rename; then files that WEIGHTS.json does not name are deleted

Before the rename it is a whole checkpoint with one extra file, after it a thin one with some extra files. The folder
has a different name, so that a search for a checkpoint to resume from does not find it.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from piton.contract import names
from piton.contract.manifest import Manifest
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint


def can_be_thin(manifest: Manifest) -> bool:
    """Return True if its weights are in separate files: the rules already required that when it was saved."""
    return layout.WEIGHTS_INDEX_FILE in manifest.files


def make_thin(checkpoint: CommittedCheckpoint, disk: layout.Disk) -> Path:
    """Make a whole checkpoint thin, and return its new folder.

    Raises:
        OSError: the volume failed. The checkpoint is either whole or thin.
    """
    directory = checkpoint.folder.parent
    target = directory / names.weights_folder(checkpoint.manifest.step)
    manifest = _of_weights(checkpoint.manifest)
    text = manifest.to_json()
    disk.write(checkpoint.folder / names.WEIGHTS_FILE, text)
    # There may be a thin checkpoint of this step from before a resume from an earlier step.
    layout.discard(target)
    layout.rename(checkpoint.folder, target, witness=names.WEIGHTS_FILE, text=text)
    layout.sync_folder(directory)
    strip(CommittedCheckpoint(folder=target, manifest=manifest))
    return target


def strip(checkpoint: CommittedCheckpoint) -> None:
    """Delete the files that do not belong to a thin checkpoint. Files that cannot be deleted are retried next time."""
    for path in checkpoint.folder.iterdir():
        if path.name not in checkpoint.manifest.files and path.name != names.WEIGHTS_FILE:
            with suppress(OSError):
                path.unlink()


def _of_weights(manifest: Manifest) -> Manifest:
    files = {
        name: entry
        for name, entry in manifest.files.items()
        if name in layout.WEIGHTS_FILES or name.startswith(layout.WEIGHTS_SHARD)
    }
    return replace(manifest, files=files, weights_only=True)
