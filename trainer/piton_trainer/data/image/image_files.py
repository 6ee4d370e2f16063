"""Image files, wherever they lie: each is read, decoded once, and named when it cannot be used."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from piton_trainer.data.image.pictures import from_file
from piton_trainer.data.image.record_writer import Picture
from piton_trainer.errors import BadConfig

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
"""Suffixes of image files in a folder or a shard."""
CLASSES_MAX = 10_000_000
"""More classes than anybody has; a label beyond is a damaged number."""
_VERSION = 2
"""Changes when the same files make other records."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Form:
    """The format in which image files are stored."""

    max_side: int | None
    """Longest side in pixels; larger ones are made smaller. None keeps all."""
    quality: int
    """Of the JPEGs that are written anew."""


@dataclass(frozen=True)
class ImageFile:
    """An image file, or a stretch of a shard."""

    name: str
    """For a person."""
    label: int
    read: Callable[[], bytes]


class Files:
    """Image files from anywhere."""

    def __init__(self, files: Sequence[ImageFile], form: Form, classes: tuple[str, ...], digest: str) -> None:
        self.files = files
        self.form = form
        self.classes = classes
        self.digest = digest_of([f"{_VERSION}", digest, repr(form)])
        self._said: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.files)

    def stamp(self, number: int) -> bytes:
        """Return what says which file this is and what it holds."""
        return _stamp(self.files[number], _content(self.files[number]))

    def picture(self, number: int) -> Picture:
        """Return one of them, with its stamp."""
        file = self.files[number]
        content = _content(file)
        try:
            picture = from_file(content, file.label, max_side=self.form.max_side, quality=self.form.quality)
        except MemoryError:
            raise
        except Exception as error:  # a decoder that stumbles over a damaged file may raise anything
            told = str(error) or type(error).__name__
            raise BadConfig(f"trainer.config.data: {file.name} is no image that can be read: {told}") from error
        remark = picture.remark
        if remark and self._said.setdefault(remark, file.name) == file.name:
            _log.warning("%s %s; this is said of the first such image only", file.name, remark)
        return replace(picture, stamp=_stamp(file, content))


def _content(file: ImageFile) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise BadConfig(f"trainer.config.data: {file.name} is no image that can be read: {error.strerror}") from error


def _stamp(file: ImageFile, content: bytes) -> bytes:
    return hashlib.sha256(f"{file.label}:".encode() + content).digest()


def number_of_class(content: bytes, name: str) -> int:
    """Return the class that a label file holds.

    Raises:
        BadConfig: it holds no class.
    """
    try:
        label = int(content)
    except ValueError:
        label = -1
    if not 0 <= label < CLASSES_MAX:
        raise BadConfig(f"trainer.config.data: {name} has to hold the number of a class, not {content[:20]!r}")
    return label


def digest_of(parts: Iterable[str]) -> str:
    """Return the digest of texts, among which names may be that are no UTF-8."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode(errors="surrogateescape") + b"\0")
    return total.hexdigest()
