"""Layout of keys in the bucket. Pure.

    <uri>/[<namespace>/]<run>/latest                             the owner, and the newest checkpoint
    <uri>/[<namespace>/]<run>/step-000001200-<digest>/…          files of a checkpoint; MANIFEST.json is uploaded last

The name of a folder contains the digest of its manifest, and the manifest has the digest of every file. So two attempts
that save the same step never share an object unless it is identical, and an interrupted upload can be continued.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any, Self

from piton.contract import InputError, names

LATEST = "latest"
_FORMAT = 1
_DIGEST_LETTERS = 16
_URI = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]+)(/(?P<prefix>.*))?")
_FOLDER = re.compile(rf"{names.STEP_PREFIX}(?P<step>[0-9]{{9,}})-[0-9a-f]{{{_DIGEST_LETTERS}}}")


class NewerRecordError(InputError):
    """The record is one of a newer version."""


@dataclass(frozen=True, kw_only=True)
class BucketPrefix:
    """A bucket, and the prefix of every key in it."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, uri: str, *below: str | None) -> Self:
        """Parse a URI, and append the parts in `below` to its prefix.

        Raises:
            ValueError: it is not an s3:// URI.
        """
        match = _URI.fullmatch(uri)
        if match is None:
            raise InputError(f"{uri} is no place in a bucket; write it like s3://bucket/prefix")
        parts = [*(match["prefix"] or "").split("/"), *below]
        return cls(bucket=match["bucket"], prefix="".join(f"{part}/" for part in parts if part))

    def key(self, *parts: str) -> str:
        """Return the key of an object under this prefix."""
        return self.prefix + "/".join(parts)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def folder_of(step: int, manifest: str) -> str:
    """Return the folder of the checkpoint with this manifest."""
    return f"{names.step_folder(step)}-{hashlib.sha256(manifest.encode()).hexdigest()[:_DIGEST_LETTERS]}"


def parse_folder(name: str) -> int | None:
    """Return the step in the name of a folder, or None if it is not a checkpoint folder."""
    match = _FOLDER.fullmatch(name)
    return None if match is None else int(match["step"])


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """A complete checkpoint in the bucket."""

    step: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class Latest:
    """The only mutable record. Each write specifies the version that it replaces, so that no update is lost."""

    attempt: int
    owner: str
    """Process that may write."""
    lineage: str
    """ID that distinguishes these checkpoints from others at the same URI; the volume of the run has the same ID."""
    run: str | None = None
    """Uid of the run of the owner; None if an older version wrote the record, or no run of Piton's."""
    base: int = 0
    """Number that `attempt` has more than the attempt of that run: it goes on from another run's checkpoints."""
    newest: Pointer | None = None

    def move(self, pointer: Pointer) -> Self:
        """Return the record with another newest checkpoint."""
        return replace(self, newest=pointer)

    def to_json(self) -> str:
        """Return the text of the object."""
        newest = None if self.newest is None else {"step": self.newest.step, "folder": self.newest.folder}
        own = {"attempt": self.attempt, "owner": self.owner, "lineage": self.lineage}
        whose = {} if self.run is None else {"run": self.run, "base": self.base}
        return json.dumps({"format": _FORMAT, **own, **whose, "newest": newest}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the text of the object.

        Raises:
            NewerRecordError: a newer version of Piton wrote it.
            ValueError: it is not a valid record.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            _check(fields)
            newest = fields["newest"]
            return cls(
                attempt=int(fields["attempt"]),
                owner=str(fields["owner"]),
                lineage=str(fields["lineage"]),
                run=None if fields.get("run") is None else str(fields["run"]),
                base=int(fields.get("base", 0)),
                newest=None if newest is None else Pointer(step=int(newest["step"]), folder=str(newest["folder"])),
            )
        except NewerRecordError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{LATEST} in the bucket is not one of ours ({why})") from error


def _check(fields: dict[str, Any]) -> None:
    """Check the format, and that the lineage is one word, as it stands on volumes.

    Raises:
        NewerRecordError: a newer version of Piton wrote the record.
        ValueError: it is not a valid record.
    """
    version = fields["format"]
    if isinstance(version, int) and version > _FORMAT:
        raise NewerRecordError(f"{LATEST} in the bucket has format {version}, which a newer Piton writes")
    if version != _FORMAT:
        raise ValueError(f"its format is {version!r}")
    if len(str(fields["lineage"]).split()) != 1:
        raise ValueError("its lineage is not one word")
