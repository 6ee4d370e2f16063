"""The newest checkpoint that is good, and its tensors.

Rank 0 lists and chooses; every rank verifies a share of the files. One that is not what its manifest says is named, and
the next older one is tried. Nothing is unpickled but torch's own index of the shards, and that by an allow-list.
"""

import logging
import os
import pickle
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from piton.contract.manifest import Manifest
from piton_trainer.checkpoint import layout
from piton_trainer.checkpoint.layout import Checkpoint
from piton_trainer.distributed import Ranks

logger = logging.getLogger(__name__)

_DCP = "torch.distributed.checkpoint"
_INDEX_CLASSES = {
    f"{_DCP}.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_DCP}.filesystem": {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},
}
"""All that torch puts into an index of tensors, besides the names of types such as torch.float32.

BytesStorageMetadata is left out on purpose: what it describes, torch would unpickle freely.
"""


def newest_good(directory: Path, ranks: Ranks) -> Checkpoint | None:
    """The newest checkpoint whose files are all there, unchanged; None when there is none."""
    for folder in ranks.on_main(lambda: [path for _, path in layout.step_folders(directory)]):
        manifest, problem = ranks.on_main(partial(_manifest, folder))
        if manifest is not None:
            problem = next((p for p in ranks.together(partial(_problem, folder, manifest, ranks)) if p), None)
            if problem is None:
                return Checkpoint(folder=folder, manifest=manifest)
        if ranks.is_main:
            logger.warning("%s is passed over: %s", folder.name, problem)
    return None


def load_tensors(checkpoint: Checkpoint, targets: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Fill the given tensors from the checkpoint, each with the part of it that this rank holds.

    A key without a tensor gets a new one on the CPU. Each rank loads on its own.

    Raises:
        ValueError: a tensor is not in the checkpoint, or has another shape there.
    """
    reader = IndexedReader(checkpoint)
    saved = reader.read_metadata().state_dict_metadata
    state: dict[str, Any] = {}
    for key, tensor in targets.items():
        entry = saved.get(key)
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{checkpoint.folder.name} has no tensor {key}")
        state[key] = torch.empty(entry.size, dtype=entry.properties.dtype) if tensor is None else tensor
        if state[key].size() != entry.size:
            here, there = tuple(state[key].size()), tuple(entry.size)
            raise ValueError(f"{key} has shape {here} here and {there} in {checkpoint.folder.name}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(state, storage_reader=reader, planner=DefaultLoadPlanner(flatten_state_dict=False), no_dist=True)
    return state


def _manifest(folder: Path) -> tuple[Manifest | None, str | None]:
    try:
        return layout.read_manifest(folder), None
    except ValueError as error:
        return None, str(error)


def _problem(folder: Path, manifest: Manifest, ranks: Ranks) -> str | None:
    """What is wrong with this rank's share of the files."""
    # Largest first, dealt out like cards, so that the ranks have about as much to read as each other.
    dealt = sorted(manifest.files.items(), key=lambda item: (-item[1].size, item[0]))[ranks.rank :: ranks.world_size]
    # Neither reading nor hashing holds the interpreter; a thread more per core keeps the disk busy.
    with ThreadPoolExecutor(2 * len(os.sched_getaffinity(0))) as threads:
        problems = threads.map(lambda item: layout.what_is_wrong(folder / item[0], item[1]), dealt)
        problem = next((p for p in problems if p), None)
    if problem is None and ranks.is_main:
        try:
            IndexedReader(Checkpoint(folder=folder, manifest=manifest)).read_metadata()
        except (OSError, ValueError) as error:
            return str(error)
    return problem


class IndexedReader(FileSystemReader):
    """torch's reader, with its one unpickling step fenced in."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.folder)
        self._files = checkpoint.manifest.files
        self._name = layout.WEIGHTS_INDEX_FILE if checkpoint.manifest.weights_only else layout.INDEX_FILE

    def read_metadata(self) -> Metadata:
        """The index of the shards.

        Raises:
            ValueError: it holds anything but the places of tensors in files of this checkpoint.
        """
        try:
            with (Path(self.path) / self._name).open("rb") as file:
                index = _IndexUnpickler(file).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, IndexError, KeyError) as error:
            raise ValueError(f"{self._name} is refused: {error}") from error
        if not isinstance(index, Metadata):
            raise ValueError(f"{self._name} is refused: it is not an index of shards")
        if not all(place.relative_path in self._files for place in index.storage_data.values()):
            raise ValueError(f"{self._name} is refused: it names a file that is not in the manifest")
        return index


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Allow what torch's index consists of, and nothing else."""
        if name in _INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) == ("builtins", "getattr"):
            return _member
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _member(kind: object, name: str) -> Enum:
    """Early Python 3.11 (Debian 12 has one) writes a member of an enum as getattr(class, name)."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[name]
    raise pickle.UnpicklingError("it asks for builtins.getattr")
