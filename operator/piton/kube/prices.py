"""Prices of nodes, and the part of a node that a pod uses. Pure: dictionaries of the API in, amounts out.

Whoever knows best says it on the node; else the operator's table knows the type, and how it is bought. What neither
knows is None: the core has a highest price for that.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Self

from kubernetes.utils.quantity import parse_quantity

from piton.api.spec import Tier
from piton.contract import InputError, names
from piton.rendering.affinity import CAPACITY_LABELS, INSTANCE_TYPE, POOLS, ZONE, TooDear

_AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
_SHAPE = '{"p4d.24xlarge": {"Spot": "12.50", "OnDemand": "32.77"}}'


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Dollars per hour of whole nodes, by instance type and tier."""

    table: Mapping[str, Mapping[Tier, Fraction]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The table as the operator is told it.

        Raises:
            ValueError: it is none.
        """
        try:
            found = json.loads(text)
            return cls(
                table={
                    kind: {Tier(tier): _amount(price) for tier, price in tiers.items()} for kind, tiers in found.items()
                }
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{error}; write prices like {_SHAPE}") from error

    def of(self, node: Mapping[str, Any]) -> Fraction | None:
        """Return the price on the node itself, else the one of the table for its type; None if neither is known."""
        meta = node["metadata"]
        for source in (meta.get("annotations") or {}, meta.get("labels") or {}):
            price = source.get(names.ANNOTATION_PRICE)
            if price is not None and _AMOUNT.fullmatch(price):
                return Fraction(price)
        return self._of_kind(meta.get("labels") or {})

    def above(self, most: Fraction, nodes: Iterable[Mapping[str, Any]] = ()) -> frozenset[TooDear]:
        """Return the types that cost more: by the table, or because every known node of the type in that zone does."""
        return self._types_above(most) | self._nodes_above(most, nodes)

    def _types_above(self, most: Fraction) -> frozenset[TooDear]:
        found: set[TooDear] = set()
        for kind, tiers in self.table.items():
            dear = {tier for tier, price in tiers.items() if price > most}
            found |= {TooDear(instance_type=kind, tier=tier) for tier in (dear | {None} if dear else ())}
        return frozenset(found)

    def _nodes_above(self, most: Fraction, nodes: Iterable[Mapping[str, Any]]) -> frozenset[TooDear]:
        """A node that does not say its type and zone cannot be avoided, nor one beside a cheaper one of its kind."""
        dear: dict[TooDear, bool] = {}
        for node in nodes:
            labels = node["metadata"].get("labels") or {}
            kind, zone = labels.get(INSTANCE_TYPE), labels.get(ZONE)
            if kind and zone:
                key = TooDear(instance_type=kind, tier=_tier(labels), zone=zone)
                dear[key] = dear.get(key, True) and (self.of(node) or 0) > most
        return frozenset(key for key, is_dear in dear.items() if is_dear)

    def _of_kind(self, labels: Mapping[str, str]) -> Fraction | None:
        """A node that does not say how it is bought counts as the dearest of its kind."""
        tiers = self.table.get(labels.get(INSTANCE_TYPE, ""), {})
        tier = _tier(labels)
        return max(tiers.values(), default=None) if tier is None else tiers.get(tier)


def _tier(labels: Mapping[str, str]) -> Tier | None:
    """Return the capacity type of a node with these labels; None if they do not name it."""
    found = next((tier for tier, spellings in CAPACITY_LABELS.items() if spellings.items() & labels.items()), None)
    return Tier.ON_DEMAND if found is None and POOLS.keys() & labels.keys() else found


def share(pod: Mapping[str, Any], node: Mapping[str, Any]) -> Fraction:
    """The part of the node that is the pod's: of its GPUs; without any, of its CPU; all of it where nobody can tell."""
    there = (node.get("status") or {}).get("allocatable") or {}
    for resource in (names.GPU, "cpu"):
        wanted = _requested(pod, resource)
        if wanted:
            room = _quantity(there.get(resource))
            return min(Fraction(1), wanted / room) if room else Fraction(1)
    return Fraction(1)


def _requested(pod: Mapping[str, Any], resource: str) -> Fraction:
    """By all containers; a device is requested by its limit."""
    total = Fraction(0)
    for container in (pod.get("spec") or {}).get("containers") or []:
        resources = container.get("resources") or {}
        amounts = (resources.get(part) or {} for part in ("requests", "limits"))
        total += next((_quantity(part[resource]) for part in amounts if resource in part), Fraction(0))
    return total


def _quantity(text: object) -> Fraction:
    """Return a quantity of the Kubernetes API as a number; 0 if it is none."""
    try:
        return Fraction(parse_quantity(str(text)))
    except ValueError:
        return Fraction(0)


def _amount(text: object) -> Fraction:
    if not isinstance(text, str) or not _AMOUNT.fullmatch(text):
        raise InputError(f"{text!r} is no amount of dollars in quotes")
    return Fraction(text)
