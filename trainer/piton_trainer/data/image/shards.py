"""Tar shards with `x.jpg` beside `x.cls`, as WebDataset has them, read so that damage shows.

`tarfile` takes the first header that makes no sense for the end of the file, so that a flipped bit hides all that
follows. Here the members have to end where a tar file ends: at a block of zeros after which nothing comes.
"""

import logging
import tarfile
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from pathlib import Path
from posixpath import dirname, join, normpath

from piton_trainer.data.folders import HIDDEN, LeftOut, is_hidden, printable
from piton_trainer.data.image.image_files import IMAGES, ImageFile, number_of_class
from piton_trainer.data.skipped import Skip, Skips
from piton_trainer.errors import BadConfig

SHARD = ".tar"
LABEL = ".cls"
"""Beside an image in a shard: its class, as a number."""
_FOLLOW = "write the shard with the files themselves (tar --dereference --hard-dereference)"
_PIECE = 1 << 20
_USUAL_BLOCKING = 20
_OTHER_BLOCKINGS = tuple(1 << power for power in range(5, 14))
"""Blocks of 512 bytes of which a tar file has a multiple. It ends in two blocks of zeros, filled up with zeros."""
_log = logging.getLogger(__name__)


def read_shard(shard: Path, left_out: LeftOut, skips: Skips) -> list[ImageFile]:
    """Return the images of a shard in its order.

    Raises:
        BadConfig: the shard is damaged, a name stands twice, or an image has no label and `skips` does not take it.
    """
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int | None] = {}
    """None: it is damaged."""
    for member, read in _members(shard):
        stem, dot, ending = member.name.rpartition(".")
        stem, suffix = normpath(stem), (dot + ending).lower()
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
        elif not member.isreg():
            told = "is a link to no file before it in the shard" if member.linkname else "is no file"
            skips.add(_skip(shard, member.name, f"it {told}"), f"{_named(shard, member.name)} {told}; {_FOLLOW}")
        elif known is labels:
            labels[stem] = _label(shard, member.name, read(), skips)
        else:
            images[stem] = member
    for lonely in [stem for stem in images if stem not in labels]:
        told = f"has an image and no {LABEL} beside it"
        skips.add(_skip(shard, images[lonely].name, f"it {told}"), f"{_named(shard, lonely)} {told}")
    if alone := len(labels.keys() - images.keys()):
        left_out.counts[f"*{LABEL} without an image"] += alone
    return [
        ImageFile(printable(shard), printable(info.name), label, _reader(shard, info))
        for stem, info in images.items()
        if (label := labels.get(stem)) is not None
    ]


def _label(shard: Path, member: str, content: bytes, skips: Skips) -> int | None:
    """Return the class that a label holds; None where it holds none and is skipped.

    Raises:
        BadConfig: it holds none, and `skips` does not take it.
    """
    try:
        return number_of_class(content)
    except ValueError as error:
        skips.add(_skip(shard, member, f"it {error}"), f"{_named(shard, member)} {error}")
        return None


def _skip(shard: Path, member: str, why: str) -> Skip:
    return Skip(file=printable(shard), place=printable(member), why=why)


def _members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    """Yield the files in a shard, each with a function that reads it.

    Raises:
        BadConfig: a header is damaged, or the shard does not end where a tar file ends.
    """
    name = printable(shard)
    try:
        with tarfile.open(shard, "r:") as tar:
            is_empty, files = True, dict[str, tarfile.TarInfo]()
            for member in tar:
                is_empty = False
                found = _followed(member, files)
                files[normpath(member.name)] = found
                if not found.isdir():
                    yield found, _reader(shard, found)
            end = tar.offset
    except tarfile.TarError as error:
        raise BadConfig(f"trainer.config.data: {name} is no plain tar file, or is damaged: {error}") from error
    except (ValueError, OverflowError) as error:  # a header with numbers that make no sense
        raise BadConfig(f"trainer.config.data: {name} has a damaged header: {error}") from error
    told = _trouble_at_the_end(shard, end)
    if told or is_empty:
        raise BadConfig(f"trainer.config.data: {name} {told or 'is a tar file without files; write it anew'}")


def _followed(member: tarfile.TarInfo, files: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    """Return the earlier file that a link points to, under the name of the link; any other member as it is.

    `tar` writes the second of two hard links as a link, so its content stands in the shard once.
    """
    if not (member.islnk() or member.issym()):
        return member
    target = member.linkname if member.islnk() else join(dirname(member.name), member.linkname)
    if (found := files.get(normpath(target))) is None:
        return member
    found = copy(found)
    found.name = member.name
    return found


def _trouble_at_the_end(shard: Path, end: int) -> str | None:
    """Return what is wrong with the bytes from the first block that is no header on.

    A crash leaves zeros as well, where a file was made longer before it was written. So there may be no more of them
    than fill up a tar file; where only a large blocking factor explains them, they are said.
    """
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
        size = file.tell()
    blocking = _blocking(size, size - end)
    if blocking is None:
        return f"has {size - end} bytes of zeros from byte {end} on, and no tar file ends so; write it again"
    if blocking != _USUAL_BLOCKING:
        _log.warning(
            "%s ends in %d bytes of zeros, as a tar file with a blocking factor of %d may; without one, files of it are"
            " lost",
            printable(shard),
            size - end,
            blocking,
        )
    return None


def _blocking(size: int, zeros: int) -> int | None:
    """Return the least blocking factor with which a tar file of this size may end in so many zeros."""
    if zeros < (_USUAL_BLOCKING + 2) * tarfile.BLOCKSIZE:
        return _USUAL_BLOCKING
    fitting = (
        factor
        for factor in _OTHER_BLOCKINGS
        if size % (factor * tarfile.BLOCKSIZE) == 0 and zeros < (factor + 2) * tarfile.BLOCKSIZE
    )
    return next(fitting, None)


def _reader(shard: Path, member: tarfile.TarInfo) -> Callable[[], bytes]:
    """Return a function that reads a member, from any thread; it raises OSError where the file cannot be read."""

    def read() -> bytes:
        with shard.open("rb") as file:
            file.seek(member.offset_data)
            return file.read(member.size)

    return read


def _named(shard: Path, member: str) -> str:
    return printable(f"{shard}/{member}")
