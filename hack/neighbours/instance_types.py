"""The machines that Karpenter's kwok provider can launch: EC2's, with their sizes and prices of us-east-1. Pure.

Prices on demand are those that Karpenter's provider for AWS, 1.15.1, was made with on 2026-07-20
(`pkg/providers/pricing` of its module). A spot machine costs 40 % of that here, so that which of two offers is
cheaper never depends on the day. Spot is a little cheaper in the first zone, so that Karpenter, which takes the
cheapest, goes there unless something keeps it away.

The provider reads its list once, when Karpenter starts. What has no capacity is left out of the list.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hack.cluster.layout import ZONES
from hack.cluster.nodeconfig import GPU

EFA = "vpc.amazonaws.com/efa"
SPOT = "spot"
ON_DEMAND = "on-demand"
_TIERS = (SPOT, ON_DEMAND)
_SPOT_PART = dict(zip(ZONES, (0.40, 0.42), strict=True))
_AWS = "karpenter.k8s.aws"


@dataclass(frozen=True, kw_only=True)
class InstanceType:
    """One type of machine."""

    name: str
    vcpus: int
    memory_gib: int
    dollars: float
    """Per hour, on demand."""
    gpus: int = 0
    gpu_name: str | None = None
    efas: int = 0
    """Network interfaces with EFA."""
    architecture: str = "amd64"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One way to get a machine of a type."""

    instance_type: str
    zone: str
    tier: str
    """`spot` or `on-demand`, as Karpenter calls it."""
    dollars: float
    """Per hour."""


TYPES = (
    # The two that are cheaper than all others of their size, and whose images are others than Piton's.
    InstanceType(name="t4g.xlarge", vcpus=4, memory_gib=16, dollars=0.1344, architecture="arm64"),
    InstanceType(name="g5g.xlarge", vcpus=4, memory_gib=8, dollars=0.42, gpus=1, gpu_name="t4g", architecture="arm64"),
    InstanceType(name="m5.xlarge", vcpus=4, memory_gib=16, dollars=0.192),
    InstanceType(name="g4dn.xlarge", vcpus=4, memory_gib=16, dollars=0.526, gpus=1, gpu_name="t4"),
    InstanceType(name="g5.xlarge", vcpus=4, memory_gib=16, dollars=1.006, gpus=1, gpu_name="a10g"),
    InstanceType(name="g6e.xlarge", vcpus=4, memory_gib=32, dollars=1.861, gpus=1, gpu_name="l40s"),
    InstanceType(name="p3.2xlarge", vcpus=8, memory_gib=61, dollars=3.06, gpus=1, gpu_name="v100"),
    InstanceType(name="g4dn.12xlarge", vcpus=48, memory_gib=192, dollars=3.912, gpus=4, gpu_name="t4", efas=1),
    InstanceType(name="g5.12xlarge", vcpus=48, memory_gib=192, dollars=5.672, gpus=4, gpu_name="a10g", efas=1),
    InstanceType(name="g5.48xlarge", vcpus=192, memory_gib=768, dollars=16.288, gpus=8, gpu_name="a10g", efas=1),
    InstanceType(name="p4d.24xlarge", vcpus=96, memory_gib=1152, dollars=21.9576, gpus=8, gpu_name="a100", efas=4),
    InstanceType(name="p4de.24xlarge", vcpus=96, memory_gib=1152, dollars=27.4471, gpus=8, gpu_name="a100", efas=4),
    InstanceType(name="g6e.48xlarge", vcpus=192, memory_gib=1536, dollars=30.1312, gpus=8, gpu_name="l40s", efas=4),
    InstanceType(name="p5.48xlarge", vcpus=192, memory_gib=2048, dollars=55.04, gpus=8, gpu_name="h100", efas=32),
)


def offers(kind: InstanceType) -> Iterator[Offer]:
    """Every way to get one: each zone, spot and on demand."""
    for zone in ZONES:
        for tier in _TIERS:
            dollars = kind.dollars * (_SPOT_PART[zone] if tier == SPOT else 1.0)
            yield Offer(instance_type=kind.name, zone=zone, tier=tier, dollars=round(dollars, 4))


def document(
    available: Callable[[Offer], bool] = lambda _: True, types: Sequence[InstanceType] = TYPES
) -> list[dict[str, Any]]:
    """What the provider reads. Only what is available is in it; a type that nothing is left of is not."""
    found = ((kind, [offer for offer in offers(kind) if available(offer)]) for kind in types)
    return [_described(kind, left) for kind, left in found if left]


def _described(kind: InstanceType, left: Sequence[Offer]) -> dict[str, Any]:
    devices = {GPU: kind.gpus, EFA: kind.efas}
    return {
        "name": kind.name,
        "architecture": kind.architecture,
        "operatingSystems": ["linux"],
        "resources": {
            "cpu": str(kind.vcpus),
            "memory": f"{kind.memory_gib}Gi",
            "ephemeral-storage": "200Gi",
            **{name: str(count) for name, count in devices.items() if count},
        },
        "offerings": [_offering(kind, offer) for offer in left],
    }


def _offering(kind: InstanceType, offer: Offer) -> dict[str, Any]:
    labels = {
        "karpenter.sh/capacity-type": offer.tier,
        "topology.kubernetes.io/zone": offer.zone,
        "topology.kubernetes.io/region": offer.zone[:-1],
        **_labels(kind),
    }
    wanted = [{"key": key, "operator": "In", "values": [value]} for key, value in labels.items()]
    return {"Price": offer.dollars, "Available": True, "Requirements": wanted}


def _labels(kind: InstanceType) -> Mapping[str, str]:
    """Those of Karpenter's provider for AWS that NodePools for GPUs name."""
    family = kind.name.partition(".")[0]
    labels = {f"{_AWS}/instance-category": family[0], f"{_AWS}/instance-family": family}
    if kind.gpus:
        labels |= {f"{_AWS}/instance-gpu-count": str(kind.gpus), f"{_AWS}/instance-gpu-name": str(kind.gpu_name)}
    return labels
