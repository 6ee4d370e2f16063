"""Warnings about valid settings that do not work everywhere as their author may expect."""

from collections.abc import Callable, Iterator, Mapping

from piton.api.pod_template import Toleration
from piton.api.spec import Spec
from piton.api.stages import side_stages
from piton.contract.names import HOSTNAME

Check = Callable[[Spec], Iterator[str]]

DISRUPTED = "karpenter.sh/disrupted"
"""Taint of a node that Karpenter removes."""


def warnings(spec: Spec) -> list[str]:
    """Return the warnings about a spec; it is accepted all the same."""
    return [sentence for rule in WARNINGS for sentence in rule(spec)]


def no_drain(spec: Spec) -> Iterator[str]:
    """Warn about tolerations of Karpenter's own taint: it treats such pods as part of the node, never draining them."""
    for path, tolerations in _tolerations(spec):
        for index, toleration in enumerate(tolerations):
            if _tolerates_disrupted(toleration):
                yield (
                    f"spec.{path}[{index}]: also tolerates Karpenter's taint {DISRUPTED}:NoSchedule, so its pods are "
                    "never drained and may start on a machine that is about to go; name the taints that you mean"
                )


def no_single_node(spec: Spec) -> Iterator[str]:
    """Warn about a selected hostname. It is not refused, because it is right where nodes are not created on demand."""
    for path, selector in _node_selectors(spec):
        if HOSTNAME in selector:
            yield (
                f"spec.{path}: Karpenter launches no node for a pod that selects {HOSTNAME}; select an instance type, "
                "a zone or a label of your own, unless this node is always there"
            )


def _tolerates_disrupted(toleration: Toleration) -> bool:
    """Match the taint `karpenter.sh/disrupted:NoSchedule`, which has no value, as the scheduler does."""
    if toleration.effect not in (None, "NoSchedule"):
        return False
    if not toleration.key:
        return toleration.operator == "Exists"
    return toleration.key == DISRUPTED and (toleration.operator == "Exists" or not toleration.value)


def _tolerations(spec: Spec) -> list[tuple[str, tuple[Toleration, ...]]]:
    sides = [(f"stages.{stage.lower()}.tolerations", own.tolerations) for stage, own in side_stages(spec)]
    return [("workers.template.tolerations", spec.workers.template.tolerations), *sides]


def _node_selectors(spec: Spec) -> list[tuple[str, Mapping[str, str]]]:
    sides = [(f"stages.{stage.lower()}.nodeSelector", own.node_selector) for stage, own in side_stages(spec)]
    return [("workers.template.nodeSelector", spec.workers.template.node_selector), *sides]


WARNINGS: tuple[Check, ...] = (no_drain, no_single_node)
