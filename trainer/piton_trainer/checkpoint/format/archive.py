"""Byte layout of the files of a rank, computed before the save.

A shard in torch's format is a sequence of `torch.save` archives. All of an archive except the data follows from the
type and shape of the tensor, so it is computed once (`Frame`), and a save only has to copy the data.

    file   | archive of tensor 1           | archive of tensor 2 | … | zeros up to a whole block
    archive| head | data | tail |
"""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex

BLOCK_BYTES = 4096
"""Files are whole blocks, so that they can be written with O_DIRECT."""
_ALIGNMENT = 64
_FILE_BYTES = 32 << 20
_FILES_MAX = 8
"""Large shards are split into several files, so that several threads can hash them in a save and in a load."""
_SKIPPED_BYTES = 1 << 20


@dataclass(frozen=True)
class Frame:
    """Bytes before and after the data of a tensor in an archive of torch."""

    head: bytes
    tail: bytes


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Location of one tensor in the image."""

    index: MetadataIndex
    dtype: torch.dtype
    shape: torch.Size
    file: int
    start: int
    """Offset of its archive in the image, in bytes."""

    @property
    def frame(self) -> Frame:
        """Head and tail of its archive."""
        return frame_of(self.dtype, self.shape)

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self.shape.numel() * self.dtype.itemsize

    @property
    def length(self) -> int:
        """Bytes of the archive."""
        return len(self.frame.head) + self.size + len(self.frame.tail)


@dataclass(frozen=True, kw_only=True)
class ArchivePart:
    """Name of one file, and its location in the image."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Archive:
    """All files of one rank, in a row."""

    pieces: Sequence[Piece] = ()
    parts: Sequence[ArchivePart] = field(default_factory=tuple)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return self.parts[-1].start + self.parts[-1].size if self.parts else 0

    def index(self) -> dict[MetadataIndex, _StorageInfo]:
        """Return the location of each tensor, in the format of torch's index."""
        return {
            piece.index: _StorageInfo(
                self.parts[piece.file].name, piece.start - self.parts[piece.file].start, piece.length
            )
            for piece in self.pieces
        }

    def stamp(self, memory: Tensor) -> None:
        """Write everything except the data."""
        for piece in self.pieces:
            end = piece.start + piece.length
            _put(memory, piece.start, piece.frame.head)
            _put(memory, end - len(piece.frame.tail), piece.frame.tail)

    def views(self, memory: Tensor) -> list[Tensor]:
        """Return the locations of the data, as tensors."""
        return [_view(memory, piece) for piece in self.pieces]


def lay_out(
    tensors: Iterable[tuple[MetadataIndex, torch.dtype, torch.Size]], *, rank: int, prefix: Callable[[str], str]
) -> Archive:
    """Give each tensor a location. `prefix` returns the prefix of its file name; each prefix starts a new file."""
    wanted = list(tensors)
    total = sum(shape.numel() * dtype.itemsize for _, dtype, shape in wanted)
    file_bytes = max(_FILE_BYTES, -(-total // _FILES_MAX))
    pieces: list[Piece] = []
    parts: list[ArchivePart] = []
    start = position = 0
    for number, (index, dtype, shape) in enumerate(wanted):
        piece = Piece(index=index, dtype=dtype, shape=shape, file=len(parts), start=position)
        pieces.append(piece)
        position = _up(piece.start + piece.length, _ALIGNMENT)
        kind, is_last = prefix(index.fqn), number == len(wanted) - 1
        if is_last or position - start >= file_bytes or prefix(wanted[number + 1][0].fqn) != kind:
            position = _up(position, BLOCK_BYTES)
            parts.append(ArchivePart(name=f"{kind}{rank}_{len(parts)}.distcp", start=start, size=position - start))
            start = position
    return Archive(pieces=pieces, parts=parts)


@lru_cache(maxsize=4096)
def frame_of(dtype: torch.dtype, shape: torch.Size) -> Frame:
    """Return head and tail, as torch writes them.

    The archive has no checksums: the digest of the file covers it, and torch does not read them.
    """
    size = shape.numel() * dtype.itemsize
    before = torch.serialization.get_crc32_options()
    with _Holes(os.memfd_create("piton-frame"), "r+") as file:
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(torch.empty(shape, dtype=dtype, device="cpu"), file)
        finally:
            torch.serialization.set_crc32_options(before)
        end = file.tell()
        file.seek(0)
        # The method exists in torch, but not in its stubs.
        offset = torch._C.PyTorchFileReader(file).get_record_offset("data/0")  # type: ignore[attr-defined]  # noqa: SLF001
        head, tail = os.pread(file.fileno(), offset, 0), os.pread(file.fileno(), end - offset - size, offset + size)
    return Frame(head, tail)


class _Holes(io.FileIO):
    """File that leaves a hole in place of a large tensor."""

    def write(self, data: "io.ReadableBuffer") -> int:  # type: ignore[name-defined]
        size = memoryview(data).nbytes
        if size < _SKIPPED_BYTES:
            return super().write(data)
        self.seek(size, os.SEEK_CUR)
        return size


def _view(memory: Tensor, piece: Piece) -> Tensor:
    start = piece.start + len(piece.frame.head)
    return memory[start : start + piece.size].view(piece.dtype).view(piece.shape)


def _put(memory: Tensor, start: int, data: bytes) -> None:
    memory[start : start + len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
