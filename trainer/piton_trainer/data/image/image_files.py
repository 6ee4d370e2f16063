"""Image files, wherever they lie: each is read, decoded once, and named when it cannot be used."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from piton.contract import InputError
from piton_trainer.data.image.pictures import from_file
from piton_trainer.data.image.record_writer import Picture
from piton_trainer.data.numbers import whole_number
from piton_trainer.data.skipped import Skip
from piton_trainer.errors import BadConfig

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
"""Suffixes of image files in a folder or a shard."""
CLASSES_MAX = 10_000_000
"""More classes than anybody has; a label beyond is a damaged number."""
_VERSION = 2
"""Changes when the same files make other records."""
_ADDRESS = re.compile(r" <\S+ object at 0x[0-9a-f]+>")
"""In a decoder's sentence; the list of what is skipped has to be the same each time."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Form:
    """The format in which image files are stored."""

    max_side: int | None
    """Longest side in pixels; larger ones are made smaller. None keeps all."""
    quality: int
    """Of the JPEGs that are written anew."""


class DamagedImage(BadConfig):
    """An image whose content cannot be used. `prepare` may skip it; otherwise it ends the attempt."""

    def __init__(self, skip: Skip, detail: str, stamp: bytes) -> None:
        super().__init__(detail)
        self.skip = skip
        self.stamp = stamp
        """Of the content that cannot be used."""


@dataclass(frozen=True)
class ImageFile:
    """An image file, or a stretch of a shard."""

    file: str
    """Path of the file or shard, printable."""
    member: str
    """In a shard; else empty."""
    label: int
    read: Callable[[], bytes]

    @property
    def name(self) -> str:
        """Name for messages: the file, or the shard with the member."""
        return f"{self.file}/{self.member}" if self.member else self.file


class Files:
    """Image files from anywhere, as a source of records."""

    def __init__(self, files: Sequence[ImageFile], form: Form, classes: tuple[str, ...], digest: str) -> None:
        """Take the files in their order. `digest` is that of their names; their stamps see what they hold."""
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
        """Return one of them, with its stamp.

        Raises:
            DamagedImage: its content cannot be used.
            BadConfig: it cannot be read. Another attempt may read it, so it is no damage.
        """
        file = self.files[number]
        content = _content(file)
        try:
            picture = from_file(content, file.label, max_side=self.form.max_side, quality=self.form.quality)
        except MemoryError:
            raise
        except Exception as error:  # a decoder that stumbles over a damaged file may raise anything
            told = f"is no image that can be read: {_ADDRESS.sub('', str(error)) or type(error).__name__}"
            skip = Skip(file=file.file, place=file.member, why=f"it {told}")
            detail = f"trainer.config.data: {file.name} {told}"
            raise DamagedImage(skip, detail, _stamp(file, content)) from error
        remark = picture.remark
        if remark and self._said.setdefault(remark, file.name) == file.name:
            _log.warning("%s %s; this is said of the first such image only", file.name, remark)
        return replace(picture, stamp=_stamp(file, content))


def _content(file: ImageFile) -> bytes:
    """Read a file.

    Raises:
        BadConfig: it cannot be read. It may be readable for another attempt, so it is no damaged image.
    """
    try:
        return file.read()
    except OSError as error:
        raise BadConfig(f"trainer.config.data: {file.name} is no image that can be read: {error.strerror}") from error


def _stamp(file: ImageFile, content: bytes) -> bytes:
    """Return the SHA-256 of label and content, in 32 bytes."""
    return hashlib.sha256(f"{file.label}:".encode() + content).digest()


def number_of_class(content: bytes) -> int:
    """Return the class that a label file holds.

    Raises:
        ValueError: it holds no class.
    """
    try:
        label = whole_number(content.decode())
    except ValueError:
        label = -1
    if not 0 <= label < CLASSES_MAX:
        raise InputError(f"has to hold the number of a class, not {content[:20]!r}")
    return label


def digest_of(parts: Iterable[str]) -> str:
    """Return the digest of texts, among which names may be that are no UTF-8."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode(errors="surrogateescape") + b"\0")
    return total.hexdigest()
