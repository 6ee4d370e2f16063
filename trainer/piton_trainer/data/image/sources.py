"""Sources of labelled images: a folder per class, tar shards, arrays, a Python package.

Each source is a list that is the same in every process as long as the source is the same, so that a preparation that
was cut off goes on with the next image. Folders and arrays are shuffled here, once and always the same way: they lie
sorted by class, and neither a validation set cut off the end nor windows of neighbours may consist of one class.
"""

import gzip
import hashlib
import io
import logging
import re
import zipfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from piton.contract import InputError
from piton_trainer.data.folders import HIDDEN, NO_FILES, LeftOut, files_below, is_hidden, printable
from piton_trainer.data.image.image_files import CLASSES_MAX, IMAGES, Files, Form, ImageFile, digest_of
from piton_trainer.data.image.packages import PACKAGES, Package
from piton_trainer.data.image.pictures import Pixels, from_pixels
from piton_trainer.data.image.record_writer import STAMP, Picture
from piton_trainer.data.image.shards import SHARD, read_shard
from piton_trainer.data.skipped import NO_SKIPS, Skip, Skips
from piton_trainer.errors import BadConfig

_log = logging.getLogger(__name__)
_SPLIT = re.compile(
    r"(train(ing)?|val(id(ation)?)?|test(ing)?|dev|eval(uation)?|hold_?out)([_-]?(set|split|data))?[_-]?\d*"
)
"""Names of folders that are rather parts of a data set than classes."""


class Source(Protocol):
    """A list of labelled images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, if they have names."""

    @property
    def digest(self) -> str:
        """Of what there is to read."""

    def __len__(self) -> int: ...

    def stamp(self, number: int) -> bytes:
        """Say what a picture would be made of, called from several threads: as long as it is the same, so is this."""

    def picture(self, number: int) -> Picture:
        """Return one of them with its stamp, called from several threads.

        Raises:
            DamagedImage: its content cannot be used.
            BadConfig: it cannot be read.
        """


class Arrays:
    """Images of one size in memory."""

    def __init__(self, images: Pixels, labels: "NDArray[np.int64]") -> None:
        """Take images (count, height, width[, 3]) and a label for each (count,)."""
        self.order = _shuffle(len(images))
        self.images = images
        self.labels = labels
        self.classes: tuple[str, ...] = ()
        self.digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def stamp(self, number: int) -> bytes:  # noqa: ARG002 - the digest sees the content of all of them
        """Return the same for each."""
        return bytes(STAMP)

    def picture(self, number: int) -> Picture:
        """One of them."""
        place = int(self.order[number])
        return from_pixels(self.images[place], int(self.labels[place]))


def open_source(name: str, form: Form, skips: Skips = NO_SKIPS) -> Source:
    """Open the source that a config's `data` names. `skips` takes what is left out already here: wrong labels.

    Raises:
        BadConfig: it is not there, holds no images, or more is damaged than `skips` takes.
    """
    if name in PACKAGES:
        return from_package(PACKAGES[name])
    path = Path(name)
    if not path.exists():
        raise BadConfig(f"trainer.config.data: there is no file or directory {path}")
    try:
        if path.suffix == ".npz":
            return from_npz(path, skips)
        return from_folder(path, form, skips) if path.is_dir() else from_shards([path], form, skips)
    except OSError as error:
        raise BadConfig(f"trainer.config.data: cannot read {path}: {error}") from error


