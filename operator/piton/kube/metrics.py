"""The operator's Prometheus metrics. They listen: what to count is decided by the core, and nobody here is asked.

Fleet-wide counters have bounded labels and start at zero. Series about one run are made when they are scraped, from
the runs' newest statuses, so they go when the run goes. docs/metrics.md names all of them.
"""

import platform
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from piton import __version__
from piton.api.spec import Stage
from piton.api.status import ProgressStatus, RunStatus, Verdict
from piton.api.status_base import Phase
from piton.contract import InputError
from piton.core.increments import DISTURBANCES, REASONS, End, Increments
from piton.kube.events import Key
from piton.kube.listening import EVERYWHERE
from piton.ports import Conflict, PortError
from piton.sweep.status import SweepStatus

RUN = "run"
JOB = "job"
SWEEP = "sweep"
_CONTROLLERS = (RUN, JOB, SWEEP)
"""Label values of `controller`: those for TrainingRuns and TrainingSweeps, and the bundled one for PyTorchJobs."""
_FAULTS = ("conflict", "api", "bug")
_ANSWERS = ("200", "400", "401", "403", "413", "429", "503")
"""Label values of `status`: the answers of the progress server to reports."""
_RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_RECOVERY_BUCKETS = (5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 1800, 3600)
_OF_RUN = ("namespace", "run")


class Registry(CollectorRegistry):
    """A registry without the `_created` series that the library adds to each counter: nothing here reads them."""

    def collect(self) -> Iterator[Metric]:
        """Collect for the HTTP server."""
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class OperatorMetrics:
    """Everything that one operator process counts. It has a registry of its own, never the library's global one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._runs = _Runs()
        registry.register(self._runs)
        build = Info("piton_build", "Version of the operator.", registry=registry)
        build.info({"version": __version__, "python": platform.python_version()})
        self._fleet(registry)
        self._process(registry)

    def _fleet(self, registry: CollectorRegistry) -> None:
        """Create the metrics of runs."""
        self._started = Counter(
            "piton_attempts_started", "Attempts whose job was created.", ["stage"], registry=registry
        )
        self._attempts = Counter(
            "piton_attempts", "Attempts that have ended.", ["stage", "verdict", "reason"], registry=registry
        )
        self._preemptions = Counter("piton_preemptions", "Attempts that lost a machine.", ["cause"], registry=registry)
        self._failures = Counter(
            "piton_failures",
            "Attempts that failed, by whose failure it was: the user's program's or the infrastructure's.",
            ["verdict", "cause"],
            registry=registry,
        )
        self._lost_steps = Counter("piton_lost_steps", "Steps that were trained again.", registry=registry)
        self._recovery = Histogram(
            "piton_recovery_seconds",
            "From the first sign of an attempt's end to the first step that the next one reported.",
            ["cause"],
            buckets=_RECOVERY_BUCKETS,
            registry=registry,
        )
        for verdict in DISTURBANCES:
            self._recovery.labels(verdict)
        for stage in Stage:
            self._started.labels(stage)
            for verdict, reasons in REASONS.items():
                for reason in reasons:
                    self._ended(End(verdict=verdict, reason=reason, stage=stage), times=0)

    def _process(self, registry: CollectorRegistry) -> None:
        """Create the metrics of the operator process."""
        self._reconcile = Histogram(
            "piton_reconcile_seconds",
            "One pass over one object.",
            ["controller"],
            buckets=_RECONCILE_BUCKETS,
            registry=registry,
        )
        self._errors = Counter(
            "piton_reconcile_errors", "Passes that failed.", ["controller", "fault"], registry=registry
        )
        self._leads = Gauge("piton_leader", "1 on the operator that works, 0 on one that stands by.", registry=registry)
        self._depth = Gauge("piton_queue_depth", "Objects that wait for a pass.", ["controller"], registry=registry)
        self._reports = Counter("piton_reports", "Reports of trainers, by answer.", ["status"], registry=registry)
        self._connections = Gauge(
            "piton_report_connections", "Connections of trainers that are open.", registry=registry
        )
        for status in _ANSWERS:
            self._reports.labels(status)
        for controller in _CONTROLLERS:
            self._reconcile.labels(controller)
            self._depth.labels(controller)
            for fault in _FAULTS:
                self._errors.labels(controller, fault)

    def count(self, happened: Increments) -> None:
        """Count what a pass has brought about. Called once the status that says so was written."""
        for stage in happened.started:
            self._started.labels(stage).inc()
        self._lost_steps.inc(happened.lost_steps)
        for end in happened.ends:
            self._ended(end)
        if happened.recovery is not None:
            self._recovery.labels(happened.recovery.verdict).observe(happened.recovery.seconds)

    def _ended(self, end: End, *, times: int = 1) -> None:
        self._attempts.labels(end.stage, end.verdict, end.reason).inc(times)
        if end.verdict is Verdict.PREEMPTED:
            self._preemptions.labels(end.reason).inc(times)
        if end.verdict in (Verdict.INFRASTRUCTURE, Verdict.USER_FAILURE):
            self._failures.labels(end.verdict, end.reason).inc(times)

    def show_leader(self, leads: bool) -> None:
        """Show whether this process works."""
        self._leads.set(float(leads))

    def show(self, run: Key, status: RunStatus) -> None:
        """Show this status of a run in the gauges."""
        self._runs.show(run, status)

    def forget(self, run: Key) -> None:
        """The run is gone, and with it its series."""
        self._runs.rows.pop(run, None)

    def show_sweep(self, sweep: Key, status: SweepStatus) -> None:
        """Show this status of a sweep in the gauges."""
        self._runs.sweeps[sweep] = status.phase

    def forget_sweep(self, sweep: Key) -> None:
        """The sweep is gone."""
        self._runs.sweeps.pop(sweep, None)

    def watch_queue(self, controller: str, depth: Callable[[], float]) -> None:
        """Ask for the depth of the controller's queue at each scrape."""
        self._depth.labels(controller).set_function(depth)

    def watch_connections(self, count: Callable[[], float]) -> None:
        """Ask for the number of connections to the progress server at each scrape."""
        self._connections.set_function(count)

    def count_report(self, status: int) -> None:
        """Count the answer to a report. May be called from any thread."""
        self._reports.labels(str(status)).inc()

    def count_refusal(self, controller: str) -> None:
        """Count a pass in which the API server refused something: the pass itself goes on, and says so."""
        self._errors.labels(controller, "api").inc()

    @contextmanager
    def reconciling(self, controller: str) -> Iterator[None]:
        """Measure one pass, however it ends."""
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            self._errors.labels(controller, _fault(error)).inc()
            raise
        finally:
            self._reconcile.labels(controller).observe(time.monotonic() - began)


