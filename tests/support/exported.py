"""Every metric that the operator and the trainer export, from registries in which everything has a value."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric

from piton.api.reasons import Reason
from piton.api.status import CheckpointStatus, CostStatus, ProgressStatus, Verdict
from piton.contract.progress import Progress
from piton.core.increments import End, Increments
from piton.kube.metrics import OperatorMetrics, Registry
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.save_interval import Choice
from piton_trainer.checkpoint.volume_health import VolumeHealth
from piton_trainer.clock import Clock
from piton_trainer.mirror import ERROR_CLASSES, Lag
from piton_trainer.telemetry.prometheus import Exporter
from support.builders import NOW, a_record, a_status

TARGET_LABELS = frozenset({"namespace", "pod", "node", "run", "attempt"})
"""What a scraper adds: whose metrics they are."""


@dataclass(frozen=True)
class Exported:
    """One family."""

    name: str
    """As it is written in a query; of a histogram without `_bucket`, `_sum` or `_count`."""
    kind: str
    labels: frozenset[str]
    samples: frozenset[str]
    """Names that a query may ask for."""


def operator() -> list[Exported]:
    meter = OperatorMetrics(Registry())
    progress = ProgressStatus(step=1, total_steps=2, progress_percentage=50, estimated_remaining_seconds=1)
    saved, cost = CheckpointStatus(step=1, time=NOW, attempt=1), CostStatus(budget="250")
    status = a_status(a_record(1), progress=progress, checkpoint=saved, cost=cost)
    meter.show(("team", "ragcun"), status)
    meter.count(Increments(ends=(End(verdict=Verdict.PREEMPTED, reason=Reason.NODE_GONE),)))
    return _described(meter.registry.collect())


def trainer() -> list[Exported]:
    return _described(a_trainers_registry().collect())


def a_trainers_registry() -> CollectorRegistry:
    """What rank 0 shows in the middle of its work."""
    counts = dict.fromkeys(ERROR_CLASSES, 1)
    exporter = Exporter(
        world_size=1, interval_seconds=0, lag=lambda: Lag(steps=4, seconds=2.5), mirror_errors=lambda: counts
    )
    report = Progress(
        updated="",
        percentage=50,
        remaining_seconds=1,
        step=1,
        total_steps=2,
        resumed_from=0,
        metrics={"loss": 1.0, "tokens_per_second": 9.0},
    )
    exporter.report(report, now=0.0)
    exporter.on_start({"imports": 2.5})
    exporter.on_step(seconds=0.2, waited_seconds=0.1)
    exporter.on_save(stall_seconds=1)
    exporter.on_interval(Choice(seconds=100, cost_seconds=1, durable_seconds=2, between_seconds=3600))
    exporter.on_saved(Saved(step=1, folder=Path(), size=1, free=9), timestamp=1)
    exporter.on_setup(VolumeHealth(Clock(), patience_seconds=1))
    return exporter.registry


def _described(families: Iterable[Metric]) -> list[Exported]:
    return [_describe(family) for family in families]


def _describe(family: Metric) -> Exported:
    assert family.samples, f"{family.name} has no value here; give it one"
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    return Exported(
        name=family.name + suffix,
        kind="gauge" if family.type == "info" else family.type,
        labels=frozenset(label for sample in family.samples for label in sample.labels) - {"le"},
        samples=frozenset(sample.name for sample in family.samples),
    )
