"""Sources of labelled images: a folder per class, tar shards, arrays, a Python package.

Each source is a list that is the same in every process as long as the source is the same, so that a preparation that
was cut off goes on with the next image. Folders and arrays are shuffled here, once and always the same way: they lie
sorted by class, and neither a validation set cut off the end nor windows of neighbours may consist of one class.
"""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from piton_trainer.data.image.packages import PACKAGES, Package
from piton_trainer.data.image.pictures import Pixels, from_file, from_pixels
from piton_trainer.data.image.record_writer import Picture
from piton_trainer.errors import BadConfig

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
"""Suffixes of image files in a folder or a shard."""
LABEL = ".cls"
"""Beside an image in a shard: its class, as a number."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The format in which image files are stored."""

    max_side: int | None
    """Longest side in pixels; larger ones are made smaller. None keeps all."""
    quality: int
    """Of the JPEGs that are written anew."""


class Source(Protocol):
    """A list of labelled images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, if they have names."""

    @property
    def digest(self) -> str:
        """Of what there is to read."""

    def __len__(self) -> int: ...

    def picture(self, number: int) -> Picture:
        """One of them, called from several threads.

        Raises:
            BadConfig: it cannot be used.
        """


@dataclass(frozen=True)
class _File:
    """An image file, or a stretch of a shard."""

    name: str
    label: int
    read: Callable[[], bytes]


class Files:
    """Image files from anywhere."""

    def __init__(self, files: Sequence[_File], form: Form, classes: tuple[str, ...], digest: str) -> None:
        self.files = files
        self.form = form
        self.classes = classes
        self.digest = _digest([digest, repr(form)])

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, number: int) -> Picture:
        """One of them."""
        file = self.files[number]
        try:
            return from_file(file.read(), file.label, max_side=self.form.max_side, quality=self.form.quality)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways to say that a file is torn
            raise BadConfig(f"trainer.config.data: {file.name} is no image that can be read: {error}") from error


class Arrays:
    """Images of one size in memory."""

    def __init__(self, images: Pixels, labels: "NDArray[np.int64]") -> None:
        self.order = _shuffle(len(images))
        self.images = images
        self.labels = labels
        self.classes: tuple[str, ...] = ()
        self.digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def picture(self, number: int) -> Picture:
        """One of them."""
        place = int(self.order[number])
        return from_pixels(self.images[place], int(self.labels[place]))


def open_source(name: str, form: Form) -> Source:
    """Open the source that a config's `data` names.

    Raises:
        BadConfig: it is not there, or holds no images.
    """
    if name in PACKAGES:
        return from_package(PACKAGES[name])
    path = Path(name)
    if not path.exists():
        raise BadConfig(f"trainer.config.data: there is no file or directory {path}")
    try:
        if path.suffix == ".npz":
            return from_npz(path)
        shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        return from_shards(shards, form) if shards else from_folder(path, form)
    except OSError as error:
        raise BadConfig(f"trainer.config.data: cannot read {path}: {error}") from error


def from_folder(root: Path, form: Form) -> Files:
    """A folder per class, with images in it, as ImageNet is laid out.

    Raises:
        BadConfig: there are none.
    """
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir()))
    paths = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in IMAGES
    ]
    if not paths:
        raise BadConfig(
            f"trainer.config.data: {root} has neither *.tar shards nor a folder of images per class "
            f"({', '.join(sorted(IMAGES))})"
        )
    files = [
        _File(str(path), label, path.read_bytes) for path, label in (paths[place] for place in _shuffle(len(paths)))
    ]
    return Files(files, form, classes, _digest(f"{path.relative_to(root)}:{path.stat().st_size}" for path, _ in paths))


def from_shards(shards: Sequence[Path], form: Form) -> Files:
    """Tar files in which `x.jpg` stands beside `x.cls`, as WebDataset has it. They stay in the order of the shards.

    Raises:
        BadConfig: a shard cannot be read, or an image has no label.
    """
    try:
        files = [file for shard in shards for file in _members(shard)]
    except tarfile.TarError as error:
        raise BadConfig(
            f"trainer.config.data: {shards[0].parent} has a shard that is no plain tar file: {error}"
        ) from error
    if not files:
        raise BadConfig(f"trainer.config.data: there are no images in {shards[0]}")
    return Files(files, form, (), _digest(f"{file.name}:{file.label}" for file in files))


def _members(shard: Path) -> list[_File]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            stem, dot, ending = member.name.rpartition(".")
            if dot + ending == LABEL:
                content = tar.extractfile(member)
                labels[stem] = _number(content.read() if content else b"", f"{shard}/{member.name}")
            elif (dot + ending).lower() in IMAGES:
                images[stem] = member
    if lonely := next((stem for stem in images if stem not in labels), None):
        raise BadConfig(f"trainer.config.data: {shard}/{lonely} has an image and no {LABEL} beside it")
    return [_File(f"{shard}/{info.name}", labels[stem], _stretch(shard, info)) for stem, info in images.items()]


def _stretch(shard: Path, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        with shard.open("rb") as file:
            file.seek(member.offset_data)
            return file.read(member.size)

    return read


def _number(content: bytes, name: str) -> int:
    try:
        label = int(content)
    except ValueError:
        label = -1
    if label < 0:
        raise BadConfig(f"trainer.config.data: {name} has to hold the number of a class, not {content[:20]!r}")
    return label


def from_npz(path: Path) -> Arrays:
    """A numpy archive with `images` (count, height, width[, 3]) of bytes, and `labels`.

    Raises:
        BadConfig: it holds something else.
    """
    try:
        with np.load(path) as arrays:
            images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    except (KeyError, ValueError) as error:
        raise BadConfig(f"trainer.config.data: {path} has to hold images and labels: {error}") from error
    shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not shaped or labels.shape != images.shape[:1]:
        raise BadConfig(
            f"trainer.config.data: {path} has images of {images.dtype}{list(images.shape)} and labels of "
            f"{list(labels.shape)}; needed are images of uint8[count, height, width, 1 or 3] and a label for each"
        )
    return Arrays(images, labels)


def from_package(package: Package) -> Arrays:
    """Images that an installed package brings as a compressed table: a row each, its pixels and then its label.

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


def _digest(parts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() + b"\0")
    return total.hexdigest()
