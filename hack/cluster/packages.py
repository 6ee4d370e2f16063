"""What the box needs of Debian: packages to install, and packages to unpack without installing them."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hack.cluster.layout import CACHE
from hack.cluster.shell import BoxError, run

RUNTIME = {
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "dnsmasq": "dnsmasq-base",
    "/bin/busybox": "busybox-static",
    "openssl": "openssl",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
    "mkfs.ext4": "e2fsprogs",
}
"""A program, or a file, and the package that brings it."""

IMAGES = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "skopeo": "skopeo",
}

_INSTALL = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "-oDPkg::Lock::Timeout=300")


def missing(needed: dict[str, str]) -> list[str]:
    """The packages whose program or file is not here."""
    return sorted({package for what, package in needed.items() if not _present(what)})


def _present(what: str) -> bool:
    return Path(what).exists() if what.startswith("/") else shutil.which(what) is not None


def install(needed: dict[str, str]) -> None:
    """Install what is missing.

    Raises:
        BoxError: Something is missing, and this is no Debian or we are not root.
    """
    if not (packages := missing(needed)):
        return
    if not shutil.which("apt-get"):
        raise BoxError(f"the box needs these Debian packages, and there is no apt-get: {', '.join(packages)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _apt():
        run(["apt-get", "update", "-qq"], env=quiet)
        run([*_INSTALL, *packages], env=quiet)


def unpack(package: str, into: Path) -> None:
    """Fetch the package and unpack it there. Nothing is installed, so nothing that it would start is started.

    Raises:
        BoxError: This is no Debian, or there is no such package.
    """
    if not shutil.which("apt-get"):
        raise BoxError(f"the box needs the Debian package {package}, and there is no apt-get")
    aside = into.with_suffix(".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with _apt():
        run(["apt-get", "update", "-qq"])
        run(["apt-get", "download", "-qq", "-oAPT::Sandbox::User=root", package], cwd=aside)
    (archive,) = aside.glob("*.deb")
    run(["dpkg-deb", "--extract", archive, aside])
    archive.unlink()
    shutil.rmtree(into, ignore_errors=True)
    aside.replace(into)


@contextmanager
def _apt() -> Iterator[None]:
    """Use apt-get alone. It waits for no other apt-get that updates its lists, but fails."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
