"""Images as OCI stores them: blobs named by their digests. What another store lacks of an image fits into a tar.

The content store of containerd and the OCI layout that buildah writes keep their blobs alike, so one description serves
both. A change of the code is a layer of a megabyte on top of a gigabyte that every store has already.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYOUT = {"imageLayoutVersion": "1.0.0"}


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that lies in some store."""

    name: str
    """With its registry and tag: docker.io/piton-box/busybox:1."""

    digest: str
    """Of its manifest: sha256:…"""

    blobs: Path
    """The folder of the store whose files are named by the digests of what is in them."""


def blobs_of(image: Image) -> list[str]:
    """The digests of everything that it consists of, its manifest first."""
    return list(_below(image.blobs, image.digest))


def _below(blobs: Path, digest: str) -> Iterator[str]:
    yield digest
    document = _read(blobs, digest)
    for manifest in document.get("manifests", []):
        yield from _below(blobs, manifest["digest"])
    if "config" in document:
        yield document["config"]["digest"]
        yield from (layer["digest"] for layer in document["layers"])


def pack(image: Image, there: Path, tar: Path) -> None:
    """Write what the store whose blobs are `there` lacks of the image; containerd finds the rest of it at home."""
    document = _read(image.blobs, image.digest)
    entry = {
        "mediaType": document.get("mediaType", _INDEX if "manifests" in document else _MANIFEST),
        "digest": image.digest,
        "size": _file(image.blobs, image.digest).stat().st_size,
        "annotations": {"io.containerd.image.name": image.name},
    }
    with tarfile.open(tar, "w") as packed:
        _add(packed, "oci-layout", _LAYOUT)
        _add(packed, "index.json", {"schemaVersion": 2, "manifests": [entry]})
        for digest in dict.fromkeys(blobs_of(image)):
            if digest == image.digest or not _file(there, digest).exists():
                packed.add(_file(image.blobs, digest), f"blobs/sha256/{_hex(digest)}")


def _read(blobs: Path, digest: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_file(blobs, digest).read_bytes())
    return document


def _file(blobs: Path, digest: str) -> Path:
    return blobs / _hex(digest)


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _add(tar: tarfile.TarFile, name: str, document: dict[str, Any]) -> None:
    data = json.dumps(document).encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
