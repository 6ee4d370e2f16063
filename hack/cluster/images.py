"""Container images without a registry or a builder: any root file system becomes an image that containerd imports.

An image is a tar of a layer, a config that names the layer's digest, and a manifest.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from hack.cluster import build
from hack.cluster.layout import STATE, Node
from hack.cluster.shell import run

PAUSE = "piton-box/pause:1"
BUSYBOX = "piton-box/busybox:1"
KEPT = STATE / "images"
"""What every node gets, also those that come later."""

_BUSYBOX = Path("/bin/busybox")


def keep_basics() -> None:
    """The image that holds a pod's namespaces together, and a small one to try things with."""
    if not (KEPT / "pause.tar").exists():
        write_image(KEPT / "pause.tar", PAUSE, _layer({"pause": build.HOME / build.PAUSE}), ["/pause"])
    if not (KEPT / "busybox.tar").exists():
        applets = run([_BUSYBOX, "--list"]).split()
        layer = _layer({"bin/busybox": _BUSYBOX}, links={f"bin/{name}": "busybox" for name in applets})
        write_image(KEPT / "busybox.tar", BUSYBOX, layer, ["/bin/sh"])


def keep(tar: Path) -> Path:
    """Have every node, also later ones, get this image."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = KEPT / tar.name
    kept.unlink(missing_ok=True)
    try:
        os.link(tar, kept)
    except OSError:  # on another disk
        shutil.copyfile(tar, kept)
    return kept


def load(node: Node, tars: Iterable[Path]) -> None:
    """Import images into a node that runs."""
    for tar in tars:
        run(["ctr", "--address", node.socket, "--namespace", "k8s.io", "images", "import", "--all-platforms", tar])


def write_image(path: Path, name: str, layer: bytes, command: Sequence[str]) -> None:
    """Write an image of one layer, as `docker save` would."""
    diff_id = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": list(command)},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    ).encode()
    manifest = [{"Config": "config.json", "RepoTags": [f"docker.io/{name}"], "Layers": ["layer.tar"]}]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for file, data in {
            "layer.tar": layer,
            "config.json": config,
            "manifest.json": json.dumps(manifest).encode(),
        }.items():
            _add(tar, file, data)


def _layer(files: dict[str, Path], *, links: dict[str, str] | None = None) -> bytes:
    """A root file system of these programs and links, and the folders that programs expect."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder, mode in (("tmp", 0o1777), ("bin", 0o755), ("etc", 0o755)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        for name, source in files.items():
            _add(tar, name, source.read_bytes(), mode=0o755)
        for name, target in (links or {}).items():
            if name not in files:
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                tar.addfile(entry)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))
