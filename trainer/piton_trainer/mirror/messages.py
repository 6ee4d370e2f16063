"""Messages between the trainer and the mirror process. This module needs neither torch nor boto3."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from piton.contract.assignment import Encryption, Objective, SavePolicy
from piton_trainer.checkpoint.format.fence import Holder
from piton_trainer.mirror.keys import BucketPrefix
from piton_trainer.runtime.child_process import Failed
from piton_trainer.s3 import Tuning


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Timeouts and back-off, in seconds."""

    backoff: float = 1.0
    """Delay after the first failure; it doubles with each further one."""
    backoff_max: float = 60.0
    restore: float = 600.0
    """Timeout for a bucket that does not answer, if the volume has no checkpoint to resume from."""
    finish: float = 300.0
    """Timeout for the remaining uploads when the run is finished: time without progress."""
    behind: float = 300.0
    """Time without progress after which people are told that nothing is mirrored."""
    stop: float = 10.0
    """Timeout for the remaining uploads when asked to stop: the node will be gone, and the volume has everything."""


@dataclass(frozen=True, kw_only=True)
class MirrorSettings:
    """Settings of the mirror process: the first message that it receives."""

    place: BucketPrefix
    directory: Path
    attempt: int | None
    """None if not run by Piton."""
    owner: str
    """Name of the owner in the bucket. A process that replaces a dead one has the same."""
    fence: Holder
    """Holder of the fence on the volume."""
    run: str | None
    """Uid of the run."""
    durable_step: int | None
    """Newest step that earlier attempts have reported as durable."""
    is_empty: bool
    """True if the volume had no checkpoint when the attempt began."""
    policy: SavePolicy
    objective: Objective | None
    tuning: Tuning
    encryption: Encryption | None
    patience: Timeouts


@dataclass(frozen=True, kw_only=True)
class Restore:
    """Request to fetch a checkpoint newer than this step of the volume. Answered by `RestoreDone` or `Failed`."""

    newer_than: int | None
    """None if the volume has no good checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Committed:
    """Notification that this step is durable on the volume. Answered by `MirrorState`, at once and on each change."""

    step: int


@dataclass(frozen=True, kw_only=True)
class RestoreDone:
    """Answer that this step is on the volume now; None: there was nothing newer."""

    step: int | None


@dataclass(frozen=True, kw_only=True)
class MirrorState:
    """State of the mirror."""

    known: int | None
    """Newest step that the process was notified of."""
    mirrored: int | None
    """Newest step in the bucket."""
    is_idle: bool
    """True if no upload is left for the known step."""
    is_over: bool
    """True if the mirror has stopped: the bucket or the volume belongs to another process."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Number of failures so far, by class."""
    successes: int = 0
    """Number of times that a checkpoint was uploaded, or all were found to be in the bucket."""
    trouble: str | None = None
    """Words of the last failure; None after a success."""
    is_refused: bool = False
    """True if the last upload failed for a reason that only the user can change."""
    refusal: str | None = None
    """Reason for which the bucket or the volume belongs to another process, if it does."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Progress of a transfer. Sent while there is progress, at most twice a second."""

    is_restore: bool
    """True for a download, False for an upload."""
    step: int
    done: int
    """Bytes at the destination."""
    total: int
    bytes_per_second: float
    """Rate over the network."""


@dataclass(frozen=True, kw_only=True)
class LogMessage:
    """A message for the log of the trainer."""

    sentence: str


class MirrorProcess(Protocol):
    """Process at the other end of a connection."""

    line: Connection

    def leave(self, seconds: float) -> None:
        """Close the connection; kill the process after this many seconds."""
        ...

    def kill(self) -> None:
        """Kill the process at once."""
        ...


Request = Restore | Committed
Answer = RestoreDone | MirrorState | Transfer | LogMessage | Failed
