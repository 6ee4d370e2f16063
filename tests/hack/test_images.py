"""Images that are made by hand."""

import hashlib
import json
import tarfile
from pathlib import Path

from hack.cluster.images import write_image


def test_an_image_names_its_layer_by_digest(tmp_path: Path) -> None:
    path = tmp_path / "images" / "one.tar"
    write_image(path, "box/one:1", b"a layer", ["/one"])

    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    [manifest] = json.loads(files["manifest.json"])
    config = json.loads(files[manifest["Config"]])
    assert manifest["RepoTags"] == ["docker.io/box/one:1"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(files[manifest['Layers'][0]]).hexdigest()}"]
    assert config["config"]["Cmd"] == ["/one"]
