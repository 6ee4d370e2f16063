"""A PyTorchJob's status, and the rules by which its conditions change; those of pkg/util/status.go of v1.9, exactly.

    (nothing) --> Created --> Running <--> Restarting     Failed is the end: nothing changes a failed job's conditions.
                                 |             |          Succeeded ends as well; `decide` sees to that.
                                 +--> Suspended, Succeeded, Failed

The list is in the order of the last change, and the printer column shows the last one, whatever its status.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self


class ConditionType(StrEnum):
    """The types of a job's conditions. There is no observedGeneration."""

    CREATED = "Created"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


REASON_RESUMED = "PyTorchJobResumed"
"""The only reason that is not made of its condition's type."""


def reason_of(kind: ConditionType) -> str:
    """The reason that goes with a type."""
    return f"PyTorchJob{kind}"


@dataclass(frozen=True, kw_only=True)
class JobCondition:
    """One condition."""

    type: str
    status: bool
    reason: str
    message: str
    updated: datetime | None
    changed: datetime | None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """From the API's words."""
        return cls(
            type=str(body.get("type", "")),
            status=body.get("status") == "True",
            reason=str(body.get("reason", "")),
            message=str(body.get("message", "")),
            updated=moment(body.get("lastUpdateTime")),
            changed=moment(body.get("lastTransitionTime")),
        )

    @property
    def content(self) -> tuple[str, bool, str, str]:
        """All of it but its times."""
        return self.type, self.status, self.reason, self.message

    def to_body(self) -> dict[str, Any]:
        """In the API's words."""
        return _without_none(
            {
                "type": self.type,
                "status": str(self.status),
                "reason": self.reason,
                "message": self.message,
                "lastUpdateTime": text(self.updated),
                "lastTransitionTime": text(self.changed),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Numbers of replicas of a type by state. Those that wait for a machine are in none of the numbers."""

    active: int = 0
    succeeded: int = 0
    failed: int = 0
    selector: str = ""

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """Read the tally from the API's form, in which counts of zero are absent."""
        return cls(
            active=int(body.get("active") or 0),
            succeeded=int(body.get("succeeded") or 0),
            failed=int(body.get("failed") or 0),
            selector=str(body.get("selector") or ""),
        )

    def to_body(self) -> dict[str, Any]:
        """Return the tally in the API's form."""
        found = {
            "active": self.active,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "selector": self.selector,
        }
        return {name: value for name, value in found.items() if value}

    @property
    def begun(self) -> int:
        """Number of replicas that have run, according to this tally."""
        return self.active + self.succeeded + self.failed


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """The whole status."""

    conditions: tuple[JobCondition, ...] = ()
    replicas: Mapping[str, Tally] = field(default_factory=dict)
    started: datetime | None = None
    completed: datetime | None = None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """From the API's words."""
        return cls(
            conditions=tuple(JobCondition.read(found) for found in body.get("conditions") or ()),
            replicas={kind: Tally.read(found or {}) for kind, found in (body.get("replicaStatuses") or {}).items()},
            started=moment(body.get("startTime")),
            completed=moment(body.get("completionTime")),
        )

    def to_body(self) -> dict[str, Any]:
        """In the API's words."""
        return _without_none(
            {
                "conditions": [condition.to_body() for condition in self.conditions],
                "replicaStatuses": {kind: tally.to_body() for kind, tally in self.replicas.items()},
                "startTime": text(self.started),
                "completionTime": text(self.completed),
            }
        )

    def condition(self, kind: ConditionType) -> JobCondition | None:
        """The condition of that type."""
        return next((condition for condition in self.conditions if condition.type == kind), None)

    def is_true(self, kind: ConditionType) -> bool:
        """True if that condition is there and true."""
        found = self.condition(kind)
        return found is not None and found.status

    @property
    def finished(self) -> bool:
        """True if the job has come to its end."""
        return self.is_true(ConditionType.SUCCEEDED) or self.is_true(ConditionType.FAILED)

    def tally(self, kind: str) -> Tally:
        """The numbers of that type."""
        return self.replicas.get(kind, Tally())

    def put(
        self, kind: ConditionType, message: str, *, now: datetime, status: bool = True, reason: str | None = None
    ) -> Self:
        """The status with that condition, where the rules let it in."""
        news = JobCondition(
            type=kind, status=status, reason=reason or reason_of(kind), message=message, updated=now, changed=now
        )
        old = self.condition(kind)
        if self.is_true(ConditionType.FAILED):
            return self
        if old is not None and (old.status, old.reason) == (news.status, news.reason):
            return self
        if old is not None and old.status == news.status:
            news = replace(news, changed=old.changed)
        return replace(self, conditions=(*_beside(self.conditions, kind), news))


_RIVALS = {ConditionType.RUNNING: ConditionType.RESTARTING, ConditionType.RESTARTING: ConditionType.RUNNING}
"""Of these two only the newer one is kept."""


def _beside(conditions: tuple[JobCondition, ...], kind: ConditionType) -> tuple[JobCondition, ...]:
    """The other conditions, as they are once one of that type comes in."""
    others = [c for c in conditions if c.type not in (kind, _RIVALS.get(kind))]
    if kind in (ConditionType.SUCCEEDED, ConditionType.FAILED):
        others = [replace(c, status=False) if c.type == ConditionType.RUNNING else c for c in others]
    return tuple(others)


def moment(words: str | None) -> datetime | None:
    """A time of the API's."""
    return datetime.fromisoformat(words) if words else None


def text(time: datetime | None) -> str | None:
    """A time in the API's words: whole seconds, UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if time else None


def _without_none(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}
