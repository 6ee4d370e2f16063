"""Which checkpoints may go. Pure: steps and metrics in, steps out."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from piton.contract.assignment import Objective, SavePolicy

Measured = Sequence[tuple[int, Mapping[str, float]]]
"""Steps of whole checkpoints, and what was measured there."""


@dataclass(frozen=True, kw_only=True)
class Deletions:
    """What the rules let go, by steps."""

    thin: Sequence[int] = field(default_factory=list)
    """Whole ones of which the weights stay."""
    whole: Sequence[int] = field(default_factory=list)
    """Whole ones of which nothing stays."""
    weights: Sequence[int] = field(default_factory=list)
    """Thin ones."""


def steps_to_delete(checkpoints: Measured, *, policy: SavePolicy, objective: Objective | None) -> list[int]:
    """The steps whose checkpoints are neither among the last nor among the best.

    The newest always stays, whatever the policy says: it is what the next attempt resumes from.
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
    """What may go. Of those that are not kept whole, the newest `keep_weights_only` keep their weights.

    Args:
        checkpoints: those that are whole.
        thin: the steps of those that are thin.
        can_be_thin: the steps of whole ones that could be made thin.
        spared: steps that stay as they are, whatever the policy says.
        policy: what is kept.
        objective: what is best.
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
    """Steps that were measured, best first; of equals the older, which was there first."""
    if objective is None:
        return []
    sign = 1.0 if objective.goal == "Minimize" else -1.0
    measured = [
        (sign * metrics[objective.metric], step) for step, metrics in checkpoints if objective.metric in metrics
    ]
    return [step for value, step in sorted(measured) if value == value]
