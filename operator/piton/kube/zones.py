"""A check that the nodes name their zone.

A pod that has to be in the zone of others never starts on a node that names none, and the scheduler looks for no other
way. So nothing of the kind is asked where such a pod might be on a node without the label.
"""

from collections.abc import Mapping

from piton.kube.client import Reads
from piton.kube.resources import NODES
from piton.ports import Refused
from piton.rendering.affinity import ZONE


async def are_named(reads: Reads, selector: Mapping[str, str]) -> bool:
    """True if some node names its zone, and all do that this node selector takes. Where nodes cannot be read: no.

    Raises:
        Unavailable: look again.
    """
    wanted = [f"{key}={value}" for key, value in selector.items()]
    try:
        named = await reads.list(NODES, labels=ZONE, most=1)
        return bool(named) and not await reads.list(NODES, labels=",".join([f"!{ZONE}", *wanted]), most=1)
    except Refused:
        return False
