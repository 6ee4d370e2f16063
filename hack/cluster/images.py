"""Container images without a registry or a builder: any root file system becomes an image that containerd imports.

An image is a tar of a layer, a config that names the layer's digest, and a manifest.
"""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hack.cluster import depot
from hack.cluster.shell import run

PAUSE = "piton-box/pause:2"
BUSYBOX = "piton-box/busybox:1"
REGISTRY = "docker.io/"
"""What Kubernetes puts before names that have no registry."""

_BUSYBOX = Path("/bin/busybox")


def keep_basics() -> None:
    """The image that holds a pod's namespaces together, and a small one to try things with."""
    commands = {PAUSE: ["/bin/sleep", "infinity"], BUSYBOX: ["/bin/sh"]}
    if missing := [name for name in commands if REGISTRY + name not in depot.images()]:
        applets = run([_BUSYBOX, "--list"]).split()
        layer = _layer({"bin/busybox": _BUSYBOX}, links={f"bin/{name}": "busybox" for name in applets})
        for name in missing:
            _keep(name, layer, commands[name])


def _keep(name: str, layer: bytes, command: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "image.tar"
        write_image(tar, name, layer, command)
        depot.add_tar(tar)


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
    manifest = [{"Config": "config.json", "RepoTags": [REGISTRY + name], "Layers": ["layer.tar"]}]
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
