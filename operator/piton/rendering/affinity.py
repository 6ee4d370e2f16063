"""Node affinity of an attempt's pods, by instance types, zones and capacity types alone.

Karpenter launches nothing for a pod whose affinity names a label that it restricts: `kubernetes.io/hostname` and most
of `karpenter.sh/`. So no single node can be avoided by its name, only its type, where and in the way it is bought.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from piton.api.pod_template import Placement, Policy
from piton.api.spec import Spec, Tier
from piton.contract import names

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
ZONE = "topology.kubernetes.io/zone"

_GKE_SPOT, _GKE_PREEMPTIBLE = "cloud.google.com/gke-spot", "cloud.google.com/gke-preemptible"
_AKS_PRIORITY = "kubernetes.azure.com/scalesetpriority"
CAPACITY_LABELS: dict[Tier, dict[str, str]] = {
    Tier.SPOT: {
        "karpenter.sh/capacity-type": "spot",
        "eks.amazonaws.com/capacityType": "SPOT",
        "node.kubernetes.io/lifecycle": "spot",
        _GKE_SPOT: "true",
        _GKE_PREEMPTIBLE: "true",
        _AKS_PRIORITY: "spot",
    },
    Tier.ON_DEMAND: {
        "karpenter.sh/capacity-type": "on-demand",
        "eks.amazonaws.com/capacityType": "ON_DEMAND",
        "node.kubernetes.io/lifecycle": "on-demand",
    },
}
"""Karpenter, EKS managed node groups, self-managed nodes, GKE and AKS spell it in their own ways: a node has one."""
POOLS = {
    "cloud.google.com/gke-nodepool": (_GKE_SPOT, _GKE_PREEMPTIBLE),
    "kubernetes.azure.com/agentpool": (_AKS_PRIORITY,),
}
"""The label of every node of GKE and AKS, and those of its spot nodes: without these it is on demand."""
SPOT_TAINTS = {_GKE_SPOT: "true", _AKS_PRIORITY: "spot"}
"""Taints of nodes that AKS and GKE have for those alone who ask for spot."""

Requirement = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TooDear:
    """An instance type that costs more than the user pays, when it is bought in this way."""

    instance_type: str
    tier: Tier | None
    """None: of a node that does not say how it is bought."""
    zone: str | None = None
    """None: in every zone."""


def affinity(
    spec: Spec,
    avoid: Collection[TooDear] = (),
    avoid_zones: Collection[str] = (),
    zone_of: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The affinity of every pod of an attempt; empty when any node will do.

    What is too dear is ruled out. Zones are avoided as long as there are nodes in others: Karpenter takes a preference
    for a requirement until nothing else is left. The pods have to be in the zone of those with the labels `zone_of`.
    """
    placement = spec.workers.template.placement
    nodes = {**_required(spec, avoid), **(_preferred(avoid_zones) if avoid_zones else {})}
    pods = _pod_affinity(placement) if placement else {}
    if zone_of:
        pods["podAffinity"] = {**pods.get("podAffinity", {}), **_in_zone_of(zone_of)}
    return {**({"nodeAffinity": nodes} if nodes else {}), **pods}


def may_span_zones(spec: Spec) -> bool:
    """True if its pods are several, and nothing in the spec keeps them in one zone."""
    return spec.workers.nodes > 1 and len(spec.workers.zones) != 1


def _in_zone_of(labels: Mapping[str, str]) -> dict[str, Any]:
    """The scheduler lets the first of the pods in wherever a node names its zone, since it has the labels itself."""
    term = {"labelSelector": {"matchLabels": dict(labels)}, "topologyKey": ZONE}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def _preferred(avoid_zones: Collection[str]) -> dict[str, Any]:
    elsewhere = {"matchExpressions": [_requirement(ZONE, "NotIn", sorted(avoid_zones))]}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": elsewhere}]}


def _pod_affinity(placement: Placement) -> dict[str, Any]:
    """A preference: a pod that finds no room beside the others starts on another node."""
    term = {
        "labelSelector": {"matchLabels": {names.LABEL_GROUP: placement.group}},
        "topologyKey": names.HOSTNAME,
    }
    kind = "podAffinity" if placement.policy is Policy.PACK else "podAntiAffinity"
    return {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}}


def _required(spec: Spec, avoid: Collection[TooDear]) -> dict[str, Any]:
    """Instance types and zones in every term; a term for each spelling of how the node is bought, where that matters.

    A node has to match one term. Karpenter tries them one by one, in this order.
    """
    avoid = [dear for dear in avoid if _matters(dear, spec)]
    base = [
        _requirement(key, "In", values)
        for key, values in ((INSTANCE_TYPE, spec.workers.instance_types), (ZONE, spec.workers.zones))
        if values
    ]
    terms = [
        [*base, *bought, *excluded]
        for tier, bought in _ways_to_buy(spec.capacity.tiers, avoid)
        for excluded in _without([dear for dear in avoid if dear.tier is tier])
    ]
    if not any(terms):
        return {}
    wanted = [{"matchExpressions": term} for term in terms]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": wanted}}


def _matters(dear: TooDear, spec: Spec) -> bool:
    """True if the pods might get such a node otherwise."""
    types, zones = spec.workers.instance_types, spec.workers.zones
    return (not types or dear.instance_type in types) and (not zones or dear.zone is None or dear.zone in zones)


def _ways_to_buy(tiers: Sequence[Tier], avoid: Collection[TooDear]) -> Iterator[tuple[Tier | None, list[Requirement]]]:
    """The tiers that will do, in each spelling. Without a wish they are told apart only where their prices differ."""
    dear = {tier: {(d.instance_type, d.zone) for d in avoid if d.tier is tier} for tier in (*Tier, None)}
    if not tiers and all(found == dear[None] for found in dear.values()):
        yield None, []
        return
    for tier in tiers[:1] or Tier:
        for key, value in CAPACITY_LABELS[tier].items():
            yield tier, [_requirement(key, "In", [value])]
        if tier is Tier.ON_DEMAND:
            for pool, spot in POOLS.items():
                yield tier, [_requirement(pool, "Exists"), *(_requirement(key, "DoesNotExist") for key in spot)]
    if not tiers:
        known: dict[str, list[str]] = {}
        for labels in CAPACITY_LABELS.values():
            for key, value in labels.items():
                known.setdefault(key, []).append(value)
        none = [_requirement(key, "NotIn", values) for key, values in known.items()]
        yield None, [*none, *(_requirement(pool, "DoesNotExist") for pool in POOLS)]


def _without(dear: Sequence[TooDear]) -> Iterator[list[Requirement]]:
    """Requirements, of which a node has to meet one list: another type, or outside the zones where it is dear."""
    everywhere = {found.instance_type for found in dear if found.zone is None}
    zones: dict[str, set[str]] = {}
    for found in dear:
        if found.zone is not None and found.instance_type not in everywhere:
            zones.setdefault(found.instance_type, set()).add(found.zone)
    others = everywhere | set(zones)
    yield [_requirement(INSTANCE_TYPE, "NotIn", sorted(others))] if others else []
    for kind in sorted(zones):
        yield [_requirement(INSTANCE_TYPE, "In", [kind]), _requirement(ZONE, "NotIn", sorted(zones[kind]))]


def _requirement(key: str, operator: str, values: Collection[str] = ()) -> Requirement:
    return {"key": key, "operator": operator} | ({"values": list(values)} if values else {})
