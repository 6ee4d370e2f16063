"""Builds Kubernetes from Debian's source package: Debian ships no control plane, only its source.

Some minutes on two cores, so the programs are kept in the cache, keyed by version. Five things are not as one would
expect; each is told where it is done:

1. the sources only build the old way, in a GOPATH;
2. the OpenAPI definitions are not in the sources: they are generated first;
3. the vendored reflect2 crashes on Go 1.18 and later;
4. the version is set by the linker;
5. a kubelet waits five seconds for a Docker that is not there.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hack.cluster import packages
from hack.cluster.layout import CACHE, DEBIAN_SOURCE, KUBERNETES
from hack.cluster.shell import run

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
HOME = CACHE / f"kubernetes-{KUBERNETES}"
PAUSE = "pause"

_GO = Path("/usr/lib/go-1.19/bin/go")
_REFLECT2 = Path("/usr/share/gocode/src/github.com/modern-go/reflect2")
_TREE = Path("src/k8s.io/kubernetes")
_OPENAPI = "k8s.io/kubernetes/pkg/generated/openapi"
_OPENAPI_MARK = "+k8s:openapi-gen="
_DOCKER_RETRIES = "rootDirRetries = 5"
_NOT_OURS = ("sample-apiserver", "sample-controller", "sample-cli-plugin", "code-generator", "/test/", "/testdata/")
_WITHOUT = ("-tags", "providerless,dockerless")  # less to build: there is neither in the box
_NICE = ("nice", "-n", "10")  # the machine has other work

Say = Callable[[str], None]


def built() -> bool:
    """Whether the cache has all programs."""
    return all((HOME / name).exists() for name in (*PROGRAMS, PAUSE))


def build(say: Say) -> Path:
    """Return the folder with the programs, after building them where they are not there yet."""
    with _only_one():
        if not built():
            packages.install(packages.BUILD)
            _build(CACHE / f"kubernetes-{KUBERNETES}.building", say)
    return HOME


@contextmanager
def _only_one() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(work: Path, say: Say) -> None:
    shutil.rmtree(work, ignore_errors=True)  # what a build that was cut short left
    tree = work / _TREE
    say(f"downloading the source of Kubernetes {KUBERNETES}")
    tarball = packages.download_source("kubernetes", DEBIAN_SOURCE, work / "download")
    tree.mkdir(parents=True)
    run(["tar", "-xf", tarball, "-C", tree, "--strip-components=1"])
    _replace_reflect2(tree)
    _skip_docker(tree)
    env = _environment(work)
    say("generating the OpenAPI definitions")
    _generate_openapi(work, tree, env)
    say(f"building {', '.join(PROGRAMS)}: some minutes on two cores")
    out = work / "bin"
    out.mkdir()
    targets = [f"k8s.io/kubernetes/cmd/{name}" for name in PROGRAMS]
    run(
        [*_NICE, _GO, "build", "-o", f"{out}/", f"-ldflags={linker_flags(KUBERNETES)}", *_WITHOUT, *targets],
        cwd=tree,
        env=env,
    )
    run(["gcc", "-Os", "-static", "-o", out / PAUSE, tree / "build" / "pause" / "linux" / "pause.c"])
    shutil.rmtree(HOME, ignore_errors=True)
    out.rename(HOME)  # only a finished build is ever seen
    shutil.rmtree(work)


def _environment(work: Path) -> dict[str, str]:
    """Module mode fails with "updates to go.mod needed", so the tree lies in a GOPATH and modules are off."""
    return {
        **os.environ,
        "GOPATH": str(work),
        "GOCACHE": str(work / "go-cache"),
        "GO111MODULE": "off",
        "CGO_ENABLED": "0",
        "PATH": f"{_GO.parent}:{os.environ['PATH']}",
    }


def _replace_reflect2(tree: Path) -> None:
    """The vendored one crashes the API server, some requests in: it reads maps as Go 1.17 laid them out."""
    vendored = tree / "vendor" / "github.com" / "modern-go" / "reflect2"
    shutil.rmtree(vendored)
    shutil.copytree(_REFLECT2, vendored)


def _skip_docker(tree: Path) -> None:
    """Its cAdvisor asks Docker for its folder, again and again, before anything else."""
    source = tree / "vendor" / "github.com" / "google" / "cadvisor" / "container" / "docker" / "factory.go"
    source.write_text(source.read_text().replace(_DOCKER_RETRIES, _DOCKER_RETRIES.replace("5", "0")))


def _generate_openapi(work: Path, tree: Path, env: Mapping[str, str]) -> None:
    """The package `pkg/generated/openapi` is made at build time; upstream's makefiles need more than this."""
    generator = work / "openapi-gen"
    run([*_NICE, _GO, "build", "-o", generator, "k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen"],
        cwd=tree, env=env)  # fmt: skip
    inputs = openapi_packages(_marked_files(tree))
    run(
        [
            *_NICE, generator, "-i", ",".join(inputs), "-O", "zz_generated.openapi", "-p", _OPENAPI,
            "-h", tree / "hack" / "boilerplate" / "boilerplate.generatego.txt", "-r", work / "openapi.violations",
        ],
        cwd=tree,
        env=env,
    )  # fmt: skip


def _marked_files(tree: Path) -> Iterator[str]:
    for top in ("pkg", "staging/src/k8s.io"):
        for path in (tree / top).rglob("*.go"):
            if _OPENAPI_MARK in path.read_text():
                yield path.relative_to(tree).as_posix()


def openapi_packages(files: Iterable[str]) -> list[str]:
    """The import paths of the packages of `files`: what lies under staging is seen through vendor."""
    folders = {str(Path(file).parent) for file in files if not any(part in f"/{file}" for part in _NOT_OURS)}
    return sorted("k8s.io/kubernetes/" + folder.replace("staging/src/", "vendor/", 1) for folder in folders)


def linker_flags(version: str) -> str:
    """Without these, clients see v0.0.0. The API server answers with that of client-go."""
    major, minor, _ = version.split(".")
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    flags = ["-s", "-w"]
    for package in ("component-base/version", "client-go/pkg/version"):
        flags += [f"-X k8s.io/kubernetes/vendor/k8s.io/{package}.{name}={value}" for name, value in values.items()]
    return " ".join(flags)
