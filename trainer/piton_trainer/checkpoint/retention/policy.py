"""Selection of checkpoints to delete. Pure: takes steps and metrics, returns steps."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from piton.contract.assignment import Objective, SavePolicy

Measured = Sequence[tuple[int, Mapping[str, float]]]
"""Steps of whole checkpoints, and the metrics measured there."""


@dataclass(frozen=True, kw_only=True)
class Deletions:
    """Steps of the checkpoints that the rules delete or make thin."""

    thin: Sequence[int] = field(default_factory=list)
    """Whole checkpoints that are reduced to their weights."""
    whole: Sequence[int] = field(default_factory=list)
    """Whole checkpoints that are deleted."""
    weights: Sequence[int] = field(default_factory=list)
    """Thin checkpoints that are deleted."""


def steps_to_delete(checkpoints: Measured, *, policy: SavePolicy, objective: Objective | None) -> list[int]:
    """Return the steps whose checkpoints are neither among the last nor among the best.

    The newest always stays, regardless of the policy: the next attempt resumes from it.
    """
    newest_first = sorted((step for step, _ in checkpoints), reverse=True)
    kept = set(newest_first[: max(1, policy.keep_last)])
    kept.update(_best(checkpoints, objective)[: policy.keep_best])
    return sorted(step for step, _ in checkpoints if step not in kept)


def what_goes(
    checkpoints: Measured,
    *,
    thin: Collection[int] = (),
    can_be_thin: Collection[int] = (),
    spared: Collection[int] = (),
    policy: SavePolicy,
    objective: Objective | None,
) -> Deletions:
    """Return the deletions. Of those not kept whole, the newest `keep_weights_only` keep their weights.

    Args:
        checkpoints: the whole checkpoints.
        thin: the steps of thin checkpoints.
        can_be_thin: the steps of whole checkpoints that can be made thin.
        spared: steps that stay unchanged, regardless of the policy.
        policy: the numbers of checkpoints to keep.
        objective: the metric that defines the best checkpoints.
    """
    going = [s for s in steps_to_delete(checkpoints, policy=policy, objective=objective) if s not in spared]
    candidates = {*thin, *(step for step in going if step in can_be_thin)}
    kept = set(sorted(candidates, reverse=True)[: policy.keep_weights_only])
    return Deletions(
        thin=[step for step in going if step in kept and step in can_be_thin],
        whole=[step for step in going if step not in kept or step not in can_be_thin],
        weights=sorted(step for step in thin if step not in kept),
    )


def _best(checkpoints: Measured, objective: Objective | None) -> list[int]:
    """Return the measured steps, best first; of equal ones the older first."""
    if objective is None:
        return []
    sign = 1.0 if objective.goal == "Minimize" else -1.0
    measured = [
        (sign * metrics[objective.metric], step) for step, metrics in checkpoints if objective.metric in metrics
    ]
    return [step for value, step in sorted(measured) if value == value]
