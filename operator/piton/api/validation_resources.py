"""Rules on resources of pods, as ValidateResourceRequirements of Kubernetes has them, and on the size of a claim."""

from collections.abc import Iterator, Mapping
from fractions import Fraction

from piton.api.cel import not_in_cel
from piton.api.pod_template import Resources
from piton.api.spec import Spec
from piton.api.validation_names import ONLY_NEW, is_qualified_name, kinds_of_pods
from piton.contract import names
from piton.contract.quantity import parse_quantity

_OF_EACH_NODE = ("cpu", "memory", "ephemeral-storage")
_HUGE_PAGES = "hugepages-"
_OF_KUBERNETES = "kubernetes.io/"
_NAMES_OF_QUOTA = "requests."
_UNBOUNDED = "maps of resources have no bound, and amounts have units"


def _page(name: str) -> Fraction | None:
    """Return the size of the huge pages that the resource counts; None if there are no such pages."""
    try:
        size = parse_quantity(name.removeprefix(_HUGE_PAGES))
    except ValueError:
        return None
    return size if size >= 1 and size.denominator == 1 else None


def _is_resource(name: str) -> bool:
    """True if a container may ask for it."""
    if name.startswith(_HUGE_PAGES):
        return _page(name) is not None
    if "/" not in name:
        return name in _OF_EACH_NODE
    if _OF_KUBERNETES in name:
        return is_qualified_name(name)
    return not name.startswith(_NAMES_OF_QUOTA) and is_qualified_name(f"{_NAMES_OF_QUOTA}{name}")


def _is_device(name: str) -> bool:
    """True if it is given out in whole units and to one container at a time, so that its request is its limit."""
    return name.startswith(_HUGE_PAGES) or ("/" in name and _OF_KUBERNETES not in name)


@not_in_cel(_UNBOUNDED)
def good_resources(spec: Spec) -> Iterator[str]:
    """Check that resources have names and amounts that the API server takes, GPUs aside, which are Piton's to set."""
    for path, pod in kinds_of_pods(spec):
        for part, amounts in (("requests", pod.resources.requests), ("limits", pod.resources.limits)):
            yield from _of_amounts(f"spec.{path}.resources.{part}", amounts)
        yield from _of_devices(f"spec.{path}.resources", pod.resources)
        has_machine = pod is spec.workers.template and spec.workers.instance_types  # its CPU and memory are asked for
        names = {name for name in (*pod.resources.requests, *pod.resources.limits) if _is_resource(name)}
        if any(name.startswith(_HUGE_PAGES) for name in names) and not has_machine and not names & {"cpu", "memory"}:
            yield f"spec.{path}.resources: huge pages go with CPU or memory only; write requests of these as well"


def _of_amounts(path: str, amounts: Mapping[str, str]) -> Iterator[str]:
    for name, amount in amounts.items():
        if not _is_resource(name):
            yield (
                f"{path}: '{name}' is no resource of a container; write cpu, memory, ephemeral-storage, or one with "
                "its domain, such as vpc.amazonaws.com/efa"
            )
        elif _is_device(name) and parse_quantity(amount).denominator != 1:
            yield f"{path}.{name}: {amount} is no whole number, and nobody gets a part of one; write one"
        elif name.startswith(_HUGE_PAGES) and parse_quantity(amount) % (_page(name) or 1):
            yield f"{path}.{name}: {amount} are no whole pages; write a multiple of {name.removeprefix(_HUGE_PAGES)}"


def _of_devices(path: str, resources: Resources) -> Iterator[str]:
    for name, least in resources.requests.items():
        most = resources.limits.get(name)
        if name == names.GPU or not _is_resource(name) or not _is_device(name):
            continue
        if most is None:
            yield f"{path}.limits.{name}: missing; a request of it needs the same limit, so write {least} here as well"
        elif parse_quantity(most) != parse_quantity(least):
            yield f"{path}.limits.{name}: {most} is not the request of {least}; write the same amount for both"


@not_in_cel(_UNBOUNDED)
def fitting_limits(spec: Spec) -> Iterator[str]:
    """Check that no limit is below its request: the API server takes no such pod."""
    for path, pod in kinds_of_pods(spec):
        for name, least in pod.resources.requests.items():
            most = pod.resources.limits.get(name)
            if most is not None and not _is_device(name) and parse_quantity(most) < parse_quantity(least):
                yield (
                    f"spec.{path}.resources.limits.{name}: {most} is below the request of {least}; raise the limit, or "
                    "lower the request"
                )


@not_in_cel(ONLY_NEW)
def good_claim(spec: Spec) -> Iterator[str]:
    """Check that a new claim has a size, and modes that go together."""
    volume = spec.checkpoint.volume
    if volume.size and not parse_quantity(volume.size):
        yield f"spec.checkpoint.volume.size: {volume.size} is no size of a volume; write one such as 100Gi"
    if "ReadWriteOncePod" in volume.access_modes and len(volume.access_modes) > 1:
        yield "spec.checkpoint.volume.accessModes: ReadWriteOncePod goes with no other mode; write one of them"
