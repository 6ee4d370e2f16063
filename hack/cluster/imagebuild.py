"""Builds images from plain Dockerfiles, with Debian's buildah and skopeo: no Docker engine, no registry.

What a Dockerfile starts from, a slim Debian with Python, is made here by debootstrap. buildah keeps each step that it
has done, so a change of the code repeats only what follows the copy of the code; for what has not changed at all it is
not even asked. Its folder and the finished images are in the cache.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hack.cluster import mounts, oci, packages, pipconfig
from hack.cluster.layout import CACHE
from hack.cluster.programs import Say
from hack.cluster.shell import BoxError, run

_HOME = CACHE / "images"
_LAYOUT = _HOME / "finished"
_STORE = _HOME / "buildah"
_SCRATCH = _HOME / "scratch"
"""Where buildah and skopeo write layers on their way. A build that is killed leaves gigabytes there."""
_DRIVERS = ("overlay", "vfs")
_NICE = ("nice", "-n", "5")  # people work beside it; tests that run beside it come after it

_RELEASE = "bookworm"
_MIRROR = "http://deb.debian.org/debian"
_INCLUDE = ("ca-certificates", "python3", "python3-venv")
_WASTE = ("var/cache/apt", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/man", "usr/share/info",
          "usr/share/locale", "usr/share/lintian")  # fmt: skip
_OF_THIS_MACHINE = ("etc/hostname", "etc/resolv.conf")
"""What debootstrap copies, and containers get from whoever runs them."""

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def build(name: str, dockerfile: Path, context: Path, say: Say, **arguments: str) -> oci.Image:
    """The image that the Dockerfile makes of the files that .dockerignore lets into its context."""
    tag = _tag_of(name, dockerfile, context)
    with _only_one():
        if not (found := _finished(name, tag)):
            packages.install(packages.IMAGES)
            found = _build(name, tag, dockerfile, context, arguments, say)
    return found


def stored_as(name: str, dockerfile: Path, context: Path) -> str:
    """What another Dockerfile calls that image, once it is built: `name` may be another checkout's by now."""
    return f"localhost/{_tag_of(name, dockerfile, context)}"


def _tag_of(name: str, dockerfile: Path, context: Path) -> str:
    return f"{name.rpartition(':')[0].replace('/', '-')}-{key_of(name, dockerfile, context)}"


def files_of(context: Path) -> list[Path]:
    """What .dockerignore lets in. Ours bans everything and lets in by name.

    Raises:
        ValueError: It is not written like that.
    """
    rules = (context / ".dockerignore").read_text().split()
    if "*" not in rules:
        raise ValueError(f"{context / '.dockerignore'} has to ban everything (*) and let in by name (!pyproject.toml)")
    tops = [context / rule[1:] for rule in rules if rule.startswith("!")]
    found = [file for top in tops for file in ([top] if top.is_file() else top.rglob("*")) if file.is_file()]
    return sorted(file for file in found if "__pycache__" not in file.parts)


def key_of(name: str, dockerfile: Path, context: Path) -> str:
    """Of everything that the image depends on, but for what Debian and the indexes have today."""
    base = [name, _base_name(), context.joinpath(".dockerignore").read_text()]
    sums = [f"{file.relative_to(context)} {file.stat().st_mode:o} {_sum(file.read_bytes())}"
            for file in [*files_of(context), dockerfile]]  # fmt: skip
    return _sum("\n".join([*base, *sums]).encode())


def _base_name() -> str:
    return (
        f"localhost/debian-python:{_sum(repr((_RELEASE, _MIRROR, _INCLUDE, _WASTE, _OF_THIS_MACHINE, _PATH)).encode())}"
    )


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _finished(name: str, tag: str) -> oci.Image | None:
    index = _LAYOUT / "index.json"
    manifests = json.loads(index.read_text())["manifests"] if index.exists() else []
    for manifest in manifests:
        if manifest.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag:
            return oci.Image(name=name, digest=manifest["digest"], blobs=_LAYOUT / "blobs" / "sha256")
    return None


