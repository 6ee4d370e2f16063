"""Requests that the API server of a fake world does not carry out: once, or whenever they come, for a while."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import UnionType

from piton.api.status import RunStatus
from piton.core.effects import (
    AddFinalizer,
    CreateVolume,
    DeleteRun,
    Effect,
    LeaveQueue,
    OwnVolume,
    RemoveFinalizer,
    RemoveReplica,
    ReportPodsReady,
    RequestQuota,
    ReturnQuota,
    StartAttempt,
    StopAttempt,
    is_aside,
    name_of,
)
from piton.ports import Conflict, PortError, Refused, Unavailable

STATUSES = "put statuses"
REQUESTS: Mapping[str, type | UnionType] = {
    "create claims": CreateVolume,
    "patch claims": OwnVolume,
    "create jobs": StartAttempt,
    "delete jobs": StopAttempt,
    "delete pods": RemoveReplica,
    "patch runs": AddFinalizer | RemoveFinalizer,
    "delete runs": DeleteRun,
    "create workloads": RequestQuota,
    "patch workloads": ReturnQuota | ReportPodsReady,
    "delete workloads": LeaveQueue,
    STATUSES: RunStatus,
}
"""What an operator asks of the API server for a run, by verb and kind."""
TIME_OUT, FORBIDDEN = "504 Timeout", "403 Forbidden"
"""After a time-out the request may have been carried out; here it always was."""
ANSWERS: Mapping[str, type[PortError]] = {
    "500 InternalError": Unavailable,
    "409 Conflict": Conflict,
    "429 TooManyRequests": Unavailable,
    TIME_OUT: Unavailable,
    FORBIDDEN: Refused,
}
_TAKES_AWAY = RemoveFinalizer | OwnVolume | DeleteRun | RemoveReplica


@dataclass
class Tries:
    """When a request was made that was denied, in each pass since."""

    first: datetime
    last: datetime
    is_aside: bool
    """True if it is not made in each pass, though it is wanted."""


@dataclass
class Denials:
    """What is denied, and what an operator did about it."""

    effects_until_refusal: int | None = None
    """So many effects from now the API server refuses one: a quota, a policy, a webhook that is down."""
    answers: dict[str, str] = field(default_factory=dict)
    """By request, what it always gets."""
    tries: dict[str, Tries] = field(default_factory=dict)
    """By the name of the effect and its reason."""
    passed_at: datetime | None = None
    """When the last pass began."""
    has_undone: bool = False
    """True if an effect of this pass was not carried out."""
    after_undone: list[Effect] = field(default_factory=list)
    """Effects that take something away, carried out after one before them was not."""

    def begin_pass(self, now: datetime) -> None:
        self.tries = {
            name: tries for name, tries in self.tries.items() if tries.is_aside or tries.last == self.passed_at
        }
        self.has_undone, self.passed_at = False, now

    def carry_out(self, request: Effect | RunStatus, act: Callable[[], None], now: datetime) -> None:
        """Carry the request out, or deny it."""
        name, aside = "status", False
        if not isinstance(request, RunStatus):
            name, aside = f"{name_of(request)} {request.reason}", is_aside(request)
        try:
            self._deny(request, act)
            self._do(request, act)
        except PortError:
            self.has_undone = True
            self.tries.setdefault(name, Tries(first=now, last=now, is_aside=aside)).last = self.passed_at or now
            raise
        self.tries.pop(name, None)

    def _do(self, request: Effect | RunStatus, act: Callable[[], None]) -> None:
        act()
        if self.has_undone and isinstance(request, _TAKES_AWAY):
            self.after_undone.append(request)

    def _deny(self, request: Effect | RunStatus, act: Callable[[], None]) -> None:
        if self.effects_until_refusal is not None and not isinstance(request, RunStatus):
            self.effects_until_refusal -= 1
            if self.effects_until_refusal <= 0:
                self.effects_until_refusal = None
                raise Refused("admission webhook denied the request")
        for kind, answer in self.answers.items():
            if isinstance(request, REQUESTS[kind]):
                if answer == TIME_OUT:
                    self._do(request, act)
                raise ANSWERS[answer](sentence(kind, answer))


def sentence(request: str, answer: str) -> str:
    return f"{answer}: nobody may {request}"
