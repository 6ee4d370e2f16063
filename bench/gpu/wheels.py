"""Fetches what the parts need besides torch and numpy, for another Python, and unpacks it into a folder.

`make gpu` reads the folder, so that nothing has to be installed where the GPU is, and no network is needed there. The
versions are those that are installed here, which constraints.txt pins.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ROOTS = ("blake3", "pillow", "prometheus-client", "pydantic", "rich", "safetensors", "transformers")
THERE = frozenset({"numpy", "torch"})
"""What the interpreter with the GPU has, and knows best."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MEGABYTES_MAX = 45


def main() -> None:
    """Fetch and unpack; says how large it is."""
    version, folder = sys.argv[1], Path(sys.argv[2]) / sys.argv[1]
    with tempfile.TemporaryDirectory() as wheels:
        _download(version, Path(wheels))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        packed = 0
        for wheel in Path(wheels).glob("*.whl"):
            packed += wheel.stat().st_size
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
    megabytes = packed / 1e6
    print(f"{folder}: {megabytes:.0f} MB of wheels")
    if megabytes > MEGABYTES_MAX:
        sys.exit(f"that is more than {MEGABYTES_MAX} MB")


def _download(version: str, into: Path) -> None:
    """For that Python, whichever runs here."""
    options = ["--only-binary=:all:", "--no-deps", "--quiet", "--disable-pip-version-check", "--dest", str(into)]
    options += [part for platform in PLATFORMS for part in ("--platform", platform)]
    pins = [f"{name}=={metadata.version(name)}" for name in sorted(_wanted(version))]
    command = [sys.executable, "-m", "pip", "download", *options, "--python-version", version, *pins]
    subprocess.run(command, check=True)


def _wanted(version: str) -> set[str]:
    """The roots and all that they need, as they are installed here."""
    found: set[str] = set()
    left = list(ROOTS)
    while left:
        name = str(canonicalize_name(left.pop()))
        if name in found or name in THERE:
            continue
        found.add(name)
        needs = [Requirement(text) for text in metadata.requires(name) or ()]
        target = {"python_version": version, "python_full_version": f"{version}.0", "extra": ""}
        left += [need.name for need in needs if need.marker is None or need.marker.evaluate(target)]
    return found


if __name__ == "__main__":
    main()
