"""Which programs the box runs: those of a pinned version, or a folder with the programs of a release."""

import re
from pathlib import Path

from hack.cluster import processes, programs
from hack.cluster.layout import STATE
from hack.cluster.programs import Say
from hack.cluster.shell import BoxError, run

_BIN = STATE / "bin"
"""A link to each program; it says what a box that is up consists of."""

_BESIDE = ("etcd", "containerd")
_PROGRAMS = tuple(
    program
    for family in (programs.kubernetes(programs.KUBERNETES), *(programs.named(name) for name in _BESIDE))
    for program in family.commands
)
_MINOR = re.compile(r"\d+\.\d+")


def choose(kubernetes: str | None, say: Say) -> None:
    """Have the programs ready; build what has to be built.

    Args:
        kubernetes: A minor version that is pinned (1.33), or a folder with all programs of a release, etcd and
            containerd too. None is what the box runs already, else the version that everything is proven on.
        say: Told what is being built.

    Raises:
        BoxError: The box runs other programs, or these are not to be had.
    """
    if kubernetes is None and _complete():
        return
    links = _links(kubernetes or programs.KUBERNETES, say)
    others = _complete() and any((_BIN / name).resolve() != target.resolve() for name, target in links.items())
    if others and processes.names():
        raise BoxError(f"the box runs {version()} of Kubernetes already; stop it first: make cluster-down")
    _BIN.mkdir(parents=True, exist_ok=True)
    for name, target in links.items():
        (_BIN / name).unlink(missing_ok=True)
        (_BIN / name).symlink_to(target)


def program(name: str) -> Path:
    """Where a program of the box is."""
    return _BIN / name


def version() -> str:
    """The version of Kubernetes: v1.37.2."""
    return run([program("kube-apiserver"), "--version"]).split()[-1]


def _complete() -> bool:
    return all((_BIN / name).exists() for name in _PROGRAMS)


def _links(kubernetes: str, say: Say) -> dict[str, Path]:
    if not _MINOR.fullmatch(kubernetes):
        return _release(Path(kubernetes).resolve())
    families = [programs.kubernetes(kubernetes), *(programs.named(name) for name in _BESIDE)]
    programs.need([family.name for family in families], say)
    return {name: programs.folder(family.name) / name for family in families for name in family.commands}


def _release(folder: Path) -> dict[str, Path]:
    missing = [name for name in _PROGRAMS if not (folder / name).is_file()]
    if missing:
        raise BoxError(
            f"{folder} lacks {', '.join(missing)}: put the programs of a Kubernetes release, of etcd 3.6 or newer and "
            "of containerd 2 into it, or give a minor version such as 1.33"
        )
    return {name: folder / name for name in _PROGRAMS}
