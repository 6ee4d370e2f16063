"""Which nodes an attempt may run on; checked by matching nodes as the scheduler does."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piton.api.spec import Spec, Tier
from piton.contract.names import HOSTNAME
from piton.rendering.affinity import CAPACITY_LABELS, INSTANCE_TYPE, ZONE, TooDear, affinity
from support.builders import a_spec

TYPES, ZONES = ("g5.xlarge", "p4d.24xlarge", "p5.48xlarge"), ("a", "b")
KARPENTER_KNOWS = {"karpenter.sh/capacity-type"}
SPELLINGS = ("karpenter.sh/capacity-type", "eks.amazonaws.com/capacityType", "node.kubernetes.io/lifecycle")


def a_node(kind: str, tier: Tier | None, zone: str = "a", spelling: str = SPELLINGS[0]) -> dict[str, str]:
    bought = {} if tier is None else {spelling: CAPACITY_LABELS[tier][spelling]}
    return {INSTANCE_TYPE: kind, ZONE: zone, HOSTNAME: "n1", **bought}


def terms_of(spec: Spec, avoid: Collection[TooDear] = ()) -> list[dict[str, Any]]:
    found = affinity(spec, avoid)
    if "nodeAffinity" not in found:
        return []
    required = found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms: list[dict[str, Any]] = required["nodeSelectorTerms"]
    return terms


def fits(node: Mapping[str, str], spec: Spec, avoid: Collection[TooDear] = ()) -> bool:
    """Whether the scheduler would take the node: one term has to match, in all of its expressions."""
    terms = terms_of(spec, avoid)
    return not terms or any(all(_meets(node, e) for e in term["matchExpressions"]) for term in terms)


def _meets(node: Mapping[str, str], expression: Mapping[str, Any]) -> bool:
    match expression["operator"]:
        case "Exists":
            return expression["key"] in node
        case "DoesNotExist":
            return expression["key"] not in node
        case "In":
            return node.get(expression["key"]) in expression["values"]
        case _:
            return node.get(expression["key"]) not in expression["values"]


GKE, AKS = {"cloud.google.com/gke-nodepool": "p"}, {"kubernetes.azure.com/agentpool": "p"}


@pytest.mark.parametrize(
    ("labels", "tier"),
    [
        (GKE, "OnDemand"),
        (GKE | {"cloud.google.com/gke-spot": "true"}, "Spot"),
        (GKE | {"cloud.google.com/gke-preemptible": "true"}, "Spot"),
        (AKS, "OnDemand"),
        (AKS | {"kubernetes.azure.com/scalesetpriority": "spot"}, "Spot"),
        ({}, None),
    ],
)
def test_nodes_of_gke_and_aks_are_told_apart(labels: dict[str, str], tier: str | None) -> None:
    node = {INSTANCE_TYPE: "a2-highgpu-8g", ZONE: "a", **labels}
    for wanted in ("Spot", "OnDemand"):
        assert fits(node, a_spec(capacity={"tiers": [wanted]})) is (wanted == tier)


def test_a_type_that_is_too_dear_on_demand_is_still_taken_on_spot() -> None:
    dear = [TooDear(instance_type="p4d.24xlarge", tier=tier) for tier in (Tier.ON_DEMAND, None)]

    for spelling in SPELLINGS:
        assert fits(a_node("p4d.24xlarge", Tier.SPOT, spelling=spelling), a_spec(), dear)
        assert not fits(a_node("p4d.24xlarge", Tier.ON_DEMAND, spelling=spelling), a_spec(), dear)
        assert fits(a_node("g5.xlarge", Tier.ON_DEMAND, spelling=spelling), a_spec(), dear)
    assert not fits(a_node("p4d.24xlarge", None), a_spec(), dear), "it may be bought on demand"
    assert fits(a_node("g5.xlarge", None), a_spec(), dear)


def test_a_type_that_is_too_dear_in_the_only_tier_that_will_do_is_left_out_in_every_spelling() -> None:
    spec = a_spec(capacity={"tiers": ["Spot"]})
    dear = [TooDear(instance_type="p4d.24xlarge", tier=Tier.SPOT)]

    assert len(terms_of(spec, dear)) == len(CAPACITY_LABELS[Tier.SPOT])
    for spelling in SPELLINGS:
        assert not fits(a_node("p4d.24xlarge", Tier.SPOT, spelling=spelling), spec, dear)
        assert fits(a_node("g5.xlarge", Tier.SPOT, spelling=spelling), spec, dear)


def test_a_type_that_is_too_dear_in_one_zone_is_taken_in_the_others() -> None:
    spec = a_spec(capacity={"tiers": ["Spot"]})
    dear = [TooDear(instance_type="p4d.24xlarge", tier=Tier.SPOT, zone="a")]

    assert not fits(a_node("p4d.24xlarge", Tier.SPOT, "a"), spec, dear)
    assert fits(a_node("p4d.24xlarge", Tier.SPOT, "b"), spec, dear)
    assert fits(a_node("g5.xlarge", Tier.SPOT, "a"), spec, dear)


def test_prices_of_what_the_run_would_not_get_anyway_change_nothing() -> None:
    spec = a_spec(workers={"instanceTypes": ["g5.xlarge"], "zones": ["b"]})
    dear = [
        TooDear(instance_type="p4d.24xlarge", tier=Tier.ON_DEMAND),
        TooDear(instance_type="g5.xlarge", tier=Tier.SPOT, zone="a"),
    ]

    assert terms_of(spec, dear) == terms_of(spec)


_DEAR = st.builds(
    TooDear,
    instance_type=st.sampled_from(TYPES),
    tier=st.sampled_from([*Tier, None]),
    zone=st.sampled_from([*ZONES, None]),
)


@given(
    avoid=st.frozensets(_DEAR, max_size=8),
    tiers=st.sampled_from([(), ("Spot",), ("OnDemand",)]),
    types=st.sets(st.sampled_from(TYPES)),
    zones=st.sets(st.sampled_from(ZONES)),
)
def test_a_node_fits_exactly_if_it_is_wanted_and_not_too_dear(
    avoid: frozenset[TooDear], tiers: tuple[str, ...], types: set[str], zones: set[str]
) -> None:
    spec = a_spec(capacity={"tiers": tiers}, workers={"instanceTypes": sorted(types), "zones": sorted(zones)})
    for kind in TYPES:
        for tier in (*Tier, None):
            for zone in ZONES:
                wanted = (not types or kind in types) and (not zones or zone in zones) and (not tiers or tier in tiers)
                too_dear = any(d.instance_type == kind and d.tier is tier and d.zone in (None, zone) for d in avoid)
                assert fits(a_node(kind, tier, zone), spec, avoid) is (wanted and not too_dear)
    _names_no_label_that_karpenter_restricts(spec, avoid)


def _names_no_label_that_karpenter_restricts(spec: Spec, avoid: Collection[TooDear]) -> None:
    """As its `IsRestrictedLabel`: one such label in any term, and it launches nothing for the pod."""
    for term in terms_of(spec, avoid):
        assert term["matchExpressions"], "a term without expressions matches no node"
        assert "matchFields" not in term
        for key in {e["key"] for e in term["matchExpressions"]} - KARPENTER_KNOWS:
            domain = key.partition("/")[0]
            assert key != HOSTNAME
            assert domain != "karpenter.sh"
            assert not domain.endswith(".karpenter.sh")


@pytest.mark.parametrize("tiers", [(), ("Spot",)])
def test_karpenter_is_asked_for_its_own_spelling_first(tiers: tuple[str, ...]) -> None:
    """It tries the first term, and the next only where it can launch nothing for that."""
    dear = [TooDear(instance_type="p4d.24xlarge", tier=Tier.ON_DEMAND)]
    first = terms_of(a_spec(capacity={"tiers": tiers}), dear)[0]["matchExpressions"]

    assert {"key": SPELLINGS[0], "operator": "In", "values": ["spot"]} in first


def test_zones_are_avoided_as_long_as_there_are_others() -> None:
    preference = {"matchExpressions": [{"key": ZONE, "operator": "NotIn", "values": ["a", "b"]}]}
    elsewhere = [{"weight": 100, "preference": preference}]

    found = affinity(a_spec(workers={"zones": ["a", "b", "c"]}), avoid_zones={"b", "a"})["nodeAffinity"]

    assert found["preferredDuringSchedulingIgnoredDuringExecution"] == elsewhere
    (term,) = found["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": ZONE, "operator": "In", "values": ["a", "b", "c"]}]
    assert affinity(a_spec(), avoid_zones={"a"}).keys() == {"nodeAffinity"}
    assert affinity(a_spec()) == {}