def from_folder(root: Path, form: Form, skips: Skips) -> Files:
    """Return the images of a folder of shards, or of a folder per class, as ImageNet is laid out.

    Raises:
        BadConfig: there are none.
    """
    everything = sorted(root.iterdir())
    entries = [path for path in everything if not is_hidden(path.name)]
    classes = tuple(path.name for path in entries if path.is_dir())
    left_out = LeftOut()
    left_out.counts[HIDDEN] += len(everything) - len(entries)
    shards = [path for path in entries if path.suffix.lower() == SHARD and not path.is_dir()]
    if shards:
        if classes:
            _log.warning("%s: taken are the *.tar shards, and not the folders beside them", root)
        for path in entries:
            if path not in shards and not path.is_dir():
                left_out.add(path.name, " beside the shards")
        return from_shards(shards, form, skips, left_out, root)
    for path in entries:
        if not path.exists():
            left_out.counts[NO_FILES] += 1
        elif path.suffix.lower() in IMAGES and not path.is_dir():
            left_out.counts["images beside the folders of the classes"] += 1
        elif not path.is_dir():
            left_out.add(path.name, " beside the folders of the classes")
    paths = [(path, label) for label, name in enumerate(classes) for path in files_below(root / name, IMAGES, left_out)]
    if not paths:
        raise BadConfig(
            f"trainer.config.data: {root} has neither *.tar shards nor a folder of images per class "
            f"({', '.join(sorted(IMAGES))})"
        )
    _expect_names(root, classes)
    left_out.say(str(root))
    _expect_no_splits(root, [(path.relative_to(root), classes[label]) for path, label in paths])
    _say_doubts(root, len(classes), [label for _, label in paths], classes)
    files = [
        ImageFile(printable(path), "", label, path.read_bytes)
        for path, label in (paths[place] for place in _shuffle(len(paths)))
    ]
    return Files(files, form, classes, digest_of(str(path.relative_to(root)) for path, _ in paths))


def _expect_names(root: Path, classes: Sequence[str]) -> None:
    for name in classes:
        if printable(name) != name:
            raise BadConfig(f"trainer.config.data: the name of folder {printable(root / name)} is no UTF-8; rename it")


def _expect_no_splits(root: Path, images: Sequence[tuple[Path, str]]) -> None:
    """Refuse `train/` and `val/` as classes where the classes are the folders in them. Else they may be meant.

    Raises:
        BadConfig: they are splits.
    """
    splits = {name for _, name in images}
    if not all(_SPLIT.fullmatch(name.casefold()) for name in splits):
        return
    told = " and ".join(sorted(splits))
    below = {path.parts[1] for path, _ in images if len(path.parts) > 2}
    if len(below) > 1 and all(len(path.parts) > 2 for path, _ in images):
        raise BadConfig(
            f"trainer.config.data: {printable(root)} has {told} with the folders of {len(below)} classes in each; name "
            f"{printable(root / sorted(splits)[0])} as data and another one as validation, or rename what are classes"
        )
    if len(splits) > 1:
        _log.warning("%s: its classes are %s, which are the usual names of splits", printable(root), told)


def _say_doubts(source: Path, count: int, labels: Iterable[int], names: Sequence[str] = ()) -> None:
    """Log the classes without images, and that there is only one. The model has an output for each of them."""
    found = set(labels)
    empty = sorted(set(range(count)) - found)
    if empty:
        told = _first_few([names[label] if names else str(label) for label in empty])
        _log.warning("%s: %d of %d classes have no image: %s", source, len(empty), count, told)
    if len(found) == 1:
        only = names[min(found)] if names else min(found)
        _log.warning("%s: all images are of one class, %s, so there is nothing to learn", source, only)


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def from_shards(
    shards: Sequence[Path],
    form: Form,
    skips: Skips,
    left_out: LeftOut | None = None,
    root: Path | None = None,
) -> Files:
    """Return the images of tar files in which `x.jpg` stands beside `x.cls`, as WebDataset has it, in their order.

    `left_out` counts what is beside them in their folder `root`.

    Raises:
        BadConfig: a shard cannot be read, or an image has no label and `skips` does not take it.
    """
    left_out = left_out or LeftOut()
    files: list[ImageFile] = []
    empty: list[Path] = []
    for shard in shards:
        if not shard.is_file():
            raise BadConfig(
                f"trainer.config.data: {printable(shard)} is no file, or a link that leads nowhere; remove it or "
                "put the shard in its place"
            )
        found = read_shard(shard, left_out, skips)
        files += found
        empty += [] if found else [shard]
    source = root or shards[0]
    if not files:
        raise BadConfig(f"trainer.config.data: there are no images in {printable(source)}")
    left_out.say(str(source))
    if empty:
        told = _first_few([printable(path.name) for path in empty])
        _log.warning("%s: %d of %d shards have no image: %s", source, len(empty), len(shards), told)
    labels = {file.label for file in files}
    _say_doubts(source, max(labels) + 1, labels)
    return Files(files, form, (), digest_of(f"{file.name}:{file.label}" for file in files))


