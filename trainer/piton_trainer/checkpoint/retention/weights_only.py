"""A checkpoint made thin: the weights stay, what only a resume needs goes. No torch is needed, and no byte is moved.

    step-000001200/      MANIFEST.json  .metadata  state.json  __0_0.distcp     what a resume needs
                         weights.metadata  weights.json  weights_0_0.distcp     what stays
      + WEIGHTS.json                                                            the manifest of what stays
    weights-000001200/   by one rename; then what WEIGHTS.json does not name is deleted

Before the rename it is a whole checkpoint with one file too many, after it a thin one with some too many. The name of
the folder is another one, so that whoever looks for something to resume from never even sees it.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from piton.contract import names
from piton.contract.manifest import Manifest
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint


def can_be_thin(manifest: Manifest) -> bool:
    """Whether its weights stand apart: it was saved when the rules already asked for that."""
    return layout.WEIGHTS_INDEX_FILE in manifest.files


def make_thin(checkpoint: CommittedCheckpoint, disk: layout.Disk) -> Path:
    """Make a whole checkpoint thin; its new folder.

    Raises:
        OSError: the volume did not do it. The checkpoint is whole, or it is thin.
    """
    directory = checkpoint.folder.parent
    target = directory / names.weights_folder(checkpoint.manifest.step)
    manifest = _of_weights(checkpoint.manifest)
    text = manifest.to_json()
    disk.write(checkpoint.folder / names.WEIGHTS_FILE, text)
    # An attempt that had to go further back may have been at this step before.
    layout.discard(target)
    layout.rename(checkpoint.folder, target, witness=names.WEIGHTS_FILE, text=text)
    layout.sync_folder(directory)
    strip(CommittedCheckpoint(folder=target, manifest=manifest))
    return target


def strip(checkpoint: CommittedCheckpoint) -> None:
    """Delete what a thin checkpoint does not consist of. What cannot be deleted now is looked at again next time."""
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
