"""The folders behind volumes. One that has to be full at its size is a file system of its own, in a file."""

import re
import shutil
from pathlib import Path

from hack.cluster import mounts
from hack.cluster.layout import STATE, VOLUMES
from hack.cluster.shell import run

_DISKS = STATE / "disks"
_QUANTITY = re.compile(r"(\d+)(|[KMGT]i)")
_UNITS = ("", "Ki", "Mi", "Gi", "Ti")


def prepare() -> None:
    """Nodes that run already see what is mounted here later."""
    mounts.bind_to_itself(VOLUMES, "shared")


def make(name: str, *, size_bytes: int | None = None) -> None:
    """Make the folder, once; with a size, no more than that fits into it."""
    folder = VOLUMES / name
    folder.mkdir(exist_ok=True)
    if size_bytes and not mounts.mounted(folder):
        _DISKS.mkdir(exist_ok=True)
        disk = _disk(name)
        with disk.open("wb") as file:
            file.truncate(size_bytes)
        run(["mkfs.ext4", "-q", "-m", "0", disk])
        run(["mount", "-o", "loop", disk, folder])
    folder.chmod(0o777)  # images that do not run as root write here, and a folder ignores fsGroup


def remove(name: str) -> None:
    """Remove it and what is in it."""
    mounts.unmount_all(VOLUMES / name)
    shutil.rmtree(VOLUMES / name, ignore_errors=True)
    _disk(name).unlink(missing_ok=True)


def remove_all() -> None:
    """Unmount everything, so that all of it can be deleted."""
    mounts.unmount_all(VOLUMES)


def size_in_bytes(quantity: str) -> int:
    """What Kubernetes writes as 500Mi.

    Raises:
        ValueError: Not in such a unit.
    """
    if not (found := _QUANTITY.fullmatch(quantity)):
        raise ValueError(f"{quantity!r} is no size that the box knows: write 500Mi or 2Gi")
    return int(found[1]) << 10 * _UNITS.index(found[2])


def _disk(name: str) -> Path:
    return _DISKS / f"{name}.ext4"