def _build(name: str, tag: str, dockerfile: Path, context: Path, arguments: Mapping[str, str], say: Say) -> oci.Image:
    with _storage() as driver:
        buildah = _buildah(driver)
        if not run([*buildah, "images", "--quiet", "--filter", f"reference={_base_name()}"]):
            say("making a Debian with Python to build images on")
            _make_base(buildah)
        say(f"building {name}")
        _run_dockerfile(buildah, [name, f"localhost/{tag}"], dockerfile, context, arguments)
        say(f"storing {name}")
        _store(name, tag, driver)
    if not (found := _finished(name, tag)):
        raise BoxError(f"buildah wrote no image {tag} into {_LAYOUT}")
    return found


def _make_base(buildah: Sequence[str]) -> None:
    """As slim as the official images of Python: no documentation, no lists of packages."""
    with tempfile.TemporaryDirectory(dir=_SCRATCH) as folder:
        root = Path(folder) / "root"
        options = ["--variant=minbase", f"--include={','.join(_INCLUDE)}"]
        run([*_NICE, "debootstrap", *options, _RELEASE, root, _MIRROR])
        for waste in _WASTE:
            shutil.rmtree(root / waste)
            (root / waste).mkdir()
        for file in _OF_THIS_MACHINE:
            (root / file).write_text("")
        tar = Path(folder) / "root.tar"
        run(["tar", "-C", root, "-cf", tar, "."])
        container = run([*buildah, "from", "scratch"]).strip()
        run([*buildah, "add", "--quiet", container, tar, "/"], env=_environment())
        run([*buildah, "config", "--env", _PATH, container])
        run([*buildah, "commit", "--quiet", "--rm", container, _base_name()], env=_environment())


def _run_dockerfile(
    buildah: Sequence[str], names: Sequence[str], dockerfile: Path, context: Path, arguments: Mapping[str, str]
) -> None:
    with tempfile.TemporaryDirectory(dir=_SCRATCH) as folder:
        conf = Path(folder) / "pip.conf"
        settings = pipconfig.read(run([sys.executable, "-m", "pip", "config", "list"]), os.environ)
        conf.write_text(pipconfig.write(settings))
        seen = [
            f"--volume={conf}:/etc/pip.conf:ro",
            *(f"--volume={path}:{path}:ro" for path in pipconfig.paths(settings)),
        ]
        options = [
            "--layers",
            "--pull=false",
            *(f"--build-arg={name}={value}" for name, value in {"BASE": _base_name(), **arguments}.items()),
            f"--file={dockerfile}",
            *(f"--tag={name}" for name in names),
        ]
        run([*_NICE, *buildah, "bud", "--isolation=chroot", *options, *seen, context], env=_environment())


def _store(name: str, tag: str, driver: str) -> None:
    """Put it beside the other finished images; layers that are there are not written again.

    buildah itself would compress each of them, each time.
    """
    source = f"containers-storage:[{driver}@{_root(driver)}+{_run_root(driver)}]{name}"
    copy = ["skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers", source, f"oci:{_LAYOUT}:{tag}"]
    run([*_NICE, *copy], env=_environment())


def _environment() -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(_SCRATCH)}


@contextlib.contextmanager
def _storage() -> Iterator[str]:
    """The storage driver that works here. Nothing of a build that failed stays behind, and nothing mounted."""
    shutil.rmtree(_SCRATCH, ignore_errors=True)
    _SCRATCH.mkdir(parents=True)
    driver = next((driver for driver in _DRIVERS if _works(driver)), _DRIVERS[-1])
    try:
        yield driver
    finally:
        run([*_buildah(driver), "rm", "--all"])
        mounts.unmount_all(_STORE)
        shutil.rmtree(_SCRATCH)


def _works(driver: str) -> bool:
    try:
        run([*_buildah(driver), "info"])
    except BoxError:
        return False
    return True


def _buildah(driver: str) -> list[str]:
    return ["buildah", f"--root={_root(driver)}", f"--runroot={_run_root(driver)}", f"--storage-driver={driver}"]


def _root(driver: str) -> Path:
    return _STORE / driver / "root"


def _run_root(driver: str) -> Path:
    return _STORE / driver / "run"


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    _HOME.mkdir(parents=True, exist_ok=True)
    with (_HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
