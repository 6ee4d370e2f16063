"""The kinds of objects that the operator reads and writes, their paths in the API, and selectors of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from piton.contract import names

Body = dict[str, Any]
"""An object of the API, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A kind of object, as the API's paths spell it."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of the collection, of one object, or of an object's subresource."""
        root = f"/apis/{self.group}" if self.group else "/api"
        parts = [f"{root}/{self.version}"]
        if namespace is not None and self.namespaced:
            parts.append(f"namespaces/{namespace}")
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


RUNS = Resource(group=names.API_GROUP, version=names.API_VERSION, plural=names.PLURAL)
SWEEPS = Resource(group=names.API_GROUP, version=names.API_VERSION, plural=names.SWEEP_PLURAL)
JOBS = Resource(group="kubeflow.org", version="v1", plural="pytorchjobs")
PODS = Resource(group="", version="v1", plural="pods")
SERVICES = Resource(group="", version="v1", plural="services")
CLAIMS = Resource(group="", version="v1", plural="persistentvolumeclaims")
NODES = Resource(group="", version="v1", plural="nodes", namespaced=False)
NODE_POOLS = Resource(group="karpenter.sh", version="v1", plural="nodepools", namespaced=False)
EVENTS = Resource(group="", version="v1", plural="events")
QUOTAS = Resource(group="", version="v1", plural="resourcequotas")
LEASES = Resource(group="coordination.k8s.io", version="v1", plural="leases")
TOKEN_REVIEWS = Resource(group="authentication.k8s.io", version="v1", plural="tokenreviews", namespaced=False)


@dataclass(frozen=True)
class Selector:
    """Conditions on the labels and fields of an object; all have to hold.

    As far as the operator uses them: `key=value`, `key` and `!key`, joined by commas.
    """

    equal: Mapping[str, str]
    """Labels, and paths of fields, with the value that they have to have."""
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @classmethod
    def parse(cls, labels: str | None, fields: str | None) -> Self:
        """Parse a label selector and a field selector."""
        terms = [term for term in (labels or "").split(",") if term]
        equal = dict(term.split("=", 1) for term in terms if "=" in term)
        equal |= dict(term.split("=", 1) for term in (fields or "").split(",") if term)
        names = [term for term in terms if "=" not in term]
        return cls(
            equal=equal,
            present=tuple(name for name in names if not name.startswith("!")),
            absent=tuple(name[1:] for name in names if name.startswith("!")),
        )

    def matches(self, body: Mapping[str, Any]) -> bool:
        """True if the object meets all conditions."""
        labels = body["metadata"].get("labels") or {}
        return (
            all(
                (labels.get(name) if name in labels else _field(body, name)) == value
                for name, value in self.equal.items()
            )
            and all(name in labels for name in self.present)
            and not any(name in labels for name in self.absent)
        )


def _field(body: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path such as `involvedObject.uid`."""
    found: Any = body
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
