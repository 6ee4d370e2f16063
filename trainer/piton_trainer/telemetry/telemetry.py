"""Receivers of the training's events: the operator, Prometheus, the log and the mirror. Rank 0 alone has any.

Training tells them and waits for none of them; what they say back is a wish.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from piton.contract import startup_phases
from piton.contract.progress import (
    MIRROR_LAG_SECONDS,
    MIRROR_LAG_STEPS,
    MIRROR_RESTORE_BYTES,
    MIRROR_RESTORED_BYTES,
    Progress,
    StopAt,
)
from piton.contract.termination import Outcome
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.format.fence import Fence
from piton_trainer.checkpoint.save_interval import Choice
from piton_trainer.checkpoint.volume_health import VolumeHealth
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig
from piton_trainer.mirror.client import MirrorClient
from piton_trainer.mirror.keys import BucketPrefix
from piton_trainer.mirror.messages import Timeouts, Transfer
from piton_trainer.telemetry.console import ConsoleReporter, transfer_line
from piton_trainer.telemetry.operator_client import Reporter
from piton_trainer.termination import print_status

if TYPE_CHECKING:  # only those who serve metrics need the library
    from piton_trainer.telemetry.prometheus import Exporter


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """Those who are there."""

    reporter: Reporter | None = None
    exporter: "Exporter | None" = None
    console: ConsoleReporter | None = None
    mirror: MirrorClient | None = None

    @property
    def checkpoint_requested(self) -> bool:
        """True if somebody wants a checkpoint that has not been made yet."""
        return self.reporter is not None and self.reporter.checkpoint_requested

    @property
    def stop_requested(self) -> bool:
        """True if somebody wants the training to stop."""
        return self.reporter is not None and self.reporter.stop_requested

    @property
    def stop_at(self) -> StopAt | None:
        """Until when the operator lets the training go on, as far as it has said so."""
        return None if self.reporter is None else self.reporter.stop_at

    @property
    def lag(self) -> dict[str, float]:
        """The lag of the mirror, as metrics, if there is a mirror."""
        lag = None if self.mirror is None else self.mirror.lag()
        return {} if lag is None else {MIRROR_LAG_STEPS: lag.steps, MIRROR_LAG_SECONDS: lag.seconds}

    def watch(self, watch: VolumeHealth) -> None:
        """Here is how the volume is doing."""
        if self.exporter is not None:
            self.exporter.watch(watch)

    def started(self, seconds: Mapping[str, float]) -> None:
        """The first step is done; so long it took to get there, by phase."""
        if self.exporter is not None:
            self.exporter.started(seconds)
        if self.console is not None:
            print_status(f"started in {startup_phases.sentence(seconds)}")

    def stepped(self, *, seconds: float, waited_seconds: float) -> None:
        """A step is done."""
        if self.exporter is not None:
            self.exporter.stepped(seconds=seconds, waited_seconds=waited_seconds)

    def record_stall(self, *, seconds: float) -> None:
        """A save was made, or begun; training waited for it so long."""
        if self.exporter is not None:
            self.exporter.record_stall(seconds=seconds)
        if self.reporter is not None:
            self.reporter.checkpoint_saved()

    def saved(self, saved: Saved, *, timestamp: float) -> None:
        """A checkpoint has become durable."""
        if self.exporter is not None:
            self.exporter.saved(saved, timestamp=timestamp)
        if self.mirror is not None:
            self.mirror.committed(saved.step)

    def interval_changed(self, choice: Choice) -> None:
        """The interval between saves was chosen anew."""
        for listener in (self.exporter, self.console):
            if listener is not None:
                listener.interval_changed(choice)

    def due(self, now: float) -> "list[Reporter | Exporter | ConsoleReporter]":
        """Those for whom it is time for a report."""
        listeners = (self.reporter, self.exporter, self.console)
        return [listener for listener in listeners if listener is not None and listener.is_due(now)]

    def finish_mirror(self, is_told_to_stop: Callable[[], bool]) -> bool:
        """Wait until the mirror has the last checkpoint; False: told to stop before.

        Raises:
            NotMirrored: it gets nowhere.
        """
        return self.mirror is None or self.mirror.finish(is_told_to_stop)

    def end_mirror(self, outcome: Outcome) -> None:
        """Wait for the mirror, as long as this kind of end allows."""
        if self.mirror is not None:
            self.mirror.end(outcome)

    def close(self, last: Progress | None) -> None:
        """Send the last report, if there is one, and let everybody go."""
        if self.reporter is not None:
            self.reporter.close(last)
        if self.exporter is not None:
            self.exporter.close()


def build_telemetry(config: Config, *, world_size: int, fence: Fence, clock: Clock) -> Telemetry:
    """Everybody whom rank 0's configuration names.

    Raises:
        BadConfig: there cannot be the mirror that it asks for.
    """
    reporter = None if config.server is None else Reporter(config.server, interval_seconds=config.report_seconds)
    moved = partial(_moved, reporter, clock)
    mirror = None if config.assignment.mirror is None else _mirror(config, fence, clock, tell=moved)
    return Telemetry(
        reporter=reporter, exporter=_exporter(config, world_size, mirror), console=ConsoleReporter(), mirror=mirror
    )


def _moved(reporter: Reporter | None, clock: Clock, transfer: Transfer) -> None:
    """A checkpoint that is waited for has come further. Before the first step, nobody else reports."""
    print_status(transfer_line(transfer))
    if reporter is not None and transfer.is_restore:
        metrics = {MIRROR_RESTORED_BYTES: transfer.done, MIRROR_RESTORE_BYTES: transfer.total}
        now = clock.now().isoformat(timespec="seconds")
        reporter.post(Progress(updated=now, metrics=metrics), clock.monotonic())


def _mirror(config: Config, fence: Fence, clock: Clock, *, tell: Callable[[Transfer], None]) -> MirrorClient:
    policy = config.assignment.mirror
    assert policy is not None
    if find_spec("boto3") is None:  # an image of the user's own need not have it
        raise BadConfig("checkpoint.mirror needs boto3, which is not installed here")
    try:
        place = BucketPrefix.parse(policy.uri, config.namespace, config.run)
    except ValueError as error:
        raise BadConfig(f"checkpoint.mirror: {error}") from error
    return MirrorClient(config, place, policy, fence=fence, clock=clock, patience=Timeouts(), tell=tell)


def _exporter(config: Config, world_size: int, mirror: MirrorClient | None) -> "Exporter | None":
    if config.metrics_port is None:
        return None
    try:
        from piton_trainer.telemetry.prometheus import Exporter
    except ImportError as error:  # an image of the user's own need not have prometheus-client
        print_status(f"metrics are not served: {error}")
        return None
    lag = None if mirror is None else mirror.lag
    exporter = Exporter(world_size=world_size, interval_seconds=config.report_seconds, lag=lag)
    exporter.serve(config.metrics_port)
    return exporter
