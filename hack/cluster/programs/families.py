"""Which programs there are, and which Go module each of them comes from. Versions stand in each `go.mod`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hack.cluster.shell import BoxError

KUBERNETES = "1.37"
"""The minor version of Kubernetes that everything is proven on."""

_HERE = Path(__file__).parent
_MAJOR = re.compile(r"v[0-9]+")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Programs that are built from one Go module."""

    name: str
    """Its folder beside this file."""
    module: str
    """The Go module's path."""
    commands: Mapping[str, str]
    """Programs, and their packages below the module; "" is the module itself."""
    manifests: Mapping[str, str] = field(default_factory=dict)
    """Folders of manifests to keep beside the programs, and where the module has them."""
    minutes: int
    """To build it on 2 cores with nothing cached."""

    @property
    def folder(self) -> Path:
        """The folder of its go.mod and go.sum."""
        return _HERE / self.name

    @property
    def version(self) -> str:
        """The module's version in go.mod, with its v."""
        required = re.search(rf"^\s*(?:require )?{re.escape(self.module)} (v\S+)", self.go_mod, re.MULTILINE)
        if not required:
            raise BoxError(f"{self.folder / 'go.mod'} does not require {self.module}")
        return required[1]

    @property
    def go_mod(self) -> str:
        """The text of go.mod."""
        return (self.folder / "go.mod").read_text()

    @property
    def go_sum(self) -> str:
        """The text of go.sum."""
        return (self.folder / "go.sum").read_text()

    def package(self, program: str) -> str:
        """The import path of a program."""
        return "/".join(filter(None, (self.module, self.commands[program])))

    def built_as(self, program: str) -> str:
        """The file name that `go build` gives the program: the last element of its path that is no major version."""
        elements = self.package(program).split("/")
        return elements[-2] if _MAJOR.fullmatch(elements[-1]) else elements[-1]


def kubernetes(minor: str) -> Family:
    """The parts of Kubernetes that a cluster of this minor version runs.

    Raises:
        BoxError: No such version is pinned here.
    """
    found = {family.name: family for family in FAMILIES}.get(f"kubernetes-{minor}")
    if found is None:
        raise BoxError(
            f"Kubernetes {minor!r} is not pinned here; there are {', '.join(KUBERNETES_MINORS)}. Give one of these, or "
            "a folder with the programs of a release"
        )
    return found


def named(name: str) -> Family:
    """The family of that name.

    Raises:
        BoxError: There is none.
    """
    found = next((family for family in FAMILIES if family.name == name), None)
    if found is None:
        raise BoxError(f"there are no programs called {name!r}; there are {', '.join(f.name for f in FAMILIES)}")
    return found


def _kubernetes(minor: str) -> Family:
    names = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
    return Family(
        name=f"kubernetes-{minor}",
        module="k8s.io/kubernetes",
        commands={name: f"cmd/{name}" for name in names},
        minutes=10,
    )


KUBERNETES_MINORS = ("1.30", "1.33", "1.34", "1.35", "1.36", "1.37")
FAMILIES = (
    *(_kubernetes(minor) for minor in KUBERNETES_MINORS),
    Family(name="etcd", module="go.etcd.io/etcd/server/v3", commands={"etcd": ""}, minutes=2),
    Family(
        name="containerd",
        module="github.com/containerd/containerd/v2",
        commands={name: f"cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")},
        minutes=3,
    ),
    Family(
        name="training-operator",
        module="github.com/kubeflow/training-operator",
        commands={"training-operator": "cmd/training-operator.v1"},
        manifests={"crds": "manifests/base/crds", "webhook": "manifests/base/webhook"},
        minutes=4,
    ),
    Family(
        name="karpenter",
        module="sigs.k8s.io/karpenter",
        commands={"karpenter": "kwok"},
        manifests={"crds": "pkg/apis/crds", "kwok-crds": "kwok/apis/crds"},
        minutes=3,
    ),
    Family(
        name="kwok",
        module="sigs.k8s.io/kwok",
        commands={"kwok": "cmd/kwok"},
        manifests={"stages": "kustomize/stage"},
        minutes=2,
    ),
    Family(
        name="kueue",
        module="sigs.k8s.io/kueue",
        commands={"kueue": "cmd/kueue"},
        manifests={"crds": "config/components/crd/bases", "webhook": "config/components/webhook"},
        minutes=4,
    ),
)
