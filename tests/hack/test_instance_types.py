"""The machines that Karpenter is offered in tests."""

import pytest

from hack.cluster.layout import ZONES
from hack.neighbours.instance_types import ON_DEMAND, SPOT, TYPES, document, offers

GPU = "nvidia.com/gpu"


def offered(found: list[dict[str, object]]) -> set[tuple[str, str, str]]:
    """Type, zone and tier of all that is offered, as the provider reads it."""
    ways = set()
    for kind in found:
        for offering in kind["offerings"]:  # type: ignore[attr-defined]
            wanted = {need["key"]: need["values"] for need in offering["Requirements"]}
            (zone,), (tier,) = wanted["topology.kubernetes.io/zone"], wanted["karpenter.sh/capacity-type"]
            ways.add((str(kind["name"]), zone, tier))
    return ways


def test_every_type_is_offered_in_both_zones_and_in_both_tiers() -> None:
    assert offered(document()) == {(t.name, zone, tier) for t in TYPES for zone in ZONES for tier in (SPOT, ON_DEMAND)}


@pytest.mark.parametrize("gpus", [0, 1])
def test_of_each_size_a_type_of_another_architecture_is_the_cheapest(gpus: int) -> None:
    """Else nothing would show that no pod gets it."""
    cheapest = min((kind for kind in TYPES if kind.gpus == gpus), key=lambda kind: kind.dollars)

    assert cheapest.architecture == "arm64"


def test_what_is_not_available_is_not_in_the_list() -> None:
    left = document(lambda offer: offer.zone == ZONES[0] and offer.tier == SPOT and offer.instance_type != "m5.xlarge")

    assert offered(left) == {(kind.name, ZONES[0], SPOT) for kind in TYPES if kind.name != "m5.xlarge"}


def test_spot_costs_less_and_least_in_the_first_zone() -> None:
    for kind in TYPES:
        cheapest = min(offers(kind), key=lambda offer: offer.dollars)
        assert (cheapest.zone, cheapest.tier) == (ZONES[0], SPOT)


def test_devices_are_resources_and_what_a_machine_has_none_of_is_left_out() -> None:
    resources = {kind["name"]: kind["resources"] for kind in document()}

    assert resources["p5.48xlarge"] == {
        "cpu": "192",
        "memory": "2048Gi",
        "ephemeral-storage": "200Gi",
        GPU: "8",
        "vpc.amazonaws.com/efa": "32",
    }
    assert set(resources["m5.xlarge"]) == {"cpu", "memory", "ephemeral-storage"}
