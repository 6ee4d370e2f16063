"""Advice on the nodes of an attempt, in sentences. No decision depends on it."""

from piton.observed import AttemptSeen, NodePoolSeen
from piton.timing import GRACE_SECONDS

SPOT_NOTICE_SECONDS = 120
"""Seconds between the notice of a spot machine and its end."""
DRAIN_SECONDS = GRACE_SECONDS + 10
"""The terminationGracePeriod of a NodePool that is advised: see docs/karpenter.md for the arithmetic."""


def of_node_pools(seen: AttemptSeen) -> str | None:
    """Return the problem of the nodes' NodePools while no operator runs; None if there is none."""
    pools = {replica.node_pool for replica in seen.replicas if replica.node_pool and not replica.ended}
    wrong = [sentence for pool in sorted(pools, key=lambda pool: pool.name) if (sentence := _of_node_pool(pool))]
    return "; ".join(dict.fromkeys(wrong)) or None


def _of_node_pool(pool: NodePoolSeen) -> str | None:
    seconds = pool.drain_seconds
    if seconds is None:
        what = "has no terminationGracePeriod: without the operator its pods get no SIGTERM before their machine goes"
    elif seconds < GRACE_SECONDS:
        what = f"has a terminationGracePeriod of {seconds:g}s, and a save may take {GRACE_SECONDS}s"
    elif pool.is_spot and seconds > SPOT_NOTICE_SECONDS:
        what = (
            f"has a terminationGracePeriod of {seconds:g}s, but a spot machine goes after {SPOT_NOTICE_SECONDS}s: "
            "without the operator its pods get no SIGTERM in time"
        )
    else:
        return None
    return f"NodePool {pool.name} {what}; set its spec.template.spec.terminationGracePeriod to {DRAIN_SECONDS}s"
