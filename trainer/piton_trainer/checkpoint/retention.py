"""Which checkpoints may go. Pure: steps and metrics in, steps out."""

from collections.abc import Mapping, Sequence

from piton.contract.assignment import Objective, SavePolicy


def steps_to_delete(
    checkpoints: Sequence[tuple[int, Mapping[str, float]]], *, policy: SavePolicy, objective: Objective | None
) -> list[int]:
    """The steps whose checkpoints are neither among the last nor among the best.

    The newest always stays, whatever the policy says: it is what the next attempt resumes from.
    """
    newest_first = sorted((step for step, _ in checkpoints), reverse=True)
    kept = set(newest_first[: max(1, policy.keep_last)])
    kept.update(_best(checkpoints, objective)[: policy.keep_best])
    return sorted(step for step, _ in checkpoints if step not in kept)


def _best(checkpoints: Sequence[tuple[int, Mapping[str, float]]], objective: Objective | None) -> list[int]:
    """Steps that were measured, best first; of equals the older, which was there first."""
    if objective is None:
        return []
    sign = 1.0 if objective.goal == "Minimize" else -1.0
    measured = [
        (sign * metrics[objective.metric], step) for step, metrics in checkpoints if objective.metric in metrics
    ]
    return [step for value, step in sorted(measured) if value == value]
