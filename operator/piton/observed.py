"""Everything that a decision may look at. Adapters fill these values in; rules see nothing else."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from fractions import Fraction

from piton.api.spec import Meta, Reclaim, Spec, Stage
from piton.api.status import RunStatus
from piton.contract.manifest import Complete
from piton.contract.progress import Progress
from piton.contract.termination import Termination


class ReplicaState(StrEnum):
    """The state of one replica (a pod, or a local process group)."""

    WAITING = "Waiting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, kw_only=True)
class NodePoolSeen:
    """A NodePool of Karpenter's, from the view of one of its nodes."""

    name: str
    drain_seconds: float | None = None
    """Its terminationGracePeriod: how long after its notice a node may still have pods; None: for ever."""
    is_spot: bool = False
    """True if this node is a spot machine."""


@dataclass(frozen=True, kw_only=True)
class ClusterMessage:
    """A message of the cluster about a job or a replica: a condition, the state of a container, or an event."""

    reason: str
    """In one word: Unschedulable, FailedMount, Pulling."""
    message: str = ""
    source: str = ""
    host: str = ""
    """The component that says it, such as kubelet or karpenter, and the node on which that runs; empty: not known."""
    is_warning: bool = False
    first_time: datetime | None = None
    last_time: datetime | None = None
    """The times of the first and of the latest report. Without the latter it is a current state."""


@dataclass(frozen=True, kw_only=True)
class ReplicaSeen:
    """One replica of an attempt, with all the evidence that it carries."""

    name: str
    uid: str = ""
    state: ReplicaState
    exit_code: int | None = None
    began_at: datetime | None = None
    """The earliest time at which its trainer may have begun, by the clock of the control plane."""
    end_unknown: bool = False
    """Nobody saw its trainer end: the machine has rebooted, or its container runtime has lost the container."""
    ended_at: datetime | None = None
    ended_by_itself: bool = False
    """Its trainer was over, beyond doubt, before anybody could have told it to end: it counts as its own end."""
    termination: Termination | None = None
    over_time: bool = False
    """Ended by the kubelet at its activeDeadlineSeconds."""
    refused: str | None = None
    """The kubelet's reason for not accepting the pod; no container of it has ever run."""
    out_of_memory: bool = False
    """Killed by the kernel at its own limit, or evicted for more than it asked for."""
    default_limit: str | None = None
    """Its limit of memory, or of the disk that it ran out of, where a LimitRange of the namespace has set it."""
    out_of_disk: bool = False
    """Evicted for more of its node's disk than it may use, or asked for."""
    failed_beside: str | None = None
    """Cause for which its pod counts as failed although its trainer exited 0: the containers, if any failed."""
    outlives_trainer: bool = False
    """The trainer has ended, and a container beside it has not: the pod keeps its machine."""
    deleting: bool = False
    grace_seconds: int | None = None
    """Grace period of its deletion, whoever deletes it; None while nobody does."""
    never_started: bool = False
    """The trainer has not begun: it waits for a machine, a volume, an image or an init container."""
    disruption: str | None = None
    """The cluster's reason for taking the pod: a DisruptionTarget reason, Evicted, NodeShutdown."""
    waiting: str | None = None
    """The cluster's reason for a pod that does not start: ImagePullBackOff, Unschedulable and its message."""
    words: tuple[ClusterMessage, ...] = ()
    """Messages about the waiting replica, including its events if they were read."""
    words_unread: bool = False
    """True if its events were not read: a pass reads those of a few."""
    cannot_start: bool = False
    """`waiting` is the kubelet's word that an image or the container cannot be made. Failed: it never began."""
    program: str | None = None
    """The first word of its trainer's command; None: not known."""
    init_failure: str | None = None
    """The init container that failed, with its exit code and last words. The trainer has never begun."""
    short_of_memory: bool = False
    """Evicted from a node short of memory without a request, or killed by the kernel without a limit of its own."""
    node: str | None = None
    zone: str | None = None  # of that node
    node_gone: bool = False
    """Its machine does not exist any more, or has not answered for too long."""
    silent: str | None = None
    """Its machine does not answer, with many others, and is waited for: what is seen of that, and until when."""
    node_reclaimed: bool = False
    """Its machine is announced to be taken, or at least cordoned."""
    leaving: str | None = None
    """The sign that the node is about to go. Pods with do-not-disrupt are not evicted from it."""
    node_pool: NodePoolSeen | None = None
    """Karpenter's NodePool that its machine is from, as far as that is known."""
    placed_at: datetime | None = None
    """The time at which it got its node; the node is paid for from then on."""
    node_price: Fraction | None = None
    """Dollars per hour of the whole machine, where somebody knows."""
    node_share: Fraction = Fraction(1)
    """The part of the machine that is its own."""

    @property
    def has_run(self) -> bool:
        """True if its trainer has begun."""
        if self.never_started or self.cannot_start or self.state is ReplicaState.WAITING:
            return False
        return self.state is not ReplicaState.FAILED or self.exit_code is not None

    @property
    def is_told_to_end(self) -> bool:
        """True if it is being deleted, and its trainer ends for that, or may have."""
        return self.deleting and not self.ended_by_itself

    @property
    def ended(self) -> bool:
        """True if it has stopped for good: nothing of it can write any more, or the fence keeps it out."""
        return self.state in (ReplicaState.SUCCEEDED, ReplicaState.FAILED) or self.node_gone


