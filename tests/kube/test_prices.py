"""What a node costs, from its annotation, its label or the operator's table; and what a pod has of it."""

from fractions import Fraction
from typing import Any

import pytest

from piton.core.model import Tier
from piton.core.pytorchjob import INSTANCE_TYPE
from piton.kube.prices import HOSTNAME, Prices, share

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
        (_pod(requests={"cpu": "90"}), a_node(cpu="8"), "1"),
        (_pod(), a_node(), "1"),
    ],
)
def test_a_pod_has_its_share_of_the_gpus_or_of_the_cpu(pod: dict[str, Any], node: dict[str, Any], part: str) -> None:
    assert share(pod, node) == Fraction(part)


def test_what_costs_more_than_is_paid_is_named_by_its_labels() -> None:
    nodes = [a_node(annotation="15", **{HOSTNAME: "dear"}), a_node(annotation="14.99", **{HOSTNAME: "cheap"})]
    most = Fraction("14.99")

    assert TABLE.above(most, nodes, ()) == {HOSTNAME: ("dear",), INSTANCE_TYPE: ()}
    assert TABLE.above(most, nodes, [Tier.ON_DEMAND])[INSTANCE_TYPE] == ("p4d.24xlarge",)
    assert TABLE.above(Fraction("0.10"), [], [Tier.SPOT])[INSTANCE_TYPE] == ("g5.xlarge", "p4d.24xlarge")
