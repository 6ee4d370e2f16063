"""Files out of a Debian package that is not installed: apt downloads and checks it, dpkg unpacks it.

For data that Debian has under a free licence and that would bring a server along if it were installed.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from piton_trainer.data.cache_folder import cache_folder
from piton_trainer.errors import BadConfig


def data_folder(package: str) -> Path:
    """Return the folder for the files of a package."""
    return cache_folder() / package


def fetch(package: str, paths: Sequence[str]) -> Path:
    """Return the folder with these files of the package, by the last part of their names.

    Raises:
        BadConfig: there is no apt here, or it does not have the package.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise BadConfig(
            f"{package} comes from Debian, and there is no apt-get here; "
            "on a Debian or Ubuntu say apt-get download, dpkg -x, and name the folder with the files"
        )
    with tempfile.TemporaryDirectory() as scratch:
        _download(package, scratch)
        [archive] = Path(scratch).glob("*.deb")
        _run(["dpkg", "-x", str(archive), scratch], scratch)
        return _put([Path(scratch, path) for path in paths], data_folder(package))


def _download(package: str, scratch: str) -> None:
    try:
        _run(["apt-get", "download", package], scratch)
    except BadConfig:
        _run(["apt-get", "update"], scratch)  # a fresh machine knows no packages
        _run(["apt-get", "download", package], scratch)


def _put(paths: Sequence[Path], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        aside = folder / f".{path.name}"
        shutil.copyfile(path, aside)
        aside.replace(folder / path.name)
    return folder


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stderr or done.stdout).strip().splitlines()
        raise BadConfig(f"{' '.join(command)} failed: {output[-1] if output else f'exit code {done.returncode}'}")
