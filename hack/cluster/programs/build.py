"""Builds families of programs with Go, once, into the cache.

Nothing of the machine's own Go is used but the `go` command, which fetches the toolchain that is pinned here. What a
build downloads and compiles on its way takes 10 GB with everything asked for, and is deleted when it is done.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hack.cluster.layout import CACHE
from hack.cluster.programs.families import Family, named
from hack.cluster.shell import BoxError, run

TOOLCHAIN = "go1.26.11"
"""Builds everything; any Go from 1.21 on fetches it as a module."""

Say = Callable[[str], None]

_HOME = CACHE / "programs"
_GO = CACHE / "go"
_KEPT = 2
"""Builds of one family that stay in the cache: another checkout may need the one before."""
_NICE = ("nice", "-n", "5")  # people work beside it; tests that run beside it come after it


def folder(name: str) -> Path:
    """Where the programs of the family are, or will be."""
    family = named(name)
    return _HOME / f"{family.name}-{family.version}-{_key(family)}"


def need(names: Sequence[str], say: Say) -> None:
    """Build those of these families that are not in the cache.

    Raises:
        BoxError: One is not known, there is no Go, or a build fails.
    """
    for name in names:
        named(name)  # before minutes are spent
    if all(folder(name).is_dir() for name in names):
        return
    _require_go()
    with _only_one():
        for name in names:
            if not folder(name).is_dir():
                _build(named(name), folder(name), say)
        shutil.rmtree(_GO, ignore_errors=True)


def go(*words: str | Path, cwd: Path | None = None) -> str:
    """Run the pinned Go; return what it printed."""
    return run([*_NICE, "go", *words], cwd=cwd, env=_environment(os.environ))


def _environment(machine: Mapping[str, str]) -> dict[str, str]:
    """What a build gets of the machine's environment, and what it does not."""
    own = {
        "GOTOOLCHAIN": TOOLCHAIN,
        "GOCACHE": str(_GO / "build"),
        "GOMODCACHE": str(_GO / "modules"),
        "GOFLAGS": "-modcacherw -buildvcs=false",  # a cache that can be deleted
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }
    return {**machine, **own}


def _require_go() -> None:
    if not shutil.which("go"):
        raise BoxError(
            "programs have to be built, and there is no Go: install Go 1.21 or newer (go.dev/doc/install), or give "
            "a folder with the programs of a Kubernetes release: make cluster-up KUBERNETES=DIR"
        )


def _build(family: Family, into: Path, say: Say) -> None:
    programs = ", ".join(family.commands)
    say(f"building {family.name} {family.version}: {programs}; about {family.minutes} min on 2 cores, once")
    started = time.monotonic()
    aside = into.with_name(f"{into.name}.building")
    shutil.rmtree(aside, ignore_errors=True)  # what a build that was cut short left
    aside.mkdir(parents=True)
    packages = [family.package(program) for program in family.commands]
    go("build", "-trimpath", f"-ldflags={_linker_flags(family)}", "-o", f"{aside}/", *packages, cwd=family.folder)
    for program in family.commands:
        (aside / family.built_as(program)).rename(aside / program)
    _keep_manifests(family, aside)
    aside.rename(into)  # only a finished build is ever seen
    _forget_old(family)
    say(f"built {family.name} in {time.monotonic() - started:.0f} s")


def _linker_flags(family: Family) -> str:
    """Without a version, clients of Kubernetes see v0.0.0."""
    flags = ["-s", "-w"]
    if family.module == "k8s.io/kubernetes":
        major, minor, _ = family.version.removeprefix("v").split(".")
        values = {"gitVersion": family.version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        for package in ("component-base/version", "client-go/pkg/version"):
            flags += [f"-X k8s.io/{package}.{name}={value}" for name, value in values.items()]
    return " ".join(flags)


def _keep_manifests(family: Family, into: Path) -> None:
    if not family.manifests:
        return
    module = Path(json.loads(go("list", "-m", "-json", family.module, cwd=family.folder))["Dir"])
    for kept, source in family.manifests.items():
        shutil.copytree(module / source, into / kept)


def _forget_old(family: Family) -> None:
    builds = [path for path in _HOME.glob(f"{family.name}-v*") if not path.name.endswith(".building")]
    for path in sorted(builds, key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(path)


def _key(family: Family) -> str:
    parts = (family.go_mod, family.go_sum, repr(family), TOOLCHAIN, _linker_flags(family))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@contextmanager
def _only_one() -> Iterator[None]:
    _HOME.mkdir(parents=True, exist_ok=True)
    with (_HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
