"""What a node costs, from its annotation, its label or the operator's table; and what a pod has of it."""

from fractions import Fraction
from typing import Any

import pytest

from piton.api.spec import Tier
from piton.kube.prices import Prices, share
from piton.rendering.affinity import INSTANCE_TYPE, ZONE, TooDear

TABLE = Prices.from_json('{"p4d.24xlarge": {"Spot": "12.50", "OnDemand": "32.77"}, "g5.xlarge": {"Spot": "0.45"}}')
SPOT, ON_DEMAND = {"karpenter.sh/capacity-type": "spot"}, {"eks.amazonaws.com/capacityType": "ON_DEMAND"}


def a_node(
    kind: str = "", *, annotation: str | None = None, cpu: str = "8", gpus: str | None = None, **labels: str
) -> dict[str, Any]:
    annotations = {} if annotation is None else {"piton.dev/price-per-hour": annotation}
    allocatable = {"cpu": cpu} | ({} if gpus is None else {"nvidia.com/gpu": gpus})
    return {
        "metadata": {"name": "n1", "labels": {INSTANCE_TYPE: kind, **labels}, "annotations": annotations},
        "status": {"allocatable": allocatable},
    }


@pytest.mark.parametrize(
    ("node", "price"),
    [
        (a_node("p4d.24xlarge", **SPOT), "12.50"),
        (a_node("p4d.24xlarge", **ON_DEMAND), "32.77"),
        (a_node("p4d.24xlarge"), "32.77"),
        (a_node("g5.xlarge", **ON_DEMAND), None),
        (a_node("m5.large", **SPOT), None),
        (a_node("p4d.24xlarge", annotation="11.2", **SPOT), "11.2"),
        (a_node("p4d.24xlarge", **SPOT, **{"piton.dev/price-per-hour": "11.1"}), "11.1"),
        (a_node(annotation="9", **{"piton.dev/price-per-hour": "11.1"}), "9"),
        (a_node("p4d.24xlarge", annotation="cheap", **SPOT), "12.50"),
        (a_node(annotation="-1"), None),
        (a_node(annotation="0"), "0"),
    ],
)
def test_a_node_costs_what_it_says_itself_else_what_the_table_says(node: dict[str, Any], price: str | None) -> None:
    assert TABLE.of(node) == (None if price is None else Fraction(price))


def _pod(**resources: dict[str, str]) -> dict[str, Any]:
    return {"spec": {"containers": [{"resources": resources}]}}


@pytest.mark.parametrize(
    ("pod", "node", "part"),
    [
        (_pod(limits={"nvidia.com/gpu": "1"}, requests={"cpu": "8"}), a_node(gpus="8"), "1/8"),
        (_pod(limits={"nvidia.com/gpu": "8"}), a_node(gpus="8"), "1"),
        (_pod(limits={"nvidia.com/gpu": "1"}), a_node(), "1"),
        (_pod(requests={"cpu": "2"}), a_node(cpu="8"), "1/4"),
        (_pod(requests={"cpu": "500m"}), a_node(cpu="7910m"), "50/791"),
        (_pod(limits={"cpu": "2"}), a_node(cpu="8"), "1/4"),
        (_pod(requests={"cpu": "2000e-3"}), a_node(cpu="8e0"), "1/4"),
        (_pod(requests={"cpu": "90"}), a_node(cpu="8"), "1"),
        (_pod(), a_node(), "1"),
    ],
)
def test_a_pod_has_its_share_of_the_gpus_or_of_the_cpu(pod: dict[str, Any], node: dict[str, Any], part: str) -> None:
    assert share(pod, node) == Fraction(part)


ZONE_A, ZONE_B = {ZONE: "us-east-1a"}, {ZONE: "us-east-1b"}


def test_a_type_of_the_table_is_too_dear_in_the_tier_in_which_it_costs_more() -> None:
    p4d = {"instance_type": "p4d.24xlarge"}

    assert TABLE.above(Fraction("32.77")) == frozenset()
    assert TABLE.above(Fraction(15)) == {TooDear(**p4d, tier=Tier.ON_DEMAND), TooDear(**p4d, tier=None)}
    assert TooDear(**p4d, tier=Tier.SPOT) in TABLE.above(Fraction(12))
    assert TooDear(instance_type="g5.xlarge", tier=Tier.ON_DEMAND) not in TABLE.above(Fraction("0.10"))


def test_where_every_known_node_of_a_type_tier_and_zone_is_too_dear_the_type_is_left_out_there() -> None:
    nodes = [
        a_node("g5.xlarge", annotation="15", **SPOT, **ZONE_A),
        a_node("g5.xlarge", annotation="16", **SPOT, **ZONE_A),
        a_node("g5.xlarge", annotation="15", **SPOT, **ZONE_B),
        a_node("g5.xlarge", annotation="14.99", **SPOT, **ZONE_B),
        a_node("m5.large", annotation="15", **ZONE_A),
        a_node("g4dn.xlarge", annotation="99"),
    ]

    assert Prices().above(Fraction("14.99"), nodes) == {
        TooDear(instance_type="g5.xlarge", tier=Tier.SPOT, zone="us-east-1a"),
        TooDear(instance_type="m5.large", tier=None, zone="us-east-1a"),
    }
