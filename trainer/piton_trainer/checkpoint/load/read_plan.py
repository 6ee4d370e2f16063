"""Which bytes of which file become which numbers of which tensor.

torch's planner says what this rank needs of which saved chunk, for any world size then and now. A chunk is one archive
of `torch.save`, and what stands before its numbers follows from type and shape (see `archive`): so their place is known
before anything is read, and what was found there instead is noticed afterwards.

    rows that are whole, for memory on the CPU     straight into the tensor
    anything else (columns, another type, a GPU)   into rows of their own, which are copied as soon as they are there
    an archive with another head                   torch loads that tensor itself
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
"""The checksums of a head's records, which torch writes and `archive` does not."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What should stand before the numbers of a chunk, and what does."""

    key: str
    expected: bytes
    found: Tensor

    @property
    def is_right(self) -> bool:
        """Whether the numbers are where they were taken from, and in that order."""
        found = bytes(self.found.tolist())
        return found == self.expected or _CHECKSUM.sub(rb"\1", found) == _CHECKSUM.sub(rb"\1", self.expected)


@dataclass(kw_only=True)
class ReadPlan:
    """Where everything goes that this rank wants of a checkpoint."""

    landings: dict[str, list[ReadTarget]] = field(default_factory=lambda: defaultdict(list))
    """By file."""
    heads: dict[tuple[str, int], Head] = field(default_factory=dict)
    unusual: set[str] = field(default_factory=set)

    @property
    def needs(self) -> dict[str, int]:
        """How many bytes of which files."""
        return {name: sum(len(landing.into) for landing in landings) for name, landings in self.landings.items()}

    def take(self, name: str) -> deque[ReadTarget]:
        """What is wanted of a file, by place; it is only given once, so that memory can go as soon as it is used."""
        landings = sorted(self.landings.pop(name, ()), key=lambda landing: landing.start)
        assert all(before.end <= after.start for before, after in pairwise(landings))
        return deque(landings)

    def strangers(self) -> set[str]:
        """Tensors that could not be taken so, now that the files have been read."""
        return self.unusual | {head.key for head in self.heads.values() if not head.is_right}


def read_plan_of(index: Metadata, targets: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> ReadPlan:
    """Find the places.

    Args:
        index: of the checkpoint.
        targets: the tensors as the training sees them, sharded or not; they say what is needed.
        into: this rank's part of each, which is what will be filled.
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
    """Type and shape of each saved chunk of these tensors."""
    return {
        (key, chunk.offsets): (saved.properties.dtype, chunk.sizes)
        for key in keys
        if isinstance(saved := index.state_dict_metadata[key], TensorStorageMetadata)
        for chunk in saved.chunks
    }


def _take_aim(
    found: ReadPlan, item: ReadItem, place: _StorageInfo, dtype: torch.dtype, shape: torch.Size, into: Tensor
) -> None:
    """Add what one piece of one tensor needs."""
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
    """What stands around the numbers, if the archive is of the usual kind as far as its length tells."""
    if place.transform_descriptors:
        return None
    try:
        frame = frame_of(dtype, shape)
    except RuntimeError:  # a type that is more than rows of numbers
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
