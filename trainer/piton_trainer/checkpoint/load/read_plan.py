"""Mapping of file bytes to tensor data for a load.

torch's planner determines the part of each saved chunk that this rank needs, for any world size in the save and in the
load. A chunk is one archive of `torch.save`, and the bytes before its data follow from type and shape (see `archive`).
So the location of the data is known before anything is read, and a mismatch is detected afterwards.

    whole rows, for memory on the CPU                     directly into the tensor
    anything else (columns, a different type, a GPU)      into temporary rows, which are copied as soon as they are read
    an archive with a different head                      torch loads that tensor
"""

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from piton_trainer.checkpoint.format.archive import Frame, frame_of
from piton_trainer.checkpoint.load.reader import ReadTarget

_CHECKSUM = re.compile(rb"(PK\x07\x08).{4}", re.DOTALL)
"""Pattern of the checksums in a head, which torch writes and `archive` does not."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Expected and actual bytes before the data of a chunk."""

    key: str
    expected: bytes
    found: Tensor

    @property
    def is_right(self) -> bool:
        """True if the data was at the expected location, in the expected order."""
        found = bytes(self.found.tolist())
        return found == self.expected or _CHECKSUM.sub(rb"\1", found) == _CHECKSUM.sub(rb"\1", self.expected)


@dataclass(kw_only=True)
class ReadPlan:
    """Targets in memory for all data that this rank needs from a checkpoint."""

    landings: dict[str, list[ReadTarget]] = field(default_factory=lambda: defaultdict(list))
    """Read targets by file name."""
    heads: dict[tuple[str, int], Head] = field(default_factory=dict)
    unusual: set[str] = field(default_factory=set)

    @property
    def needs(self) -> dict[str, int]:
        """Number of bytes needed from each file."""
        return {name: sum(len(landing.into) for landing in landings) for name, landings in self.landings.items()}

    def take(self, name: str) -> deque[ReadTarget]:
        """Remove and return the targets of a file, by offset; removal lets memory be freed as soon as it is used."""
        landings = sorted(self.landings.pop(name, ()), key=lambda landing: landing.start)
        assert all(before.end <= after.start for before, after in pairwise(landings))
        return deque(landings)

    def strangers(self) -> set[str]:
        """Return the tensors that could not be read this way. Call it after the files have been read."""
        return self.unusual | {head.key for head in self.heads.values() if not head.is_right}


def read_plan_of(index: Metadata, targets: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> ReadPlan:
    """Plan the reads.

    Args:
        index: the index of the checkpoint.
        targets: the tensors of the training, sharded or not; they determine the data that is needed.
        into: this rank's part of each tensor, which will be filled.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    planner.set_up_planner(dict(targets), index, is_coordinator=True)
    found = ReadPlan()
    chunks = _chunks(index, targets)
    for item in planner.create_local_plan().items:
        dtype, shape = chunks[item.storage_index.fqn, item.storage_index.offset]
        _take_aim(found, item, index.storage_data[item.storage_index], dtype, shape, into[item.dest_index.fqn])
    return found


def _chunks(
    index: Metadata, keys: Iterable[str]
) -> dict[tuple[str, torch.Size | None], tuple[torch.dtype, torch.Size]]:
    """Return type and shape of each saved chunk of these tensors."""
    return {
        (key, chunk.offsets): (saved.properties.dtype, chunk.sizes)
        for key in keys
        if isinstance(saved := index.state_dict_metadata[key], TensorStorageMetadata)
        for chunk in saved.chunks
    }


def _take_aim(
    found: ReadPlan, item: ReadItem, place: _StorageInfo, dtype: torch.dtype, shape: torch.Size, into: Tensor
) -> None:
    """Add the targets for one piece of one tensor."""
    key = item.dest_index.fqn
    frame = _frame(dtype, shape, place)
    if frame is None:
        found.unusual.add(key)
        return
    if not (size := item.lengths.numel() * dtype.itemsize):
        return
    name, start = place.relative_path, place.offset + len(frame.head)
    if (name, start) not in found.heads:
        head = Head(key=key, expected=frame.head, found=torch.empty(len(frame.head), dtype=torch.uint8, device="cpu"))
        found.heads[name, start] = head
        found.landings[name].append(ReadTarget(start=place.offset, into=head.found))
    row_shape = shape[1:]
    if len(shape) > 0:
        start += item.storage_offsets[0] * row_shape.numel() * dtype.itemsize
    target = narrow_tensor_by_index(into, item.dest_offsets, item.lengths)
    if item.lengths[1:] == row_shape and _takes_bytes(target, dtype):
        found.landings[name].append(ReadTarget(start=start, into=_bytes(target)))
        assert len(_bytes(target)) == size
        return
    rows = torch.empty((item.lengths[0], *row_shape) if len(shape) > 0 else (), dtype=dtype, device="cpu")
    columns = narrow_tensor_by_index(rows, [0, *item.storage_offsets[1:]], item.lengths)
    found.landings[name].append(ReadTarget(start=start, into=_bytes(rows), landed=partial(target.copy_, columns)))


def _frame(dtype: torch.dtype, shape: torch.Size, place: _StorageInfo) -> Frame | None:
    """Return head and tail of the archive; None if its length shows that it has a different layout."""
    if place.transform_descriptors:
        return None
    try:
        frame = frame_of(dtype, shape)
    except RuntimeError:  # a type that is not plain rows of numbers
        return None
    length = len(frame.head) + shape.numel() * dtype.itemsize + len(frame.tail)
    return frame if length == place.length else None


def _takes_bytes(target: Tensor, dtype: torch.dtype) -> bool:
    return (
        target.device.type == "cpu"
        and target.dtype == dtype
        and target.is_contiguous()
        and not target.is_conj()
        and not target.is_neg()
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)
