"""Intervals and limits of the core, and the back-off before the next attempt."""

from dataclasses import dataclass

from piton.api.reasons import Reason
from piton.api.status import AttemptStatus, Verdict

GRACE_SECONDS = 100
"""A spot machine goes 120 s after its notice; this leaves time for the notice to travel."""
UNSTARTED_GRACE_SECONDS = 1
"""For a replica whose trainer never began. Not 0: its kubelet still has to stop an image pull or an init container."""


_DOUBLINGS_MAX = 64
"""More than any pace needs to get to its longest wait."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The patience of the core. The defaults suit a cluster; tests and local runs are quicker."""

    backoff_seconds: float = 10.0
    """First wait after a failure; doubles with each one in a row that saved nothing new."""
    backoff_seconds_max: float = 3600.0
    evidence_seconds: float = 90.0
    """Seconds that one replica's crash waits for evidence on the others: a dead node is noticed after 40-50 s, its
    peers fail at once, and a preemption must not be booked as the user's failure."""
    start_seconds: float = 300.0
    """Seconds for which a container may fail to start, its image to be pulled, or its sandbox to be made; then the
    attempt ends, and its node is free during the back-off."""
    refused_image_seconds: float = 90.0
    """The same for an image that has never run, while the registry says that it does not exist or may not be read."""
    stalled_attempts: int = 5
    """Attempts in a row without a newer durable step after which a run is Stalled."""
    doubt_seconds: float = 600.0
    """An attempt that trained for longer, and of which nobody can tell whether it saved, does not count as one of
    them, nor as progress. A limit of the run that ends one later was set by Piton."""
    fails_when_stalled: bool = False
    """True if it has failed then. On a machine without a cluster nothing heals by itself."""
    kept_jobs: int = 3
    """Jobs of ended attempts that stay for a look at their logs."""
    kept_records: int = 20
    """Attempts that the status remembers one by one."""
    progress_seconds: float = 10.0
    """Seconds between two writes of the status for progress alone."""
    look_seconds: float = 4.0
    """Seconds between two looks at an attempt that does not run yet, while nothing says why: a run reports its reason
    within 5 s. Reasons come with an Event or a change of a pod, which are looked at at once."""
    look_seconds_max: float = 120.0
    """The same once a reason is known, or after 20 minutes."""
    refused_seconds_max: float = 120.0
    """Longest time between two tries of what the API server refuses."""
    room_seconds: float | None = None
    """Seconds between two tries of what a ResourceQuota has no room for, where another try is made as soon as it has.
    None: nobody looks at ResourceQuotas, so it is tried again like anything else that is refused."""
    stop_seconds: float = GRACE_SECONDS
    """Seconds that an orderly stop may take; a budget reserves the money for it."""
    queue_seconds: float = 15.0
    """Seconds between two queries for the position in a queue, near its front; an admission is noticed at once."""
    device_taint_seconds: float | None = None
    """For how long a node is tainted whose device was lost; None: Piton writes to no node."""
    stuck_seconds: float = 120.0
    """Seconds after its grace period at which a pod that is still there counts as stuck."""
    after_training_seconds: float | None = None
    """Seconds for which a script may run on after its training. None: under its deadline and its budget alone."""
    rehearses: bool = False
    """True if only the training matters: a script that runs on for longer than that has succeeded."""
    worth_seconds: float = 120.0
    """For how long beyond that a budget has to pay, for an attempt to be worth its start."""

    def look_again_seconds(self, waited_seconds: float) -> float:
        """Return the seconds until the next look at an attempt that has waited this long without a known reason."""
        return min(max(self.look_seconds, waited_seconds / 10), self.look_seconds_max)

    def queue_look_seconds(self, times_as_far: float) -> float:
        """Return the seconds between two queries for a position, so many times as far back as the first places."""
        return min(self.queue_seconds * max(1.0, times_as_far), self.look_seconds_max)

    def try_again_seconds(self, refused_seconds: float) -> float:
        """Return the seconds until the next try of a call that has been refused this long."""
        return min(max(self.look_seconds, refused_seconds / 4), self.refused_seconds_max)


def is_ordered(record: AttemptStatus) -> bool:
    """True if the attempt ended as Piton wished: its end says nothing of the next one's. Others may do it again."""
    return record.verdict is Verdict.STOPPED and record.reason is not Reason.JOB_SUSPENDED


def delay_seconds(last: AttemptStatus, fruitless_attempts: int, timing: Timing) -> float:
    """Seconds between the end of the last attempt and the start of the next.

    A preemption that saved something is followed at once, as is one by itself: the machine went, nothing is wrong with
    the run. Whatever repeats itself without progress waits longer each time.
    """
    if is_ordered(last):
        return 0.0
    repeats = fruitless_attempts
    if last.verdict is Verdict.PREEMPTED:
        repeats -= 1
    if last.verdict is Verdict.USER_FAILURE:
        repeats = max(repeats, 1)
    if repeats <= 0:
        return 0.0
    return float(min(timing.backoff_seconds * 2.0 ** min(repeats - 1, _DOUBLINGS_MAX), timing.backoff_seconds_max))
