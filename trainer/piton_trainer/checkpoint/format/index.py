"""Index of the shards in torch's format, read as untrusted data. Nothing else in this package is unpickled."""

import io
import pickle
from enum import Enum
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from piton.contract import InputError
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint

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
"""Classes that torch puts into an index of tensors, besides types such as torch.float32.

BytesStorageMetadata is left out on purpose: torch would unpickle the data that it describes without restrictions.
"""


def index_file(checkpoint: CommittedCheckpoint) -> str:
    """Return the name of the index file."""
    return layout.WEIGHTS_INDEX_FILE if checkpoint.manifest.weights_only else layout.INDEX_FILE


def parse_index(data: bytes, checkpoint: CommittedCheckpoint) -> Metadata:
    """Parse an index from these bytes.

    Raises:
        ValueError: it holds anything but the locations of tensors in files of this checkpoint.
    """
    name = index_file(checkpoint)
    try:
        index = _IndexUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, IndexError, KeyError) as error:
        raise InputError(f"{name} is refused: {error}") from error
    if not isinstance(index, Metadata):
        raise InputError(f"{name} is refused: it is not an index of shards")
    if not all(place.relative_path in checkpoint.manifest.files for place in index.storage_data.values()):
        raise InputError(f"{name} is refused: it names a file that is not in the manifest")
    return index


class IndexedReader(FileSystemReader):
    """Reader of torch that takes a parsed index instead of reading the file."""

    def __init__(self, checkpoint: CommittedCheckpoint, index: Metadata) -> None:
        super().__init__(checkpoint.folder)
        self._index = index

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the parsed index."""
        return self._index


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return a class of torch's index, and refuse all others."""
        if name in _INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) == ("builtins", "getattr"):
            return _member
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _member(kind: object, name: str) -> Enum:
    """Return a member of an enum: early Python 3.11 (as in Debian 12) pickles it as getattr(class, name)."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[name]
    raise pickle.UnpicklingError("it asks for builtins.getattr")