@dataclass(frozen=True, kw_only=True)
class LostReplica:
    """A replica that the status knows of and that does not exist any more. Its peers, and a successor, may."""

    name: str
    node: str
    running_since: datetime | None = None
    """Since when it was known to run; None: it waited, when it was last seen."""
    node_gone: bool = False
    """Its machine does not exist any more either, or has not answered for too long."""
    node_reclaimed: bool = False
    """Its machine is announced to be taken."""
    disruption: str | None = None
    """The reason for its end, if a watch has seen it. It improves the message of a verdict, and never decides it."""
    notice: str | None = None
    """The announcement of the node's end, if a watch has seen it: a taint. It improves the message only."""


@dataclass(frozen=True, kw_only=True)
class LeavingPod:
    """A pod that is being deleted. Its kubelet, which answers, is to end it; or only a finalizer keeps the object."""

    name: str
    uid: str
    node: str | None
    not_ready: str = ""
    """The words of a node that says of itself that it is not ready."""
    leaves_by: datetime
    """The end of its grace period, by the clock of the API server. A kubelet that was silent begins the period anew."""
    finalizers: tuple[str, ...] = ()
    has_ended: bool = False
    """True if no container of it runs any more: only a finalizer keeps it."""
    unshared_claims: tuple[str, ...]
    """Claims that it mounts, and that pods on several nodes may not mount at once, or that are gone."""
    is_node_closed: bool
    """True if its node takes neither a pod like this one nor one of the next attempt: it is cordoned, or tainted."""


class JobState(StrEnum):
    """The state in the job's own conditions; never believed without evidence."""

    ACTIVE = "Active"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, kw_only=True)
class AttemptSeen:
    """One attempt's job and replicas as they are now."""

    number: int
    stage: Stage = Stage.TRAIN
    """The stage for which its job was created."""
    evaluated_step: int | None = None
    """Step of the checkpoint that its job names for an evaluation."""
    uid: str = ""
    job: JobState | None = JobState.ACTIVE
    """None: the job's object is gone, but replicas of it are left."""
    ours: bool = True
    """False: an object of this name exists that does not belong to the run."""
    deleting: bool = False
    deleted_at: datetime | None = None
    """Of a job that is being deleted and still there: since when, by the clock of the API server."""
    suspended: bool = False
    """Its spec.runPolicy.suspend is true. Piton never sets it: another client has, and the job's pods are deleted."""
    message: str = ""
    """The message of the job's condition about its end."""
    words: tuple[ClusterMessage, ...] = ()
    """The reason for which the job's controller cannot create pods: its events about a quota or a policy."""
    words_unknown: bool = False
    """True if nobody can tell what is said of it and its replicas: Events could not be read for long."""
    replicas: tuple[ReplicaSeen, ...] = ()
    lost: tuple[LostReplica, ...] = ()
    leaving: tuple[LeavingPod, ...] = ()
    """Pods that are being deleted, also those whose trainer has ended; and its job, while a finalizer keeps that."""
    expected_replicas: int = 1

    @property
    def running(self) -> bool:
        """True if any replica runs."""
        return any(r.state is ReplicaState.RUNNING for r in self.replicas)

    @property
    def formed(self) -> bool:
        """True if all replicas have run, as far as can be seen now."""
        return sum(r.has_run for r in self.replicas) >= self.expected_replicas

    @property
    def placed(self) -> bool:
        """True if all replicas have a machine."""
        return len(self.replicas) >= self.expected_replicas and all(r.node or r.has_run for r in self.replicas)

    @property
    def incomplete(self) -> bool:
        """True if a replica has not been created yet, or waits."""
        waits = any(r.state is ReplicaState.WAITING for r in self.replicas)
        return self.job is JobState.ACTIVE and (waits or len(self.replicas) < self.expected_replicas)

    @property
    def over(self) -> bool:
        """True if nothing of it is left that could run: its replicas ended, and no more will be made."""
        may_grow = self.job is JobState.ACTIVE and not self.deleting
        is_whole = bool(self.replicas) and len(self.replicas) >= self.expected_replicas
        return all(r.ended for r in self.replicas) and (is_whole or not may_grow)

    @property
    def lingers(self) -> bool:
        """True if a pod runs on after its trainer has ended, and nobody has deleted it."""
        return any(r.outlives_trainer and not (r.deleting or r.node_gone) for r in self.replicas)

    @property
    def left_alone(self) -> bool:
        """True if a pod has its machine, and nobody has deleted it."""
        return self.lingers or any(not (r.deleting or r.ended) for r in self.replicas)

    @property
    def stranded(self) -> bool:
        """True if a replica still stands in the books of a machine that is gone; nobody but us will take it off."""
        return any(r.node_gone and r.state in (ReplicaState.WAITING, ReplicaState.RUNNING) for r in self.replicas)


