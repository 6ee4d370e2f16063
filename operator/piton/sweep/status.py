"""Typed models of a TrainingSweep's status, which Piton writes. Source of the CRD, like `model.py`.

The rows are the stored state of the runs; counts, results and the best variant are derived from them. Numbers other
than counts are strings, because Kubernetes APIs avoid floats.
"""

from pydantic import AwareDatetime, Field

from piton.api.status import AcceptedSpec, Amount, MetricValue
from piton.api.status_base import Answer, Conditioned, Phase


class Row(Answer):
    """One run of the sweep. That it has succeeded, and with what, is remembered also when it is deleted."""

    name: str = Field(description="Name of the run.")
    variant: str = Field(description="Its variant.")
    fold: int | None = Field(default=None, description="Its fold.")
    seed: int | None = Field(default=None, description="Its seed.")
    phase: Phase = Field(default=Phase.PENDING, description="Pending: not created yet; else as the run has it.")
    refused: str | None = Field(default=None, description="The reason for which it could not be created, so far.")
    step: int | None = Field(default=None, description="Steps trained.")
    preemptions: int = Field(default=0, ge=0, description="Attempts that lost their machine.")
    lost_steps: int = Field(default=0, ge=0, description="Steps trained again after a preemption or failure.")
    cost: Amount | None = Field(default=None, description="Dollars that it has cost, as far as prices are known.")
    uid: str | None = Field(default=None, description="Of the run that this is the cost of.")
    metrics: tuple[MetricValue, ...] = Field(
        default=(), description="The objective's best value once it has succeeded, and newest values."
    )

    @property
    def succeeded(self) -> bool:
        """True if its values count."""
        return self.phase is Phase.SUCCEEDED

    @property
    def settled(self) -> bool:
        """True if it has ended for good."""
        return self.phase in (Phase.SUCCEEDED, Phase.FAILED)

    @property
    def pair(self) -> tuple[int | None, int | None]:
        """Fold and seed: a run is compared with those of other variants that have the same."""
        return self.fold, self.seed


class SweepEstimate(Answer):
    """A mean over runs. With one run there is no interval."""

    mean: str = Field(description="Mean.")
    low: str | None = Field(default=None, description="Low end of Student's interval that holds it with 95%.")
    high: str | None = Field(default=None, description="High end of that interval.")


class MetricResult(Answer):
    """One metric of a variant."""

    name: str = Field(description="Name of the metric.")
    value: SweepEstimate = Field(description="Over the folds and seeds that have succeeded.")
    difference: SweepEstimate | None = Field(
        default=None, description="To the baseline, pair by pair over the folds and seeds that both have."
    )


class VariantResult(Answer):
    """Result of a variant so far."""

    name: str = Field(description="Name of the variant.")
    succeeded: int = Field(ge=0, description="Runs that the values are of.")
    runs: int = Field(ge=1, description="Runs that it has.")
    metrics: tuple[MetricResult, ...] = Field(default=(), description="The objective's metric first.")


class Counts(Answer):
    """Numbers of runs by state."""

    pending: int = Field(default=0, ge=0, description="Not created yet.")
    active: int = Field(default=0, ge=0, description="Created, and not at an end.")
    succeeded: int = Field(default=0, ge=0, description="Trained.")
    failed: int = Field(default=0, ge=0, description="Failed.")

    @property
    def total(self) -> int:
        """All of them."""
        return self.pending + self.active + self.succeeded + self.failed

    @property
    def done(self) -> int:
        """Those that have come to an end, good or bad."""
        return self.succeeded + self.failed


class SweepCost(Answer):
    """Cost of the sweep: the sum over its runs."""

    spent: Amount = Field(default="0.00", description="Dollars, of all runs.")
    per_hour: Amount = Field(default="0.00", description="Dollars per hour that are paid now.")
    budget: str | None = Field(default=None, description="What may be spent: limits.budget.usd.")
    earlier: Amount | None = Field(default=None, description="Dollars of runs that were deleted and made anew.")
    warned_of: str | None = Field(default=None, description="The budget whose end people were warned of.")


class SweepStatus(Conditioned):
    """Status of a TrainingSweep, which Piton writes."""

    plan: str = Field(default="", description="Digest of what the sweep began with; nobody may change that.")
    counts: Counts = Field(default_factory=Counts, description="How many runs there are.")
    done: str = Field(default="", description="Runs that have ended, of all: 3/4.")
    best: str = Field(default="", description="The best variant, and its mean of the objective.")
    baseline: str = Field(default="", description="The variant that the others are compared with.")
    runs: tuple[Row, ...] = Field(default=(), description="The runs, in the order in which they begin.")
    results: tuple[VariantResult, ...] = Field(default=(), description="What each variant has reached so far.")
    accepted: AcceptedSpec | None = Field(
        default=None, description="The spec that was accepted last; it stays in effect while a newer one is refused."
    )
    cost: SweepCost | None = Field(default=None, description="What it costs, as far as prices are known.")
    last_updated_time: AwareDatetime | None = Field(default=None, description="When the runs were last written down.")
