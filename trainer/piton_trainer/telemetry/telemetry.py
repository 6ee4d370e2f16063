"""The events of a training, for callbacks and the mirror; and the requests of the operator. Rank 0 alone has any.

Training announces its events here, and waits for none of the receivers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from piton.contract.progress import (
    MIRROR_LAG_SECONDS,
    MIRROR_LAG_STEPS,
    MIRROR_RESTORE_BYTES,
    MIRROR_RESTORED_BYTES,
    MIRROR_STEP,
    Progress,
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
from piton_trainer.telemetry.callbacks import Callback, Callbacks
from piton_trainer.telemetry.console import ConsoleReporter, transfer_line
from piton_trainer.telemetry.operator_client import OperatorClient, StopBy
from piton_trainer.termination import print_status

if TYPE_CHECKING:  # the library is needed only where metrics are served
    from piton_trainer.telemetry.prometheus import Exporter


class Telemetry:
    """Callbacks, requests of the operator, and the mirror, as one. Without arguments it has none of them."""

    def __init__(
        self,
        callbacks: Iterable[Callback] = (),
        *,
        operator: OperatorClient | None = None,
        mirror: MirrorClient | None = None,
    ) -> None:
        self.mirror = mirror
        self.callbacks = Callbacks(callbacks)
        self.operator = operator

    @property
    def checkpoint_requested(self) -> bool:
        """True if the operator requests a checkpoint that has not been made yet."""
        return self.operator is not None and self.operator.checkpoint_requested

    @property
    def stop_requested(self) -> bool:
        """True if the operator requests that the training stops."""
        return self.operator is not None and self.operator.stop_requested

    @property
    def stop_by(self) -> StopBy | None:
        """Moment until which the operator lets the training go on; None if it has not answered with one."""
        return None if self.operator is None else self.operator.stop_by

    @property
    def report_failure(self) -> str | None:
        """Reason for which the newest report did not arrive; None if it did."""
        return None if self.operator is None else self.operator.failure

    @property
    def mirror_metrics(self) -> dict[str, float]:
        """Metrics of the mirror: its lag in steps and seconds, and its newest step; empty without a mirror."""
        if self.mirror is None or (lag := self.mirror.lag()) is None:
            return {}
        metrics: dict[str, float] = {MIRROR_LAG_STEPS: lag.steps, MIRROR_LAG_SECONDS: lag.seconds}
        step = self.mirror.mirrored_step
        return metrics if step is None else {**metrics, MIRROR_STEP: step}

    @property
    def mirror_refusal(self) -> str | None:
        """Reason why nothing is mirrored although it should be; None if something is."""
        return None if self.mirror is None else self.mirror.refusal

    def set_up(self, volume: VolumeHealth) -> None:
        """Announce the state of the checkpoint volume."""
        self.callbacks.call(Callback.on_setup, volume)

    def started(self, phases: Mapping[str, float]) -> None:
        """Announce that the first step is done, with the seconds that it took to get there, by phase."""
        self.callbacks.call(Callback.on_start, phases)

    def stepped(self, *, seconds: float, waited_seconds: float) -> None:
        """Announce that a step is done."""
        self.callbacks.call(Callback.on_step, seconds=seconds, waited_seconds=waited_seconds)

    def noticed(self, *, step: int) -> None:
        """Announce that the training is told to stop after this step, and is saved next."""
        self.callbacks.notice(step=step)

    def save_began(self, *, stall_seconds: float) -> None:
        """Announce that a save was begun; training waited this long for it."""
        self.callbacks.call(Callback.on_save, stall_seconds=stall_seconds)

    def saved(self, saved: Saved, *, timestamp: float) -> None:
        """Announce that a checkpoint has become durable."""
        self.callbacks.call(Callback.on_saved, saved, timestamp=timestamp)
        if self.mirror is not None:
            self.mirror.committed(saved.step)

    def interval_changed(self, choice: Choice) -> None:
        """Announce the interval between saves."""
        self.callbacks.call(Callback.on_interval, choice)

    def report_if_due(self, now: float, make: Callable[[], Progress]) -> bool:
        """Make a report for the callbacks that want one; return False if there are none."""
        due = self.callbacks.due(now)
        if due:
            self.callbacks.report(due, make(), now)
        return bool(due)

    def finish_mirror(self, is_stop_requested: Callable[[], bool]) -> bool:
        """Wait until the mirror has the last checkpoint; return False if told to stop before.

        Raises:
            NotMirrored: the upload makes no progress.
        """
        return self.mirror is None or self.mirror.finish(is_stop_requested)

    def end_mirror(self, outcome: Outcome) -> None:
        """Wait for the mirror, as long as this kind of end allows."""
        if self.mirror is not None:
            self.mirror.end(outcome)

    def close(self, last: Progress | None) -> None:
        """Announce the end, with the last report, if there is one."""
        self.callbacks.call(Callback.on_end, last)


def build_telemetry(
    config: Config, *, world_size: int, fence: Fence, clock: Clock, callbacks: Sequence[Callback] = ()
) -> Telemetry:
    """Build rank 0's telemetry: Piton's own callbacks by the configuration, and those of the user.

    Raises:
        BadConfig: the mirror that the configuration asks for cannot be used.
    """
    server, every = config.server, config.report_seconds
    operator = None if server is None else OperatorClient(server, clock=clock, interval_seconds=every)
    moved = partial(_moved, operator, clock)
    mirror = None if config.assignment.mirror is None else _mirror(config, fence, clock, report=moved)
    own = [operator, _exporter(config, world_size, mirror), ConsoleReporter()]
    present = [callback for callback in own if callback is not None]
    return Telemetry([*present, *callbacks], operator=operator, mirror=mirror)


def _moved(operator: OperatorClient | None, clock: Clock, transfer: Transfer) -> None:
    """Report the progress of a transfer that is waited for. Before the first step there are no other reports."""
    print_status(transfer_line(transfer))
    if operator is not None and transfer.is_restore:
        metrics = {MIRROR_RESTORED_BYTES: transfer.done, MIRROR_RESTORE_BYTES: transfer.total}
        now = clock.now().isoformat(timespec="seconds")
        operator.report(Progress(updated=now, metrics=metrics), clock.monotonic())


def _mirror(config: Config, fence: Fence, clock: Clock, *, report: Callable[[Transfer], None]) -> MirrorClient:
    policy = config.assignment.mirror
    assert policy is not None
    if find_spec("boto3") is None:  # an image of the user's own need not have it
        raise BadConfig("checkpoint.mirror needs boto3, which is not installed here")
    try:
        place = BucketPrefix.parse(policy.uri, config.namespace, config.run, config.session)
    except ValueError as error:
        raise BadConfig(f"checkpoint.mirror: {error}") from error
    return MirrorClient(config, place, policy, fence=fence, clock=clock, patience=Timeouts(), report=report)


def _exporter(config: Config, world_size: int, mirror: MirrorClient | None) -> "Exporter | None":
    if config.metrics_port is None:
        return None
    try:
        from piton_trainer.telemetry.prometheus import Exporter
    except ImportError as error:  # an image of the user's own need not have prometheus-client
        print_status(f"metrics are not served: {error}")
        return None
    lag, errors = (None, None) if mirror is None else (mirror.lag, mirror.errors)
    exporter = Exporter(world_size=world_size, interval_seconds=config.report_seconds, lag=lag, mirror_errors=errors)
    exporter.serve(config.metrics_port)
    return exporter