def _fault(error: Exception) -> str:
    if isinstance(error, Conflict):
        return "conflict"
    return "api" if isinstance(error, PortError) else "bug"


class _Runs(Collector):
    """The runs and sweeps as gauges. Of a status only the values are kept: there may be thousands."""

    def __init__(self) -> None:
        self.rows: dict[Key, tuple[Phase, tuple[float | None, ...]]] = {}
        self.sweeps: dict[Key, Phase] = {}

    def show(self, run: Key, status: RunStatus) -> None:
        """Keep the values of the series about one run."""
        self.rows[run] = status.phase, tuple(read(status) for _, read in _PER_RUN.values())

    def collect(self) -> Iterator[Metric]:
        """Called by the server's thread; the copy is made in one step."""
        rows = list(self.rows.items())
        yield _phases("piton_runs", "TrainingRuns, by phase.", [phase for _, (phase, _) in rows])
        yield _phases("piton_sweeps", "TrainingSweeps, by phase.", list(self.sweeps.values()))
        for column, (name, (help_text, _)) in enumerate(_PER_RUN.items()):
            family = GaugeMetricFamily(name, help_text, labels=_OF_RUN)
            for run, (_, values) in rows:
                if (value := values[column]) is not None:
                    family.add_metric(run, value)
            yield family


def _phases(name: str, help_text: str, phases: list[Phase]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=["phase"])
    count = Tally(phases)
    for phase in Phase:
        family.add_metric([phase], count[phase])
    return family


_PER_RUN: dict[str, tuple[str, Callable[[RunStatus], float | None]]] = {
    "piton_run_step": ("Steps trained, as far as reported.", lambda run: _progress(run).step),
    "piton_run_progress_ratio": (
        "Part of the training that is done.",
        lambda run: _ratio(_progress(run).progress_percentage),
    ),
    "piton_run_remaining_seconds": (
        "Training time that is left.",
        lambda run: _progress(run).estimated_remaining_seconds,
    ),
    "piton_run_checkpoint_step": (
        "Step of the newest durable checkpoint.",
        lambda run: run.checkpoint.step if run.checkpoint else None,
    ),
    "piton_run_checkpoint_timestamp_seconds": (
        "When the operator learned of the newest durable checkpoint.",
        lambda run: run.checkpoint.time.timestamp() if run.checkpoint else None,
    ),
    "piton_run_attempt": ("Highest attempt number so far.", lambda run: run.attempt),
    "piton_run_preemptions": ("Attempts that lost a machine.", lambda run: run.preemptions),
    "piton_run_failures": ("Attempts that the user's program failed.", lambda run: run.failures),
    "piton_run_infrastructure_failures": (
        "Attempts that the cluster failed.",
        lambda run: run.infrastructure_failures,
    ),
    "piton_run_cost_dollars": (
        "What the run has cost, as of its status' last write.",
        lambda run: float(run.cost.spent) if run.cost else None,
    ),
    "piton_run_cost_dollars_per_hour": (
        "What is paid for the run now.",
        lambda run: float(run.cost.per_hour) if run.cost else None,
    ),
    "piton_run_budget_dollars": (
        "What the run may cost.",
        lambda run: float(run.cost.budget) if run.cost and run.cost.budget else None,
    ),
    "piton_run_lost_steps": ("Steps that were trained again.", lambda run: run.lost.steps),
}
"""Series about one run: what the status says, so they are right also after a restart of the operator."""


def _progress(status: RunStatus) -> ProgressStatus:
    return status.progress or ProgressStatus()


def _ratio(percentage: int | None) -> float | None:
    return None if percentage is None else percentage / 100


@asynccontextmanager
async def served(registry: CollectorRegistry, port: int | None) -> AsyncIterator[None]:
    """Serve /metrics meanwhile, from a thread of its own: a loop that is stuck can still be looked at.

    Raises:
        ValueError: the port is taken.
    """
    if port is None:
        yield
        return
    try:
        server, thread = prometheus.start_http_server(port, EVERYWHERE, registry=registry)
    except OSError as error:
        raise InputError(f"metrics cannot be served on port {port}: {error}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
