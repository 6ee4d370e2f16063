"""Fetches what the parts need besides torch and numpy, for another Python, and unpacks it into a folder.

`make gpu` reads the folder, so that nothing has to be installed where the GPU is, and no network is needed there. The
versions are those of constraints.txt.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
WANTED = (
    *("annotated-types", "blake3", "pillow", "pydantic", "pydantic-core", "safetensors", "typing-inspection"),
    *("certifi", "filelock", "fsspec", "hf-xet", "httpcore", "httpx", "huggingface-hub", "idna", "anyio", "h11"),
    *("packaging", "pyyaml", "regex", "tokenizers", "tqdm", "transformers", "typing-extensions"),
    *("click", "markdown-it-py", "mdurl", "prometheus-client", "pygments", "rich"),
)
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
    pins = dict(
        line.strip().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    versions = {str(canonicalize_name(name)): pin for name, pin in pins.items()}
    wanted = [f"{name}=={versions[name]}" for name in WANTED if name in versions]
    options = ["--only-binary=:all:", "--no-deps", "--quiet", "--disable-pip-version-check", "--dest", str(into)]
    options += [part for platform in PLATFORMS for part in ("--platform", platform)]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--python-version", version, *wanted], check=True
    )


if __name__ == "__main__":
    main()
