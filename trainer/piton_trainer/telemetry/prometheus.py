"""Rank 0's Prometheus metrics. They listen: training neither waits for them nor ends because of them.

What costs nothing is measured at every step. What has to be read off a device is taken from the reports, which have
read it anyway. Which run and attempt this is says the pod's labels; a scraper adds them. docs/metrics.md names all.
"""

import logging
import platform
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from wsgiref.simple_server import WSGIServer

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from piton import __version__
from piton.contract.progress import Progress
from piton.contract.startup_phases import is_start_metric
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.save_interval import Choice
from piton_trainer.checkpoint.volume_health import VolumeHealth
from piton_trainer.mirror import Lag
from piton_trainer.telemetry.callbacks import Callback

logger = logging.getLogger(__name__)

_EVERYWHERE = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - Prometheus asks from outside the pod
"""Every address, of IPv4 and of IPv6: a pod of an IPv6-only cluster has no other."""

METRICS_MAX = 32
"""Names of reported metrics that get a series; the first ones, in the order of the alphabet."""
_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_CHECKPOINT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)

_CHOICE = (
    ("checkpoint_interval_seconds", "seconds", "Time between saves, where it is chosen by what they cost."),
    ("checkpoint_cost_seconds", "cost_seconds", "Training time that a save costs, as far as the interval knows."),
    ("checkpoint_durable_seconds", "durable_seconds", "From the beginning of a save to where it counts; likewise."),
    ("interruption_interval_seconds", "between_seconds", "Expected time between two interruptions; likewise."),
)
"""Name, field of a `Choice`, help."""


