"""Every reason that Piton gives, once: the same word in the condition, the event, the metric's label and the CLI."""

from enum import StrEnum


class Reason(StrEnum):
    """Why something was decided. The string is API: it does not change."""

    # Accepting a run
    ACCEPTED = "Accepted"
    """The spec is understood and nothing in it is impossible."""
    INVALID_SPEC = "InvalidSpec"
    """The spec cannot work as written; nothing is started until it is changed."""
    SPEC_WARNING = "SpecWarning"
    """The spec is accepted, but something in it does not do on some clusters what people expect of it."""
    REFUSED = "Refused"
    """The cluster refused something that Piton asked for: a quota, a policy, missing rights."""

    # An attempt's life
    FIRST_ATTEMPT = "FirstAttempt"
    """Nothing has run yet."""
    NEXT_STAGE = "NextStage"
    """The stage before is finished; the first attempt at the next one follows."""
    RETRYING = "Retrying"
    """The last attempt did not finish its stage; the next one goes on from where it was, in training its checkpoint."""
    WAITING = "Waiting"
    """The next attempt waits for its back-off to pass."""
    STARTING = "Starting"
    """The job exists; no replica has been seen running."""
    PREPARING = "Preparing"
    """The stage Prepare runs, on a machine without a GPU."""
    TRAINING = "Training"
    """Replicas run."""
    EVALUATING = "Evaluating"
    """The stage Evaluate runs; the training is done."""

    # Finished
    FINISHED = "Finished"
    """The trainer proved that it is done: its final manifest."""
    EXITED_ZERO = "ExitedZero"
    """The user's own program, which does not use the library, ended with exit code 0, undisturbed."""

    # Preempted
    DISRUPTED = "Disrupted"
    """A pod carries DisruptionTarget or a kubelet's word (Evicted, NodeShutdown): drained, evicted, reclaimed."""
    NODE_GONE = "NodeGone"
    """The machine is gone or does not answer."""
    NODE_RECLAIMED = "NodeReclaimed"
    """The machine is announced to be taken: a taint, a cordon with a deletion, a spot notice."""

    NODE_POOL_WARNING = "NodePoolWarning"
    """A machine's NodePool would not let its pods save while no operator runs."""

    # Infrastructure
    POD_DELETED = "PodDeleted"
    """SIGTERM from somebody unknown: a pod deleted by hand, or a program that stops itself, which must not loop."""
    JOB_VANISHED = "JobVanished"
    """The job's object disappeared without an order of Piton's."""
    KILLED = "Killed"
    """SIGKILL from outside, and no out-of-memory on record."""
    NO_PROOF = "NoProof"
    """Everything exited 0, but there is no final manifest; that is no success."""
    NAME_TAKEN = "NameTaken"
    """A job of the attempt's name exists and is not this run's; the number is skipped."""
    NO_EVIDENCE = "NoEvidence"
    """The job failed and no pod is left to say why."""
    PRICE_TOO_HIGH = "PriceTooHigh"
    """The machine costs more than capacity.maxPricePerHour."""
    VOLUME_LOST = "VolumeLost"
    """The checkpoint volume could not be written to for too long."""

    # The user's
    CRASHED = "Crashed"
    """The program ended with an error."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The container used more memory than its limit."""
    CANNOT_START = "CannotStart"
    """The container cannot be started: its image cannot be pulled, its command does not exist."""
    BAD_CONFIG = "BadConfig"
    """The recipe refused its settings or data."""
    DIVERGED = "Diverged"
    """The loss is not a finite number."""
    OUT_OF_SPACE = "OutOfSpace"
    """The checkpoint volume is full."""

    # Stopped on order
    SUSPENDED = "Suspended"
    """spec.suspend is true."""
    RESUMED = "Resumed"
    """spec.suspend is false again."""
    DELETED = "Deleted"
    """The run is being deleted."""
    NOT_WANTED = "NotWanted"
    """The spec does not have the stage any more that the attempt is for."""
    NEVER_STARTED = "NeverStarted"
    """The replica's trainer never began, so its pod needs no time to save."""
    FENCED = "Fenced"
    """A newer attempt has taken over."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """limits.deadline has passed."""
    BUDGET_EXCEEDED = "BudgetExceeded"
    """limits.budget is spent, but for what an orderly stop costs, or what is left does not pay for a start."""
    BUDGET_WARNING = "BudgetWarning"
    """limits.budget.warnAt percent of it are spent."""

    # The end of a run
    FAILURE_LIMIT = "FailureLimit"
    """limits.failures failures of the user's code."""
    NO_PROGRESS = "NoProgress"
    """Failures in a row without a newer durable step; paid machines do not loop."""

    # A sweep
    RUNS_FAILED = "RunsFailed"
    """One or more runs of the sweep have failed."""

    # Housekeeping
    TRIMMED = "Trimmed"
    """An old attempt's job is deleted; the status keeps its verdict."""
    NOT_YET = "NotYet"
    """Nothing to say about this yet."""
