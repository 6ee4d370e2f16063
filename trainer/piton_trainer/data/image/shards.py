"""Tar shards with `x.jpg` beside `x.cls`, as WebDataset has them, read so that damage shows.

`tarfile` takes the first header that makes no sense for the end of the file, so that a flipped bit hides all that
follows. Here the members have to end where a tar file ends: at a block of zeros after which nothing comes.
"""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from piton_trainer.data.folders import HIDDEN, LeftOut, is_hidden, printable
from piton_trainer.data.image.image_files import IMAGES, ImageFile, number_of_class
from piton_trainer.errors import BadConfig

LABEL = ".cls"
"""Beside an image in a shard: its class, as a number."""
_PIECE = 1 << 20


def read_shard(shard: Path, left_out: LeftOut) -> list[ImageFile]:
    """Return the images of a shard in its order.

    Raises:
        BadConfig: it is damaged, or an image has no label, or two.
    """
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    for member, read in _members(shard):
        stem, dot, ending = member.name.rpartition(".")
        suffix = (dot + ending).lower()
        known = labels if suffix == LABEL else images if suffix in IMAGES else None
        if is_hidden(member.name):
            left_out.counts[HIDDEN] += 1
        elif known is None:
            left_out.add(member.name)
        elif stem in known:
            other = f" beside {images[stem].name}" if known is images else ""
            raise BadConfig(
                f"trainer.config.data: {_named(shard, member.name)} stands twice in its shard{other}; leave one out"
            )
        elif known is labels:
            labels[stem] = number_of_class(read(), _named(shard, member.name))
        else:
            images[stem] = member
    if lonely := next((stem for stem in images if stem not in labels), None):
        raise BadConfig(f"trainer.config.data: {_named(shard, lonely)} has an image and no {LABEL} beside it")
    if alone := len(labels.keys() - images.keys()):
        left_out.counts[f"*{LABEL} without an image"] += alone
    return [ImageFile(_named(shard, info.name), labels[stem], _reader(shard, info)) for stem, info in images.items()]


def _members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    """Yield the files in a shard, each with a function that reads it."""
    name = printable(shard)
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isdir():
                    yield member, _reader(shard, member)
            end = tar.offset
    except tarfile.TarError as error:
        raise BadConfig(f"trainer.config.data: {name} is no plain tar file, or is damaged: {error}") from error
    except (ValueError, OverflowError) as error:  # a header with numbers that make no sense
        raise BadConfig(f"trainer.config.data: {name} has a damaged header: {error}") from error
    if told := _trouble_at_the_end(shard, end):
        raise BadConfig(f"trainer.config.data: {name} {told}")


def _trouble_at_the_end(shard: Path, end: int) -> str | None:
    """Return what is wrong with the bytes from the first block that is no header on."""
    with shard.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            return f"is cut off: it ends at byte {end + len(block)} without the zeros that end a tar file"
        if block.strip(b"\0"):
            return f"is damaged: there is no header of a file at byte {end}, and no end"
        while piece := file.read(_PIECE):
            if piece.strip(b"\0"):
                return (
                    f"goes on after its end at byte {end}; are these several tar files in one? Give each its own name"
                )
    return None


def _reader(shard: Path, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        with shard.open("rb") as file:
            file.seek(member.offset_data)
            return file.read(member.size)

    return read


def _named(shard: Path, member: str) -> str:
    return printable(f"{shard}/{member}")
