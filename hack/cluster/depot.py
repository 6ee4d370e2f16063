"""The images that every node starts with: unpacked once, by a containerd of their own, and kept in the cache.

A gigabyte of image takes tens of seconds to unpack, and drills take away a node and add another every few seconds. So a
node's containerd does not start empty but with a copy of the depot, which takes no time: the databases are copied, the
blobs are hard links, and the unpacked layers, which nobody ever writes to, are symbolic links into the depot. Hence
nothing may vanish from the depot while there are nodes; its garbage is collected when there are none.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hack.cluster import oci, packages, processes, release
from hack.cluster.layout import CACHE, NODES, STATE
from hack.cluster.shell import BoxError, run

_PROCESS = "depot-containerd"
_DEPOT = CACHE / "depot"
_ROOT = _DEPOT / "containerd"
_RECORD = _DEPOT / "images.json"
_STATE = STATE / "depot"
_SOCKET = _STATE / "containerd.sock"
_BLOBS = Path("io.containerd.content.v1.content/blobs/sha256")
_SNAPSHOTS = Path("io.containerd.snapshotter.v1.overlayfs/snapshots")
_DATABASES = (
    Path("io.containerd.metadata.v1.bolt/meta.db"),
    Path("io.containerd.snapshotter.v1.overlayfs/metadata.db"),
)

_CONFIG = """\
version = 3
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
                    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
                    "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.gc.v1.scheduler"]  # garbage is collected when we say so
  deletion_threshold = 0
  mutation_threshold = 1000000
  startup_delay = "24h"
"""


def images() -> dict[str, oci.Image]:
    """What is in it, by name."""
    if not _RECORD.exists():
        return {}
    found: dict[str, str] = json.loads(_RECORD.read_text())
    return {name: oci.Image(name=name, digest=digest, blobs=_ROOT / _BLOBS) for name, digest in found.items()}


def add(wanted: Iterable[oci.Image]) -> None:
    """Unpack these images, but for what of them is here."""
    with _locked(fcntl.LOCK_EX):
        here = images()
        new = [image for image in wanted if image.name not in here or here[image.name].digest != image.digest]
        if new:
            with _containerd():
                for image in new:
                    bring(image, _SOCKET, _ROOT)


def add_tar(tar: Path) -> None:
    """Unpack the images of a tar that `docker save` or `buildah push docker-archive:` wrote."""
    with _locked(fcntl.LOCK_EX), _containerd():
        _import(_SOCKET, tar)


def stock(root: Path) -> None:
    """Give a containerd that is to be started with this root all images of the depot."""
    with _locked(fcntl.LOCK_SH):
        if not _RECORD.exists():
            return
        for database in _DATABASES:
            (root / database).parent.mkdir(parents=True)
            shutil.copyfile(_ROOT / database, root / database)
        (root / _BLOBS).mkdir(parents=True)
        for blob in (_ROOT / _BLOBS).iterdir():
            _link(blob, root / _BLOBS / blob.name)
        (root / _SNAPSHOTS).mkdir()
        for snapshot in (_ROOT / _SNAPSHOTS).iterdir():
            (root / _SNAPSHOTS / snapshot.name).symlink_to(snapshot)


def refresh(socket: Path, root: Path) -> None:
    """Bring a containerd that runs what the depot has got since."""
    there = _list(socket)
    for image in images().values():
        if there.get(image.name) != image.digest:
            bring(image, socket, root)


def bring(image: oci.Image, socket: Path, root: Path) -> None:
    """Import an image into the containerd that serves this root, but for the blobs that it has."""
    with tempfile.TemporaryDirectory(dir=_DEPOT) as folder:
        tar = Path(folder) / "image.tar"
        oci.pack(image, root / _BLOBS, tar)
        _import(socket, tar)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copyfile(source, target)


@contextmanager
def _containerd() -> Iterator[None]:
    """Serve the depot; record what is in it in the end."""
    packages.install(packages.RUNTIME)
    release.choose(None, print)
    _STATE.mkdir(parents=True, exist_ok=True)
    config = _STATE / "containerd.toml"
    config.write_text(_CONFIG.format(root=_ROOT, state=_STATE / "state", socket=_SOCKET))
    processes.start(_PROCESS, [release.program("containerd"), "--config", config])
    try:
        processes.wait_for("containerd of the depot", lambda: serves(_SOCKET), seconds=30, of=_PROCESS)
        yield
        if not any(NODES.glob("node-*")):
            _collect_garbage()
        _RECORD.write_text(json.dumps(_list(_SOCKET), indent=2))
    finally:
        processes.stop(_PROCESS)


def _collect_garbage() -> None:
    lease = _ctr(_SOCKET, "leases", "create").strip()
    _ctr(_SOCKET, "leases", "delete", "--sync", lease)


def serves(socket: Path) -> bool:
    """Whether a containerd answers there."""
    try:
        _ctr(socket, "version")
    except BoxError:
        return False
    return True


def _import(socket: Path, tar: Path) -> None:
    _ctr(socket, "images", "import", "--all-platforms", tar)


def _list(socket: Path) -> dict[str, str]:
    """Names and digests; the kubelet's images also have their digest for a name."""
    rows = [line.split() for line in _ctr(socket, "images", "list").splitlines()[1:]]
    return {row[0]: row[2] for row in rows}


def _ctr(socket: Path, *words: str | Path) -> str:
    return run([release.program("ctr"), "--address", socket, "--namespace", "k8s.io", *words])


@contextmanager
def _locked(how: int) -> Iterator[None]:
    _DEPOT.mkdir(parents=True, exist_ok=True)
    with (_DEPOT / "lock").open("w") as lock:
        fcntl.flock(lock, how)
        yield
