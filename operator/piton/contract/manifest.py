"""The files that make a checkpoint directory trustworthy.

`MANIFEST.json` is written last into a step's folder; without a valid one the folder is not a checkpoint.
`WEIGHTS.json` is the manifest of one that was made thin: the same, of fewer files, and it says so.
`COMPLETE.json` says that the run is finished, and is the proof that `Succeeded` needs.

A manifest ends with the SHA-256 of all that stands before it: a flipped bit in it is found like one in a shard.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

FORMAT, _WITH_SHA256 = 3, 2
COMPLETE_FORMAT = 1
"""Versions of these files; a reader refuses what it does not know. The older manifests are still read."""
BLAKE3 = "blake3"
_ALGORITHMS = frozenset({BLAKE3, "sha256"})
LEFT_BY_BREAK, LEFT_ON_PURPOSE = "left by break", "the script finished the training"
_LEFT_BY_BREAK = frozenset({LEFT_BY_BREAK, "the script ended its loop"})
"""Reasons of a training whose loop was left early, the second of older trainers. Nobody said that it was meant."""
_SEAL = ',\n "sha256": "'
"""Separator before the digest; the digest is of the text before it."""


class NewerFormatError(ValueError):
    """A file of a format that a newer Piton writes. It is not damaged: nobody here can tell."""


def is_left_by_break(reason: str | None) -> bool:
    """True if a training ended because its script left the loop by `break`, and did not say that it was meant."""
    return reason in _LEFT_BY_BREAK


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a checkpoint: its size in bytes and its digest, `<algorithm>:<hex>`.

    Raises:
        ValueError: nobody here knows the algorithm.
    """

    size: int
    digest: str

    def __post_init__(self) -> None:
        if self.algorithm not in _ALGORITHMS:
            raise ValueError(f"the manifest has a digest of another kind: {self.digest}")

    @property
    def algorithm(self) -> str:
        """The algorithm of the digest."""
        return self.digest.partition(":")[0]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a committed checkpoint."""

    step: int
    attempt: int
    world_size: int
    files: Mapping[str, FileEntry]
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    """UTC, ISO 8601."""
    weights_only: bool = False
    """The weights are all that is left; nothing can resume from it."""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> str:
        """The file's text."""
        return sealed(
            {
                "format": FORMAT,
                "step": self.step,
                "attempt": self.attempt,
                "worldSize": self.world_size,
                "files": {name: {"size": f.size, "digest": f.digest} for name, f in sorted(self.files.items())},
                "metrics": dict(self.metrics),
                "versions": dict(self.versions),
                "created": self.created,
                **({"weightsOnly": True} if self.weights_only else {}),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse a manifest.

        Raises:
            NewerFormatError: the text is of a format that is not known yet.
            ValueError: the text is torn, of another format, or has a field of the wrong type.
        """
        fields = _unsealed(text)
        try:
            manifest = cls(
                step=_whole(fields["step"]),
                attempt=_whole(fields["attempt"]),
                world_size=_whole(fields["worldSize"]),
                files={str(name): _entry(entry) for name, entry in fields["files"].items()},
                metrics={str(name): float(value) for name, value in fields["metrics"].items()},
                versions={str(name): str(value) for name, value in fields["versions"].items()},
                created=str(fields["created"]),
                weights_only=fields.get("weightsOnly", False) is True,
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"the manifest has no good {error}") from error
        if not manifest.files or any("/" in name or name.startswith(".saving") for name in manifest.files):
            raise ValueError("the manifest lists no files, or files outside its own folder")
        return manifest


@dataclass(frozen=True, kw_only=True)
class Complete:
    """The final manifest: the run is finished."""

    attempt: int
    step: int
    weights_digest: str | None = None
    """SHA-256 over the final weights (names, types, shapes, bytes), as `sha256:<hex>`; None where there is none."""
    best_step: int | None = None
    best_metric: float | None = None
    reason: str = ""
    """The reason why training ended: all steps done, target reached, no more improvement, training time spent."""

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(
            {
                "format": COMPLETE_FORMAT,
                "attempt": self.attempt,
                "step": self.step,
                "weightsDigest": self.weights_digest,
                "bestStep": self.best_step,
                "bestMetric": self.best_metric,
                "reason": self.reason,
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse COMPLETE.json.

        Raises:
            ValueError: the text is torn, of another format, or has a field of the wrong type.
        """
        fields = _load(text, "final manifest", COMPLETE_FORMAT)
        try:
            best_step, best_metric, digest = fields["bestStep"], fields["bestMetric"], fields["weightsDigest"]
            return cls(
                attempt=_whole(fields["attempt"]),
                step=_whole(fields["step"]),
                weights_digest=None if digest is None else str(digest),
                best_step=None if best_step is None else _whole(best_step),
                best_metric=None if best_metric is None else float(best_metric),
                reason=str(fields["reason"]),
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"the final manifest has no good {error}") from error


def sealed(fields: Mapping[str, Any]) -> str:
    """The JSON of these fields, with its digest as the last one."""
    body = json.dumps(fields, indent=1).removesuffix("\n}")
    return f'{body}{_SEAL}{_digest(body)}"\n}}'


def _unsealed(text: str) -> dict[str, Any]:
    fields = _load(text, "manifest", FORMAT, _WITH_SHA256)
    body, _, seal = text.rpartition(_SEAL)
    if seal != f'{_digest(body)}"\n}}':
        raise ValueError("the manifest has flipped bits: its SHA-256 is another")
    return fields


def _entry(fields: Mapping[str, Any]) -> FileEntry:
    digest = fields["digest"] if "digest" in fields else f"sha256:{fields['sha256']}"
    return FileEntry(size=_whole(fields["size"]), digest=str(digest))


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _load(text: str, what: str, version: int, *older: int) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {what} is torn: {error}") from error
    found = fields.get("format") if isinstance(fields, dict) else None
    if isinstance(found, int) and found > version:
        raise NewerFormatError(f"the {what} is of format {found}; this Piton knows {version} and older")
    if not isinstance(fields, dict) or found not in (version, *older):
        raise ValueError(f"the {what} is not of format {version}")
    return fields


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"whole number: {value!r}")
    return value
