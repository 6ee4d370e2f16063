"""What is allowed and said: warnings about a spec, in both directions, and when the cluster hears of them."""

from typing import Any

import pytest

from piton.api.reasons import Reason
from piton.api.spec_warnings import warnings
from piton.core.decide import decide
from support.builders import NOW, a_spec, a_status, an_ended, an_observed


def _warned(**template: Any) -> list[str]:
    return warnings(a_spec(workers={"template": template}))


@pytest.mark.parametrize(
    "toleration",
    [
        {"operator": "Exists"},
        {"operator": "Exists", "effect": "NoSchedule"},
        {"key": "karpenter.sh/disrupted", "operator": "Exists"},
        {"key": "karpenter.sh/disrupted", "operator": "Equal"},
        {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"},
    ],
)
def test_a_toleration_of_karpenters_own_taint_is_warned_of(toleration: dict[str, str]) -> None:
    (sentence,) = _warned(tolerations=[{"key": "team", "operator": "Exists"}, toleration])
    assert sentence.startswith("spec.workers.template.tolerations[1]: also tolerates Karpenter's taint")

    (of_stage,) = warnings(a_spec(stages={"prepare": {"tolerations": [toleration]}}))
    assert of_stage.startswith("spec.stages.prepare.tolerations[0]")


@pytest.mark.parametrize(
    "toleration",
    [
        {"operator": "Exists", "effect": "NoExecute"},
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "karpenter.sh/disrupted", "operator": "Exists", "effect": "NoExecute"},
        {"key": "karpenter.sh/disrupted", "value": "yes"},
    ],
)
def test_any_other_toleration_is_not(toleration: dict[str, str]) -> None:
    assert _warned(tolerations=[toleration]) == []


def test_a_node_by_its_name_is_warned_of_and_not_refused() -> None:
    (sentence,) = _warned(nodeSelector={"kubernetes.io/hostname": "node-1", "disk": "fast"})
    assert "Karpenter launches no node for a pod that selects kubernetes.io/hostname" in sentence
    assert _warned(nodeSelector={"disk": "fast", "topology.kubernetes.io/zone": "us-east-1a"}) == []


def test_people_are_warned_before_the_first_attempt_and_only_then() -> None:
    spec = a_spec(workers={"template": {"tolerations": [{"operator": "Exists"}]}})
    first = decide(an_observed(spec=spec), now=NOW)
    told = [(news.reason, news.severity) for news in first.announcements]
    assert told == [(Reason.SPEC_WARNING, "Warning"), (Reason.STARTING, "Normal")]

    second = decide(an_observed(spec=spec, status=a_status(an_ended(1))), now=NOW)
    assert second.status.attempt == 2
    assert [news.reason for news in second.announcements] == [Reason.STARTING]
