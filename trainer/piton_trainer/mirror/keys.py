"""What lies where in the bucket. Pure.

    <uri>/[<namespace>/]<run>/latest                             who may write, and the newest checkpoint
    <uri>/[<namespace>/]<run>/step-000001200-<digest>/…          its files; MANIFEST.json goes last

A folder is named by its manifest's digest, and the manifest has the digest of every file: two attempts that save the
same step never share an object unless it is the same, and an upload that was cut off goes on where it was.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any, Self

from piton.contract import names

LATEST = "latest"
_FORMAT = 1
_DIGEST_LETTERS = 16
_URI = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]+)(/(?P<prefix>.*))?")
_FOLDER = re.compile(rf"{names.STEP_PREFIX}(?P<step>[0-9]{{9,}})-[0-9a-f]{{{_DIGEST_LETTERS}}}")


@dataclass(frozen=True, kw_only=True)
class BucketPrefix:
    """A bucket, and what every key in it begins with."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, uri: str, *below: str | None) -> Self:
        """The place that a URI names, or one below it.

        Raises:
            ValueError: it is no s3:// URI.
        """
        match = _URI.fullmatch(uri)
        if match is None:
            raise ValueError(f"{uri} is no place in a bucket; write it like s3://bucket/prefix")
        parts = [*(match["prefix"] or "").split("/"), *below]
        return cls(bucket=match["bucket"], prefix="".join(f"{part}/" for part in parts if part))

    def key(self, *parts: str) -> str:
        """The key of something here."""
        return self.prefix + "/".join(parts)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def folder_of(step: int, manifest: str) -> str:
    """Where the checkpoint of this manifest goes."""
    return f"{names.step_folder(step)}-{hashlib.sha256(manifest.encode()).hexdigest()[:_DIGEST_LETTERS]}"


def parse_folder(name: str) -> int | None:
    """The step in a folder's name, or None when it is not one of ours."""
    match = _FOLDER.fullmatch(name)
    return None if match is None else int(match["step"])


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """A checkpoint in the bucket that is whole."""

    step: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class Latest:
    """The one record that changes. Whoever writes it says which version it replaces, so that nobody overtakes."""

    attempt: int
    owner: str
    """The process that may write."""
    lineage: str
    """Told apart from other runs that were pointed at the same place; the volume of this one has the same word."""
    newest: Pointer | None = None

    def move(self, pointer: Pointer) -> Self:
        """With another newest checkpoint."""
        return replace(self, newest=pointer)

    def to_json(self) -> str:
        """The object's text."""
        newest = None if self.newest is None else {"step": self.newest.step, "folder": self.newest.folder}
        own = {"attempt": self.attempt, "owner": self.owner, "lineage": self.lineage}
        return json.dumps({"format": _FORMAT, **own, "newest": newest}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the object's text.

        Raises:
            ValueError: it is not one of ours.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            newest = fields["newest"] if fields["format"] == _FORMAT else fields["a format that we know"]
            return cls(
                attempt=int(fields["attempt"]),
                owner=str(fields["owner"]),
                lineage=str(fields["lineage"]),
                newest=None if newest is None else Pointer(step=int(newest["step"]), folder=str(newest["folder"])),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{LATEST} in the bucket is not one of ours ({error})") from error
