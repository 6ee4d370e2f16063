"""Results of each fold, at the step that its inner queries selected.

The held-out queries choose nothing: their result counts as of the step at which the inner ones were best, whatever came
later. To take the best of their own results, as is often done, would be a look at the answers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from piton.contract.interval import t_interval
from piton_trainer.recipes.twotower.folds import Fold


@dataclass(kw_only=True)
class Result:
    """Of one fold."""

    fold: int
    queries: int
    """Held out."""
    baseline: float
    """nDCG@10 of ranking the ids by their mean gain, for every query alike."""
    step: int = 0
    """At which the inner queries were best."""
    inner: float = -1.0
    """nDCG@10 of the inner queries then."""
    held_out: float = 0.0
    """And of those held out."""


class Results:
    """Of all folds that are trained. A checkpoint carries them."""

    def __init__(self, folds: Sequence[Fold], baselines: Sequence[float]) -> None:
        self.folds = [
            Result(fold=fold.number, queries=len(fold.held_out), baseline=baseline)
            for fold, baseline in zip(folds, baselines, strict=True)
        ]

    def consider(self, step: int, inner: Sequence[float], held_out: Sequence[float]) -> bool:
        """Take an evaluation; whether it changes anything. A step that is evaluated again does not."""
        has_news = False
        for result, chooses, counts in zip(self.folds, inner, held_out, strict=True):
            if chooses > result.inner and step > result.step:
                result.step, result.inner, result.held_out = step, chooses, counts
                has_news = True
        return has_news

    def metrics(self) -> dict[str, float]:
        """The means over the folds, and where there are several an interval that holds 95% of the time."""
        held_out = [result.held_out for result in self.folds]
        figures = {
            "ndcg_10": mean(held_out),
            "baseline_ndcg_10": mean(result.baseline for result in self.folds),
        }
        if len(held_out) > 1:
            figures["ndcg_10_low"], figures["ndcg_10_high"] = t_interval(held_out)
        return figures

    def to_json(self) -> str:
        """For people and other programs: every fold, the means, and the differences to the baseline fold by fold."""
        gains = [result.held_out - result.baseline for result in self.folds]
        above = {"mean": mean(gains)}
        if len(gains) > 1:
            above["low"], above["high"] = t_interval(gains)
        document = {"metrics": self.metrics(), "above_baseline": above, "folds": [asdict(fold) for fold in self.folds]}
        return json.dumps(document, indent=1) + "\n"

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"folds": [asdict(fold) for fold in self.folds]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint knows; the loader has seen to it that the folds are the same."""
        self.folds = [Result(**fold) for fold in state["folds"]]