@dataclass(frozen=True, kw_only=True)
class VolumeSeen:
    """The checkpoint volume."""

    exists: bool
    name: str = ""
    ours: bool = True
    """False: a claim of the name that we would use belongs to somebody else."""
    requested: str = ""
    """The size that the claim asks for, where Piton has made it. So are the two that follow."""
    storage_class: str = ""
    access_modes: tuple[str, ...] = ()
    made: bool = False
    """True if Piton has made it; the user has brought it otherwise."""
    made_for: str = ""
    """The name of the run for which Piton has made the claim that the user brings."""
    reclaim: Reclaim = Reclaim.RETAIN
    """The value in the spec that is in effect."""
    owned: bool = False
    """True if the run is its owner, so that the garbage collector deletes it with the run."""
    of_earlier_run: bool = False
    """It is not ours, and was made for an earlier run of this name, whose checkpoints it keeps."""
    unknown: bool = False
    """True if it could not be read for long: nobody can tell whether it exists, and whose it is."""


@dataclass(frozen=True, kw_only=True)
class ReservationSeen:
    """The run's Workload, by which it has quota from a queue of Kueue's or waits for it."""

    unreadable: str = ""
    """The reason why nobody can tell: Kueue's objects cannot be read. All else says nothing then."""
    exists: bool = False
    ours: bool = True
    """False: a Workload of this name exists that does not belong to the run."""
    deleting: bool = False
    queue: str = ""
    """The LocalQueue that it is in."""
    asked: str = ""
    """The digest of what it asks for."""
    held: bool = False
    """Kueue counts the run's pods against the quota, also while it wants the quota back."""
    admitted: bool = False
    """Kueue lets the run start."""
    evicted: bool = False
    """Kueue wants the quota back."""
    finished: bool = False
    """Somebody has declared it finished: Kueue will never admit it again."""
    ready: bool = False
    """Kueue was told that all pods run."""
    position: int | None = None
    """Place in the ClusterQueue, 1 is next; None where it is not known."""
    message: str = ""
    """Kueue's reason for waiting, or for an eviction."""

    @property
    def usable(self) -> bool:
        """True if pods of the run may run."""
        return self.exists and self.ours and self.admitted and not (self.evicted or self.finished or self.deleting)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One run, as it is now."""

    meta: Meta
    spec: Spec | None
    """The spec in effect: the user's, or the one that was accepted before while the user's is refused."""
    problems: tuple[str, ...] = ()
    """Messages on why the user's is refused."""
    meanwhile: str = ""
    """The parts of a spec that is refused that act all the same, and those that do not yet."""
    status: RunStatus
    volume: VolumeSeen
    attempts: tuple[AttemptSeen, ...] = ()
    jobs_unknown: str = ""
    """The reason why nobody can tell which jobs exist: the cluster does not serve PyTorchJobs, for now or for ever."""
    progress: Progress | None = None
    """The newest report of the current attempt, if it has reported."""
    silent_seconds: float | None = None
    """Seconds since the newest report of the current attempt, or since anybody listens; None: no reports are wanted."""
    complete: Complete | None = None
    """The final manifest, where the world can read it."""
    reservation: ReservationSeen | None = None
    """The quota that it has from a queue, or waits for; None: it is in no queue, or this world has none."""
    unread: str = ""
    """The parts that could not be read for long, and why; the rest is known."""

    def attempt(self, number: int) -> AttemptSeen | None:
        """The attempt of that number, if anything of it exists."""
        return next((seen for seen in self.attempts if seen.number == number), None)
