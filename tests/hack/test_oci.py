"""What a store lacks of an image, in a tar."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

from hack.cluster import oci

NAME = "box/one:1"


def a_blob(store: Path, data: bytes) -> str:
    store.mkdir(exist_ok=True)
    name = hashlib.sha256(data).hexdigest()
    (store / name).write_bytes(data)
    return f"sha256:{name}"


def an_image(store: Path, *layers: bytes, **more: Any) -> oci.Image:
    config = a_blob(store, b"{}")
    descriptors = [{"digest": a_blob(store, layer)} for layer in layers]
    document = {"config": {"digest": config}, "layers": descriptors, **more}
    return oci.Image(name=NAME, digest=a_blob(store, json.dumps(document).encode()), blobs=store)


def packed(image: oci.Image, there: Path, tmp_path: Path) -> dict[str, bytes]:
    oci.pack(image, there, tmp_path / "image.tar")
    with tarfile.open(tmp_path / "image.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_an_empty_store_gets_every_blob(tmp_path: Path) -> None:
    image = an_image(tmp_path / "store", b"torch", b"code")

    found = packed(image, tmp_path / "none", tmp_path)

    assert {b"torch", b"code", b"{}"} < set(found.values())


def test_a_store_that_has_the_dependencies_gets_only_the_code(tmp_path: Path) -> None:
    before = an_image(tmp_path / "there", b"torch", b"old code")
    after = an_image(tmp_path / "store", b"torch", b"new code")

    found = packed(after, before.blobs, tmp_path)

    assert b"new code" in found.values()
    assert b"torch" not in found.values()


def test_the_manifest_is_always_in_it(tmp_path: Path) -> None:
    image = an_image(tmp_path / "store", b"code")

    found = packed(image, image.blobs, tmp_path)

    assert set(found) == {"oci-layout", "index.json", f"blobs/sha256/{image.digest.removeprefix('sha256:')}"}


def test_the_index_names_the_image_and_says_what_its_manifest_is(tmp_path: Path) -> None:
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    image = an_image(tmp_path / "store", b"code", mediaType=kind)

    [entry] = json.loads(packed(image, tmp_path / "none", tmp_path)["index.json"])["manifests"]

    assert (entry["digest"], entry["mediaType"]) == (image.digest, kind)
    assert entry["annotations"] == {"io.containerd.image.name": NAME}
    assert entry["size"] == (image.blobs / image.digest.removeprefix("sha256:")).stat().st_size


def test_an_image_for_several_machines_brings_all_its_manifests(tmp_path: Path) -> None:
    inner = an_image(tmp_path / "store", b"code")
    outer = a_blob(inner.blobs, json.dumps({"manifests": [{"digest": inner.digest}]}).encode())

    found = oci.blobs_of(oci.Image(name=NAME, digest=outer, blobs=inner.blobs))

    assert found[:2] == [outer, inner.digest]
    assert len(found) == 4
