"""A trainer in a fake world, and the volume that it saves to."""

from dataclasses import dataclass, field
from datetime import datetime

from piton.api.spec import Stage
from piton.contract.manifest import Complete
from piton.contract.progress import Progress
from piton.contract.termination import Limit, Termination
from piton.core.effects import StartAttempt

WAITING_STARTS = {
    "registry down": "ErrImagePull: unexpected status: 503 Service Unavailable",
    "wrong name": "ErrImagePull: not found",
    "container reserved": "CreateContainerError: name is reserved for another",
    "no sandbox": "",
    "pulling": "",
    "silence": "",
}
"""Starts that are tried until something changes, with the kubelet's words for them."""
ENDED_STARTS = {
    "hook": "StartError: error running prestart hook #0: exit status 1",
    "unknown": "StartError: something that nobody has seen yet",
    "no command": 'StartError: exec: "pyhton": executable file not found in $PATH',
}
"""Starts that end the pod at once."""
START_WORDS = {**WAITING_STARTS, **ENDED_STARTS}


@dataclass
class Trainer:
    """One attempt's single pod, and the process inside it; after a network cut the process lives on without the pod."""

    number: int
    resumed_from: int
    step: int
    owner: int = 0
    placed_at: datetime | None = None
    stage: Stage = Stage.TRAIN
    checkpoint_step: int | None = None
    alive: bool = True
    fenced_at_start: bool = False
    has_sidecar: bool = False
    """A container beside it runs on when it has ended, until its pod is deleted."""
    sidecar_ends_at: datetime | None = None
    is_cordoned: bool = False
    """Its machine takes no new pods, as in an upgrade of nodes. That takes nothing away from it."""
    never_ends: bool = False
    """It does nothing any more, and nobody can kill it: it hangs in a driver."""
    deleted_at: datetime | None = None
    exit_code: int | None = None
    termination: Termination | None = None
    out_of_memory: bool = False
    out_of_disk: bool = False
    waits_for_peer_until: datetime | None = None
    """Until then the other half of its gang has no machine, and nothing is trained."""
    cannot_report: bool = False
    """Its reports do not arrive, as behind a NetworkPolicy. Its last words do."""
    heard_at: datetime | None = None
    """When its newest report arrived, or since when the operator listens."""
    newest_report: Progress | None = None
    """That report; the operator keeps it while no other arrives."""
    busy_until: datetime | None = None
    """Until then it trains, and its step takes that long."""
    silent: bool = False
    """Nothing that becomes of it, or of its pod, is known: its machine does not answer, and does not count as gone."""
    answers_since: datetime | None = None
    """When its machine answered again after a silence."""
    told: StartAttempt | None = None
    start: str | None = None
    """The name of what keeps its container from starting; None: it has begun."""
    begins_at: datetime | None = None
    """The time at which it begins after all."""
    begun_at: datetime | None = None
    """When it did begin."""
    short_of_memory: bool = False
    stops_at: datetime | None = None
    """When a limit is reached, by what it was told at its start: it stops by itself then."""
    limit: Limit = Limit.BUDGET
    """That limit."""
    disruption: str | None = None
    node_gone: bool = False
    deleting: bool = False
    shown: bool = True
    """Whether the pod object still exists."""
    dies_at: datetime | None = None
    goes_at: datetime | None = None
    """When its machine goes, which is announced by a taint and by nothing else."""
    done_at: datetime | None = None
    """When a stage beside the training is finished, or the script after its training."""

    @property
    def pod(self) -> str:
        """The uid of its pod."""
        return f"uid-{self.owner}"

    @property
    def node(self) -> str:
        """Each is on a machine of its own."""
        return f"node-{self.owner}"


@dataclass
class Store:
    """The checkpoint volume."""

    fence: int = 0
    owner: int = 0
    steps: list[tuple[int, int]] = field(default_factory=list)
    complete: Complete | None = None
