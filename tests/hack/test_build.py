"""What the builder tells Go."""

from hack.cluster.build import linker_flags, openapi_packages
from hack.cluster.controlplane import fits


def test_staged_packages_are_seen_through_vendor() -> None:
    found = openapi_packages(["staging/src/k8s.io/api/core/v1/doc.go", "pkg/apis/abac/v0/doc.go"])

    assert found == ["k8s.io/kubernetes/pkg/apis/abac/v0", "k8s.io/kubernetes/vendor/k8s.io/api/core/v1"]


def test_a_package_is_named_once() -> None:
    assert len(openapi_packages(["pkg/a/doc.go", "pkg/a/types.go"])) == 1


def test_samples_and_generators_define_nothing() -> None:
    samples = ["staging/src/k8s.io/sample-apiserver/pkg/x.go", "staging/src/k8s.io/code-generator/cmd/x.go"]

    assert openapi_packages(samples) == []


def test_the_version_is_set_where_each_program_looks_for_it() -> None:
    flags = linker_flags("1.20.2")

    for package in ("component-base/version", "client-go/pkg/version"):
        assert f"-X k8s.io/kubernetes/vendor/k8s.io/{package}.gitVersion=v1.20.2" in flags
        assert f"-X k8s.io/kubernetes/vendor/k8s.io/{package}.gitMinor=20" in flags


def test_any_etcd_fits_and_only_an_api_server_of_our_minor_version() -> None:
    assert fits("etcd", "etcd Version: 3.5.1")
    assert fits("kube-apiserver", "Kubernetes v1.20.15\n")
    assert not fits("kube-apiserver", "Kubernetes v1.31.0\n")
    assert not fits("kube-apiserver", "Kubernetes v1.2.0\n")
