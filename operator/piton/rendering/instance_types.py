"""Resources of the instance types, from the table of TorchX.

TorchX is imported when the first type is looked up: the modules that decide import this one, and start without TorchX.
"""

from math import floor
from typing import TYPE_CHECKING, Any

from piton.api.spec import Spec

if TYPE_CHECKING:
    from torchx.specs import Resource

CPU_SHARE = 0.95
"""Part of a machine's CPU that pods may ask for; the rest is the kubelet's, the system's and the daemonsets'."""
MEMORY_SHARE = 0.92
"""Part of the memory in TorchX's table that pods may ask for, before what every machine keeps.

The table has 4 % less than the machine's name promises. Karpenter takes off 7.5 % until it has seen a machine of the
type, and a pod that asks for more makes it launch nothing. The rest is for the 737 pods that a large one may have."""
KEPT_MEMORY_MIB = 1280
"""Memory that each machine reserves: for the kubelet, which evicts below 100 Mi, and for daemonsets."""


def node_resources(spec: Spec) -> "Resource":
    """Return the resources that the pod of one node requests.

    They are the share of the first instance type that its GPUs stand for; for an unknown type only its GPUs.
    """
    from torchx.specs import Resource

    workers = spec.workers
    capabilities: dict[str, Any] = {}
    named = _first_type(spec)
    if named is None:
        return Resource(cpu=-1, gpu=workers.gpus_per_node, memMB=-1, capabilities=capabilities)
    share = min(1.0, workers.gpus_per_node / named.gpu) if named.gpu and workers.gpus_per_node else 1.0
    return Resource(
        cpu=max(1, floor(named.cpu * share * CPU_SHARE)),
        gpu=workers.gpus_per_node,
        memMB=floor(_memory_for_pods(named) * share),
        capabilities=dict(named.capabilities),
        devices=dict(named.devices) if share == 1.0 else {},
    )


def gpus_of(spec: Spec) -> int | None:
    """Return the number of GPUs in a machine of the first instance type; None if it is unknown."""
    named = _first_type(spec)
    return None if named is None else int(named.gpu)


def _memory_for_pods(named: "Resource") -> float:
    """Return the MiB that are left for pods. Machines of less than 2 GiB are not worth an exact answer."""
    memory = float(named.memMB)
    return max(memory / 2, memory * MEMORY_SHARE - KEPT_MEMORY_MIB)


def _first_type(spec: Spec) -> "Resource | None":
    from torchx.specs import resource

    if not spec.workers.instance_types:
        return None
    try:
        return resource(h=f"aws_{spec.workers.instance_types[0]}")
    except (KeyError, ValueError):
        return None
