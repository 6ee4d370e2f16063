"""Typed models of a TrainingSweep's spec, which the user writes; the status is in `status.py`.

The template and the patches are kept as written: each resulting run is checked as a whole, by the same rules as a
hand-written run.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from piton.api.fields import DNS_LABEL, Duration, Model
from piton.api.pod_template import Policy
from piton.api.spec import Budget

RUNS_MAX = 200
"""Maximum number of runs of a sweep; its status contains a row for each of them."""

VariantName = Annotated[str, StringConstraints(pattern=DNS_LABEL, max_length=40)]
Values = Annotated[tuple[Any, ...], Field(min_length=1, max_length=64)]
Metric = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./@-]+$", max_length=64)]


class TemplateMeta(Model):
    """Labels and annotations of the runs. Their names are the sweep's doing."""

    labels: Mapping[str, str] = Field(default_factory=dict, description="Labels of each run.")
    annotations: Mapping[str, str] = Field(default_factory=dict, description="Annotations of each run.")


class RunTemplate(Model):
    """The TrainingRun that the variants are made from."""

    metadata: TemplateMeta = Field(default_factory=TemplateMeta, description="Labels and annotations of the runs.")
    spec: Mapping[str, Any] = Field(description="The spec of a TrainingRun.")


class Variant(Model):
    """One way in which the template is changed."""

    name: VariantName = Field(description="Its name, part of the names of its runs.")
    patch: Mapping[str, Any] = Field(
        default_factory=dict,
        description="Merged into the template's spec: mappings key by key, lists as a whole.",
    )
    remove: Annotated[tuple[str, ...], Field(max_length=64)] = Field(
        default=(), description="Paths of the template's spec that it does without, such as checkpoint.mirror."
    )


class SweepLimits(Model):
    """Limits of the sweep, regardless of the progress of its runs."""

    deadline: Duration | None = Field(
        default=None, description="Time from the sweep's creation; each run gets what is left of it as its own."
    )
    budget: Budget | None = Field(default=None, description="Money, of all runs together.")


class SweepSpec(Model):
    """Specification of a sweep. Only suspend, parallelism and limits may be changed later."""

    suspend: bool = Field(default=False, description="Save, stop and hold all runs; false goes on from there.")
    template: RunTemplate = Field(description="The TrainingRun that the variants are made from.")
    variants: Annotated[tuple[Variant, ...], Field(max_length=64)] = Field(
        default=(), description="Named changes of the template; the first is the baseline. None trains the template."
    )
    matrix: Annotated[Mapping[str, Values], Field(max_length=8)] = Field(
        default_factory=dict,
        description="Paths in a run's spec, e.g. trainer.config.learningRate, and the values to try: every variant"
        " with every combination.",
    )
    folds: int | None = Field(
        default=None, ge=2, le=100, description="Each variant once per fold: sets trainer.config.folds and fold."
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=100)] = Field(
        default=(), description="Each variant once per seed: sets trainer.config.seed."
    )
    baseline: VariantName | None = Field(
        default=None, description="The variant that the others are compared with; the first unless it is named."
    )
    metrics: Annotated[tuple[Metric, ...], Field(max_length=8)] = Field(
        default=(), description="Reported metrics to tabulate besides the objective's, as of each run's last report."
    )
    parallelism: int = Field(default=1, ge=1, le=RUNS_MAX, description="How many runs may be under way at once.")
    placement: Policy | None = Field(
        default=None,
        description="Pack fills one node with runs before the next, Spread avoids that two share one; none leaves it to"
        " the scheduler.",
    )
    on_failure: Literal["Continue", "Stop"] = Field(
        default="Continue", description="Stop: once a run has failed the others save and stop, and no more begin."
    )
    limits: SweepLimits = Field(default_factory=SweepLimits, description="Where the sweep ends.")
