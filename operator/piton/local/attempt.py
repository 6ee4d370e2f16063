"""One attempt on this machine: its replicas, the actions on them, and the evidence of their end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path

from piton.contract.termination import Termination
from piton.local.processes import Replica, kill
from piton.observed import AttemptSeen, JobState, ReplicaSeen, ReplicaState


@dataclass(kw_only=True)
class LocalAttempt:
    """Local equivalent of a PyTorchJob and its pods."""

    number: int
    termination_logs: Sequence[Path]
    begun: datetime | None = None
    """Time from which the attempt has the machine."""
    price: Fraction | None = None
    """Dollars per hour of this machine, where the user says so."""
    share: Fraction = Fraction(1)
    """The part of this machine that each replica has."""
    replicas: tuple[Replica, ...] = ()
    why_not_started: str = ""
    deleting: bool = False
    """Piton has ordered its end."""
    _is_stopping: bool = False
    _reclaimed: bool = False
    _gone: bool = False
    _kill_at: datetime | None = None
    _ended: dict[str, datetime] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """True if anything of it still runs, as of the last poll."""
        return len(self._ended) < len(self.replicas)

    @property
    def undisturbed(self) -> bool:
        """True if it runs and nobody has told it to stop: a machine that can be lost."""
        return self.alive and not self._is_stopping and not self._gone

    @property
    def ended_by_itself(self) -> bool:
        """True if everything of it has ended, and nobody had told it to."""
        return bool(self.replicas) and not self.alive and not self._is_stopping and not self._gone

    def seconds(self, now: datetime) -> float:
        """Seconds since its start."""
        return (now - self.begun).total_seconds() if self.begun else 0.0

    def poll(self, now: datetime) -> bool:
        """Check the processes and return True if one has ended. Send SIGKILL if the notice period is over."""
        ended = [r for r in self.replicas if r.name not in self._ended and r.exit_code is not None]
        self._ended.update({replica.name: now for replica in ended})
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self.kill()
        return bool(ended)

    def stop(self, now: datetime, grace_seconds: float) -> None:
        """Stop the attempt: SIGTERM now, SIGKILL after the grace period."""
        self.deleting = True
        self._stop_by(now, grace_seconds)

    def reclaim(self, now: datetime, notice_seconds: float) -> None:
        """Announce the loss of its machines: SIGTERM now, SIGKILL after the notice period."""
        self._reclaimed = True
        self._stop_by(now, notice_seconds)

    def _stop_by(self, now: datetime, seconds: float) -> None:
        """Once only: a second SIGTERM would cut torchrun's own patience short."""
        if self._is_stopping or self._gone:
            return
        self._is_stopping = True
        self._kill_at = now + timedelta(seconds=seconds)
        for replica in self.replicas:
            replica.terminate()

    def lose(self) -> None:
        """Simulate the immediate loss of its machines."""
        self._gone = True
        self.kill()

    def kill(self, name: str | None = None) -> None:
        """Send SIGKILL to all replicas, or to one replica."""
        kill([replica for replica in self.replicas if name in (None, replica.name)])

    def failed_log(self) -> Path | None:
        """Return the log of the replica that failed first."""
        failed = [r for r in self.replicas if r.name in self._ended and r.exit_code]
        return min(failed, key=lambda replica: self._ended[replica.name]).log if failed else None

    def seen(self) -> AttemptSeen | None:
        """Return the view of it for the core; None if it was stopped before it could start."""
        if self.why_not_started:
            waiting = ReplicaSeen(
                name="trainer-0", state=ReplicaState.WAITING, waiting=self.why_not_started, cannot_start=True
            )
            return None if self.deleting else AttemptSeen(number=self.number, replicas=(waiting,))
        return AttemptSeen(
            number=self.number,
            job=JobState.ACTIVE,
            deleting=self.deleting,
            replicas=tuple(self._replica(index, replica) for index, replica in enumerate(self.replicas)),
            expected_replicas=len(self.replicas),
        )

    def _replica(self, index: int, replica: Replica) -> ReplicaSeen:
        ended_at = self._ended.get(replica.name)
        if ended_at is None:
            return ReplicaSeen(
                name=replica.name,
                state=ReplicaState.RUNNING,
                deleting=self._is_stopping,
                node_reclaimed=self._reclaimed,
                placed_at=self.begun,
                node_price=self.price,
                node_share=self.share,
            )
        return ReplicaSeen(
            name=replica.name,
            state=ReplicaState.FAILED if replica.exit_code else ReplicaState.SUCCEEDED,
            exit_code=replica.exit_code,
            ended_at=ended_at,
            termination=_termination(self.termination_logs[index]),
            deleting=self._is_stopping,
            node_reclaimed=self._reclaimed,
            node_gone=self._gone,
            placed_at=self.begun,
            node_price=self.price,
            node_share=self.share,
        )


def _termination(path: Path) -> Termination | None:
    try:
        return Termination.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
