"""What the trainer tells the process that mirrors, and what it hears back. Neither side needs torch or boto3 for it."""

from dataclasses import dataclass
from pathlib import Path

from piton.contract.assignment import Objective, SavePolicy
from piton_trainer.checkpoint.format.fence import Holder
from piton_trainer.checkpoint.save.messages import Failed
from piton_trainer.mirror.keys import BucketPrefix
from piton_trainer.s3 import Tuning


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait, in seconds."""

    backoff: float = 1.0
    """After the first failure; twice as long after each further one."""
    backoff_max: float = 60.0
    restore: float = 600.0
    """For a bucket that does not answer, when the volume has nothing to train on from."""
    finish: float = 300.0
    """For the rest, when the run is finished: so long without a byte that comes further."""
    stop: float = 10.0
    """For the rest, when told to stop: the machine is about to go, and the volume has it all."""


@dataclass(frozen=True, kw_only=True)
class MirrorSettings:
    """Whom the process works for. The first thing that it is told."""

    place: BucketPrefix
    directory: Path
    attempt: int | None
    """None outside Piton."""
    owner: str
    """In the bucket. The process that replaces a dead one has the same."""
    fence: Holder
    """On the volume."""
    is_empty: bool
    """The volume had no checkpoint when the attempt began."""
    policy: SavePolicy
    objective: Objective | None
    tuning: Tuning
    patience: Timeouts


@dataclass(frozen=True, kw_only=True)
class Restore:
    """Fetch what is newer in the bucket than this step of the volume. Answered by `RestoreDone` or `Failed`."""

    newer_than: int | None
    """None: the volume has nothing good."""


@dataclass(frozen=True, kw_only=True)
class Committed:
    """This step is durable on the volume. Answered by `MirrorState`, at once and whenever it changes."""

    step: int


@dataclass(frozen=True, kw_only=True)
class RestoreDone:
    """This step is on the volume now; None: there was nothing newer."""

    step: int | None


@dataclass(frozen=True, kw_only=True)
class MirrorState:
    """How far the bucket is."""

    known: int | None
    """The newest step that the process has heard of."""
    mirrored: int | None
    """The newest step in the bucket."""
    is_idle: bool
    """Nothing is left to do for what is known."""
    is_over: bool
    """Nothing will be done any more: the bucket, or the volume, is somebody else's."""
    errors: int
    """Attempts to upload that failed, so far."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """How far a checkpoint is on its way. Said while it comes further, twice a second at most."""

    is_restore: bool
    """Out of the bucket, not into it."""
    step: int
    done: int
    """Bytes that are where they belong."""
    total: int
    bytes_per_second: float
    """Over the network."""


@dataclass(frozen=True, kw_only=True)
class LogMessage:
    """A sentence for the log, which is the trainer's."""

    sentence: str


Order = Restore | Committed
Answer = RestoreDone | MirrorState | Transfer | LogMessage | Failed
