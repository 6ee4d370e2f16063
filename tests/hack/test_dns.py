"""Which names there are."""

from typing import Any

from hack.cluster.dns import records


def a_service(name: str, *, address: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ml"}, "spec": {"clusterIP": address}}


def a_slice(service: str, *endpoints: dict[str, Any]) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": service}
    return {"metadata": {"name": f"{service}-x7", "namespace": "ml", "labels": labels}, "endpoints": list(endpoints)}


def ready(address: str, **more: str) -> dict[str, Any]:
    return {"addresses": [address], "conditions": {"ready": True}, **more}


def unready(address: str) -> dict[str, Any]:
    return {"addresses": [address], "conditions": {"ready": False}}


def test_a_service_has_its_own_address() -> None:
    found = records([a_service("web", address="10.96.0.9")], [a_slice("web", ready("10.78.1.2"))])

    assert set(found) == {("10.96.0.9", "web.ml.svc.cluster.local")}


def test_a_headless_service_has_those_of_its_ready_pods() -> None:
    found = records(
        [a_service("job-master-0", address="None")],
        [a_slice("job-master-0", ready("10.78.1.2"), ready("10.78.2.3"), unready("10.78.2.9"))],
    )

    name = "job-master-0.ml.svc.cluster.local"
    assert set(found) == {("10.78.1.2", name), ("10.78.2.3", name)}


def test_a_pod_with_a_hostname_has_a_name_of_its_own() -> None:
    found = records([a_service("job", address="None")], [a_slice("job", ready("10.78.1.2", hostname="w-0"))])

    assert ("10.78.1.2", "w-0.job.ml.svc.cluster.local") in set(found)


def test_endpoints_without_a_service_have_no_name() -> None:
    assert set(records([], [a_slice("gone", ready("10.78.1.2"))])) == set()


def test_a_service_without_pods_is_no_error() -> None:
    empty = {**a_slice("job"), "endpoints": None}

    assert set(records([a_service("job", address="None")], [empty])) == set()
