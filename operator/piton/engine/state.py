"""Input and output of the rules: the values that `decide` works with."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property

from piton.engine import pods as pods_of
from piton.engine.job import Body, Job
from piton.engine.pods import Pod
from piton.engine.status import JobStatus, Tally


class ObjectKind(StrEnum):
    """Kinds of objects in a decision."""

    POD = "Pod"
    SERVICE = "Service"
    JOB = "PyTorchJob"


@dataclass(frozen=True, kw_only=True)
class Create:
    """Create this object; an existing object of the job also counts as success."""

    kind: ObjectKind
    body: Body


@dataclass(frozen=True, kw_only=True)
class Delete:
    """Delete the object of that name, only if it has this uid."""

    kind: ObjectKind
    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class Service:
    """One service of the job."""

    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Actions that the rule requests."""

    rule: str
    status: JobStatus
    creates: tuple[Create, ...] = ()
    deletes: tuple[Delete, ...] = ()
    look_again_seconds: float | None = None
    """Seconds until the decision changes without an event; None: it does not."""
    news: bool = False
    """True if the status differs from the previous one."""

    @property
    def changes(self) -> bool:
        """True if anything has to be written."""
        return self.news or bool(self.creates) or bool(self.deletes)


@dataclass(frozen=True, kw_only=True)
class ObservedJob:
    """All that a rule may look at."""

    job: Job
    pods: tuple[Pod, ...] = ()
    services: tuple[Service, ...] = ()
    now: datetime
    status: JobStatus = field(default_factory=JobStatus)
    """The status as the rules before have left it."""

    @cached_property
    def tallies(self) -> dict[str, Tally]:
        """The numbers of each type."""
        job = replace(self.job, status=self.status)
        return {replicas.kind: pods_of.tally(job, replicas, self.pods) for replicas in self.job.replicas}

    def seconds_since(self, moment: datetime) -> float:
        """Seconds between that moment and now."""
        return (self.now - moment) / timedelta(seconds=1)