def from_npz(path: Path, skips: Skips) -> Arrays:
    """Return the images of a numpy archive: `images` (count, height, width[, 3]) of bytes, and `labels` (count,).

    Raises:
        BadConfig: it holds something else, or a label is none and `skips` does not take it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            images, given = (_array(archive, name, names) for name in ("images", "labels"))
            given = given.astype(np.int64) if given.dtype.kind in "US" else given
    except MemoryError:
        raise
    except Exception as error:  # numpy and zipfile have a dozen of kinds for what a damaged archive does to them
        told = str(error) or type(error).__name__
        raise BadConfig(f"trainer.config.data: {path} has to hold images and labels: {told}") from error
    if len(set(names)) < len(names):
        raise BadConfig(f"trainer.config.data: {path} holds an array twice: {', '.join(names)}")
    shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not shaped or given.shape != images.shape[:1] or 0 in images.shape:
        raise BadConfig(
            f"trainer.config.data: {path} has images of {images.dtype}{list(images.shape)} and labels of "
            f"{list(given.shape)}; needed are images of uint8[count, height, width, 1 or 3] and a label for each"
        )
    is_label = _label_mask(given, path, skips)
    images, labels = images[is_label], given[is_label].astype(np.int64)
    if not len(labels):
        raise BadConfig(f"trainer.config.data: there are no images in {path}")
    _say_doubts(path, int(labels.max()) + 1, labels.tolist())
    return Arrays(images, labels)


def _array(archive: zipfile.ZipFile, name: str, names: Sequence[str]) -> "NDArray[Any]":
    """Read an array to the end of its member, as `numpy.load` does not: only there is the checksum compared.

    Raises:
        Exception: of whatever kind, where it is damaged, or its header says less than is there.
    """
    if name not in names:
        raise InputError(f"{name} is not among {', '.join(names) or 'nothing'}")
    with archive.open(archive.infolist()[names.index(name)]) as member:
        array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        if rest := len(member.read()):
            raise InputError(f"{name} has {rest} bytes more than its header says")
    return array


def _label_mask(given: "NDArray[Any]", path: Path, skips: Skips) -> "NDArray[np.bool_]":
    """Return a mask of the labels that are whole numbers from 0 on.

    Raises:
        BadConfig: one is none, and `skips` does not take it.
    """
    if given.dtype.kind not in "buif":
        raise BadConfig(f"trainer.config.data: {path} has labels of {given.dtype}, and not whole numbers from 0 on")
    is_label: NDArray[np.bool_] = (given >= 0) & (given < CLASSES_MAX) & (given == np.floor(given))
    for place in np.flatnonzero(~is_label):
        why = f"{given[place]} is no number of a class; needed are whole numbers from 0 on"
        skips.add(Skip(file=str(path), place=f"label {place}", why=why))
    return is_label


def from_package(package: Package) -> Arrays:
    """Return the images that an installed package brings as a compressed table: a row each, pixels and then label.

    The package is not imported: that would need all it depends on.

    Raises:
        BadConfig: it is not installed.
    """
    found = find_spec(package.name)
    if found is None or not found.submodule_search_locations:
        raise BadConfig(f"trainer.config.data: {package.name} is not installed; say {package.command}")
    content = gzip.decompress((Path(found.submodule_search_locations[0]) / package.file).read_bytes())
    table = np.loadtxt(io.BytesIO(content), delimiter=",", dtype=np.float32)
    pixels = table[:, :-1].reshape(-1, package.side, package.side) * (255 / package.brightest)
    return Arrays(pixels.round().astype(np.uint8), table[:, -1].astype(np.int64))


def _shuffle(count: int) -> "NDArray[np.int64]":
    return np.random.default_rng(0).permutation(count)