class Registry(CollectorRegistry):
    """A registry without the `_created` series that the library adds to each counter: nothing here reads them."""

    def collect(self) -> Iterator[Metric]:
        """Collect for the HTTP server."""
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class Exporter(Callback):
    """Rank 0's metrics, from reports and from the events of steps and saves."""

    def __init__(
        self,
        *,
        world_size: int,
        interval_seconds: float,
        lag: Callable[[], Lag | None] | None = None,
        mirror_errors: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        self.registry = registry = Registry()
        self.report_every_seconds = interval_seconds
        self._server: tuple[WSGIServer, threading.Thread] | None = None
        self._newest = _Newest(world_size, lag, mirror_errors)
        registry.register(self._newest)
        build = Info("piton_trainer_build", "Versions of the trainer.", registry=registry)
        build.info({"version": __version__, "torch": torch.__version__, "python": platform.python_version()})
        self._step_seconds = Histogram(
            "piton_trainer_step_seconds",
            "One step on rank 0, from the wait for its batch to its end; without saving.",
            buckets=_STEP_BUCKETS,
            registry=registry,
        )
        self._data_wait = Counter(
            "piton_trainer_data_wait_seconds", "Time that steps have waited for their batch.", registry=registry
        )
        self._start_seconds = Gauge(
            "piton_trainer_start_seconds",
            "Where the time went from the start of rank 0's process to the end of its first step.",
            ["phase"],
            registry=registry,
        )
        self._checkpoint_seconds = Histogram(
            "piton_trainer_checkpoint_seconds",
            "How long training stood still for a save.",
            buckets=_CHECKPOINT_BUCKETS,
            registry=registry,
        )

    def on_start(self, phases: Mapping[str, float]) -> None:
        """Export how long the start took, by phase."""
        for phase, seconds in phases.items():
            self._start_seconds.labels(phase).set(seconds)

    def on_step(self, *, seconds: float, waited_seconds: float) -> None:
        """Count a step."""
        self._step_seconds.observe(seconds)
        self._data_wait.inc(waited_seconds)

    def on_save(self, *, stall_seconds: float) -> None:
        """Count the time for which training waited."""
        self._checkpoint_seconds.observe(stall_seconds)

    def on_saved(self, saved: Saved, *, timestamp: float) -> None:
        """Export the newest checkpoint."""
        self._newest.checkpoint = saved.step, saved.size, timestamp
        self._newest.free = saved.free

    def on_setup(self, volume: VolumeHealth) -> None:
        """Export the state of the volume, too."""
        self._newest.volume = volume

    def on_interval(self, choice: Choice) -> None:
        """Export the chosen interval."""
        self._newest.choice = choice

    def on_report(self, progress: Progress) -> None:
        """Export the newest report."""
        self._newest.progress = progress

    def serve(self, port: int) -> None:
        """Serve /metrics from a daemon thread. A port that is taken costs the metrics and nothing else."""
        try:
            self._server = start_http_server(port, _EVERYWHERE, registry=self.registry)
        except OSError as error:
            logger.warning("metrics are not served on port %d: %s", port, error)

    def on_end(self, progress: Progress | None) -> None:  # noqa: ARG002 - of the event
        """Release the port."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()


class _Newest(Collector):
    """The newest report and checkpoint as gauges; what is not known has no series."""

    def __init__(
        self,
        world_size: int,
        lag: Callable[[], Lag | None] | None,
        mirror_errors: Callable[[], Mapping[str, int]] | None,
    ) -> None:
        self.progress: Progress | None = None
        self.checkpoint: tuple[int, int, float] | None = None
        self.choice: Choice | None = None
        self.free: int | None = None
        self.volume: VolumeHealth | None = None
        self._world_size = world_size
        self._lag = lag
        self._mirror_errors = mirror_errors

    def collect(self) -> Iterator[Metric]:
        """Called by the server's thread, which only reads."""
        said, saved = self.progress or Progress(updated=""), self.checkpoint or (None, None, None)
        yield _gauge("world_size", "Ranks of this attempt.", self._world_size)
        yield _gauge("step", "Steps trained, over all attempts.", said.step)
        yield _gauge("planned_steps", "Steps to train, over all attempts.", said.total_steps)
        yield _gauge(
            "progress_ratio",
            "Part of the training that is done.",
            None if said.percentage is None else said.percentage / 100,
        )
        yield _gauge("remaining_seconds", "Training time that is left, at the pace so far.", said.remaining_seconds)
        yield _gauge("resumed_from_step", "Step that this attempt started from.", said.resumed_from)
        yield _gauge("checkpoint_step", "Step of the newest checkpoint of this attempt.", saved[0])
        yield _gauge("checkpoint_bytes", "Its size.", saved[1])
        yield _gauge("checkpoint_timestamp_seconds", "When it became durable.", saved[2])
        yield from self._chosen()
        yield from self._volume()
        lag = None if self._lag is None else self._lag()
        yield _gauge("mirror_lag_steps", "Steps that the mirror is behind the volume.", lag.steps if lag else None)
        yield _gauge("mirror_lag_seconds", "Since the oldest save that the mirror lacks.", lag.seconds if lag else None)
        errors = CounterMetricFamily(
            "piton_trainer_mirror_errors", "Failures of the mirror, by what may help.", labels=["class"]
        )
        for kind, number in ({} if self._mirror_errors is None else self._mirror_errors()).items():
            errors.add_metric([kind], number)
        yield errors
        reported = GaugeMetricFamily("piton_trainer_metric", "What the training reports of itself.", labels=["name"])
        for name in sorted(name for name in said.metrics if not is_start_metric(name))[:METRICS_MAX]:
            reported.add_metric([name], said.metrics[name])
        yield reported

    def _chosen(self) -> Iterator[Metric]:
        """The interval that `checkpoint.every: auto` has come to, and what it was chosen from."""
        for name, field, help_text in _CHOICE:
            value = None if self.choice is None else getattr(self.choice, field)
            yield _gauge(name, help_text, value)

    def _volume(self) -> Iterator[Metric]:
        volume = self.volume
        yield _gauge(
            "checkpoint_volume_free_bytes", "Free bytes before the newest save, beside what is kept.", self.free
        )
        stuck = None if volume is None else volume.stuck_seconds
        yield _gauge("checkpoint_stuck_seconds", "Since the first save that failed; 0 when saves succeed.", stuck)
        skipped = CounterMetricFamily("piton_trainer_checkpoint_skipped", "Saves that could not be made.")
        if volume is not None:
            skipped.add_metric([], volume.skipped)
        yield skipped


def _gauge(name: str, help_text: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(f"piton_trainer_{name}", help_text)
    if value is not None:
        family.add_metric([], value)
    return family
