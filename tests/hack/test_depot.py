"""What a containerd starts with."""

import shutil
from pathlib import Path

import pytest

from hack.cluster import depot

BLOBS = "io.containerd.content.v1.content/blobs/sha256"
LAYERS = "io.containerd.snapshotter.v1.overlayfs/snapshots"
DATABASES = ("io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db")


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A depot with an image of one layer. The real one belongs to a box that may be up."""
    root = tmp_path / "depot" / "containerd"
    files = {BLOBS + "/ab": "a blob", LAYERS + "/1/fs/etc/file": "unpacked", **dict.fromkeys(DATABASES, "a database")}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(data)
    (tmp_path / "depot" / "images.json").write_text('{"box/one:1": "sha256:ab"}')
    monkeypatch.setattr(depot, "_DEPOT", tmp_path / "depot")
    monkeypatch.setattr(depot, "_ROOT", root)
    monkeypatch.setattr(depot, "_RECORD", tmp_path / "depot" / "images.json")
    return root


def test_a_node_starts_with_what_is_in_the_depot(full: Path, tmp_path: Path) -> None:
    depot.stock(tmp_path / "node")

    assert (tmp_path / "node" / BLOBS / "ab").read_text() == "a blob"
    assert (tmp_path / "node" / LAYERS / "1" / "fs" / "etc" / "file").read_text() == "unpacked"


def test_what_a_node_writes_down_is_its_own(full: Path, tmp_path: Path) -> None:
    depot.stock(tmp_path / "node")

    for database in DATABASES:
        (tmp_path / "node" / database).write_text("changed")

    assert [(full / database).read_text() for database in DATABASES] == ["a database"] * 2


def test_a_node_that_goes_takes_nothing_from_the_depot(full: Path, tmp_path: Path) -> None:
    depot.stock(tmp_path / "node")

    shutil.rmtree(tmp_path / "node")

    assert (full / BLOBS / "ab").read_text() == "a blob"
    assert (full / LAYERS / "1" / "fs" / "etc" / "file").read_text() == "unpacked"


def test_an_empty_depot_gives_nothing(full: Path, tmp_path: Path) -> None:
    (tmp_path / "depot" / "images.json").unlink()

    depot.stock(tmp_path / "node")

    assert depot.images() == {}
    assert not (tmp_path / "node").exists()
