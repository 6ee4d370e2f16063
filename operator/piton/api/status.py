"""Typed models of a TrainingRun's status, which Piton writes. Source of the CRD, like `spec.py`.

Conditions are the truth, the phase summarizes them, and decisions are based on the records of the attempts.

A status may be of another version. Fields and words that this one does not know are kept through every write. If an
unknown word may affect the next decision, or a field has another type, `unreadable` reports it.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, Field, StringConstraints

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status_base import Answer, Conditioned, unknown_values
from piton.contract.open_enum import OpenEnum

RETRY_MAX = 64
"""Maximum characters of the annotations piton.dev/retry and piton.dev/save; the rest is cut off."""
REPLICAS_MAX = 512
"""Maximum number of replicas, which is the maximum number of nodes."""


Amount = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?$")]
"""Dollars as a decimal number, used in calculations."""


class Verdict(OpenEnum):
    """Cause of the end of an attempt."""

    FINISHED = "Finished"
    PREEMPTED = "Preempted"
    INFRASTRUCTURE = "Infrastructure"
    USER_FAILURE = "UserFailure"
    STOPPED = "Stopped"
    """Stopped on request of the user (suspend, delete, a limit) or of a queue. It is not counted anywhere."""


class AttemptState(OpenEnum):
    """States of an attempt, in order; every state but the last may be skipped."""

    PENDING = "Pending"
    """Its number is taken; its job, or the claim for its checkpoints, was refused."""
    STARTING = "Starting"
    """Its job was created."""
    RUNNING = "Running"
    """A replica has been seen running."""
    STOPPING = "Stopping"
    """Its verdict is recorded; its replicas have not all ended."""
    ENDED = "Ended"


class PlacedReplica(Answer):
    """Location of one replica of the attempt in flight. About 190 bytes; a run has 512 at most."""

    KEY = "uid"

    name: str = Field(description="Name of its pod.")
    uid: str = Field(description="The pod's uid; one of the same name that comes later is another.")
    node: str = Field(description="The node that it was placed on.")
    placed_time: AwareDatetime = Field(
        description="When that was. A node of this name that is younger is another machine."
    )
    running_time: AwareDatetime | None = Field(
        default=None, description="When its trainer was first seen running; until then it waits."
    )


class AttemptStatus(Answer):
    """One attempt, as the status remembers it."""

    KEY = "number"

    number: int = Field(ge=1, description="Number of the attempt; also its fencing token.")
    state: AttemptState = Field(description="Where it stands.")
    stage: Stage = Field(default=Stage.TRAIN, description="What it is for: Prepare, Train or Evaluate.")
    created_time: AwareDatetime = Field(description="When its number was taken.")
    program: str | None = Field(
        default=None, description="Digests of its image, and of all that its pods are made from."
    )
    spec_generation: int | None = Field(default=None, description="Generation of the spec that it was started with.")
    spec_digests: Mapping[str, Any] | None = Field(
        default=None, description="Digests of the parts of that spec that an attempt has from its start."
    )
    reports: bool | None = Field(
        default=None,
        description="False: it was started without a place to report to, so that nobody waits for reports.",
    )
    placed_time: AwareDatetime | None = Field(default=None, description="When all of its replicas had a machine.")
    pull_time: AwareDatetime | None = Field(default=None, description="Since when an image is pulled for it.")
    pull_seconds: int | None = Field(
        default=None, ge=0, description="Seconds of earlier pulls; limits.startTimeout does not count them."
    )
    running_time: AwareDatetime | None = Field(default=None, description="When a replica was first seen running.")
    trained_from: AwareDatetime | None = Field(
        default=None, description="Since when a trainer of it may have run before anybody looked."
    )
    formed_time: AwareDatetime | None = Field(
        default=None, description="When all of its replicas had run. Before that no exit code is the program's failure."
    )
    last_words_time: AwareDatetime | None = Field(
        default=None, description="When its last words were read: what it had done, and why it ended."
    )
    training_time: AwareDatetime | None = Field(default=None, description="When its first step was reported.")
    trained_time: AwareDatetime | None = Field(
        default=None, description="When its training was known to be finished; from then on its script does the rest."
    )
    done: tuple[str, ...] | None = Field(
        default=None, description="Replicas whose script has ended well since; what comes in their place is not needed."
    )
    failing_time: AwareDatetime | None = Field(default=None, description="When the first sign of its end was seen.")
    ended_time: AwareDatetime | None = Field(default=None, description="When the last of its replicas was gone.")
    verdict: Verdict | None = Field(default=None, description="Whose doing its end was.")
    reason: Reason | None = Field(default=None, description="Why it ended, in one word.")
    message: str = Field(default="", description="The evidence for it.")
    permanent: bool = Field(default=False, description="Another attempt would end the same way.")
    resumed_from: int | None = Field(default=None, description="Step that it started from; none is a fresh start.")
    step: int | None = Field(default=None, description="Last step that it trained, as far as reported.")
    checkpoint_step: int | None = Field(default=None, description="Newest durable step that it reported.")
    zone: str | None = Field(default=None, description="The zone of its machines; where they differ, of the first.")
    short_of_room: bool | None = Field(
        default=None, description="A replica had no machine yet when limits.startTimeout had passed."
    )
    stuck_on_node: bool | None = Field(
        default=None, description="A replica had a machine that did not start it, and nothing else explains that."
    )
    start_trouble: bool | None = Field(
        default=None,
        description="The cluster kept a container of it from starting. What a registry says of the image after that, "
        "as when it comes back, proves nothing in this attempt.",
    )
    short_of_memory: bool | None = Field(
        default=None, description="A replica that requests no memory was evicted from a node that ran short of it."
    )
    price_per_hour: Amount | None = Field(
        default=None, description="Dollars per hour of all its machines together, as they were when it came there."
    )
    billed_machines: int = Field(default=0, ge=0, description="Machines that this is the price of.")
    billed_from: AwareDatetime | None = Field(
        default=None, description="Since when it costs that: since a pod was placed; pending pods cost nothing."
    )
    billed_before: Amount | None = Field(
        default=None, description="Dollars that it had cost before, on fewer machines."
    )
    billed_until: AwareDatetime | None = Field(default=None, description="Until when it has cost that.")
    replicas: tuple[PlacedReplica, ...] = Field(
        default=(),
        description="Where its replicas are while it is in flight, in case pod and node go before anybody looks.",
    )


class StageStatus(Answer):
    """One stage of the run that has begun."""

    name: Stage = Field(description="Prepare, Train or Evaluate.")
    attempts: int = Field(default=0, ge=0, description="Attempts at it so far.")
    preemptions: int = Field(default=0, ge=0, description="Those that lost their machine.")
    infrastructure_failures: int = Field(default=0, ge=0, description="Those that the cluster failed.")
    failures: int = Field(default=0, ge=0, description="Those that its program failed.")
    failures_since_progress: int = Field(
        default=0, ge=0, description="Those of them since it last had a newer durable step; the limit is for these."
    )
    fruitless_attempts: int = Field(
        default=0,
        ge=0,
        description="Attempts in a row that ended without a newer durable step, and not by Piton's order. One that "
        "trained for long, and may have saved unheard, is left out.",
    )
    has_run: str | None = Field(
        default=None, description="What has last run of it, as an attempt's program: from then on it can start."
    )
    had_run: str | None = Field(
        default=None, description="What has run of it before that, the newest first, with spaces between; at most 15."
    )
    start_time: AwareDatetime | None = Field(default=None, description="When its first attempt was made.")
    end_time: AwareDatetime | None = Field(default=None, description="When it was finished; until then there is none.")


class QueueStatus(Answer):
    """Kueue queue in which the run waits for quota, or from which it holds quota."""

    name: str = Field(description="The LocalQueue.")
    position: int | None = Field(default=None, description="Place in the ClusterQueue while it waits; 1 is next.")


class MetricValue(Answer):
    """A reported metric; the value is a string, because an API has no floats."""

    name: str = Field(description="Name of the metric.")
    value: str = Field(description="Its newest value.")


class ProgressStatus(Answer):
    """Progress of training (names of KEP-2779)."""

    step: int | None = Field(default=None, description="Steps trained.")
    total_steps: int | None = Field(default=None, description="Steps to train.")
    progress_percentage: int | None = Field(default=None, ge=0, description="Part done, in percent.")
    estimated_remaining_seconds: int | None = Field(default=None, ge=0, description="Time left, in seconds.")
    eta: str | None = Field(default=None, description="The same for people, e.g. 1h20m.")
    session: str | None = Field(
        default=None, description="Training of a script with several that reports, and its step, e.g. fold-0 step 300."
    )
    metrics: tuple[MetricValue, ...] = Field(default=(), description="Newest metrics.")
    last_updated_time: AwareDatetime | None = Field(default=None, description="When the trainer reported this.")


class CheckpointStatus(Answer):
    """The newest durable checkpoint."""

    step: int = Field(description="Its step.")
    time: AwareDatetime = Field(description="When Piton learned of it.")
    attempt: int = Field(description="The attempt that reported it.")


class Lost(Answer):
    """Work that was done twice."""

    steps: int = Field(default=0, ge=0, description="Steps trained again after a preemption or failure.")


class CostStatus(Answer):
    """Cost of the run, computed from the attempts and the clock at every write of the status."""

    spent: Amount = Field(default="0.00", description="Dollars, of all attempts.")
    per_hour: Amount = Field(default="0.00", description="Dollars per hour that are paid now.")
    budget: str | None = Field(default=None, description="What may be spent: limits.budget.usd.")
    wasted: Amount = Field(default="0.00", description="Of what is spent, the part for steps that were trained again.")
    is_bound: bool = Field(
        default=False, description="It is at most so much: capacity.maxPricePerHour stands for a price not known."
    )
    is_incomplete: bool = Field(
        default=False, description="It is more: an attempt was on a machine of which nobody knows the price."
    )
    earlier: Amount | None = Field(default=None, description="Dollars of attempts that are not listed any more.")
    time: AwareDatetime | None = Field(default=None, description="Until when it is counted.")
    warned_of: str | None = Field(default=None, description="The budget whose end people were warned of.")


class Evaluation(Answer):
    """Result of the stage Evaluate."""

    step: int | None = Field(default=None, description="Step of the checkpoint that was evaluated.")
    attempt: int = Field(description="The attempt that says so.")
    metrics: tuple[MetricValue, ...] = Field(default=(), description="What was measured.")


class Result(Answer):
    """Result of the run."""

    step: int | None = Field(default=None, description="Final step.")
    weights_digest: str | None = Field(default=None, description="SHA-256 over the final weights.")
    best_step: int | None = Field(default=None, description="Step of the best checkpoint.")
    best_metric: str | None = Field(default=None, description="The objective's best value.")
    reason: str = Field(default="", description="Why training ended.")
    evaluation: Evaluation | None = Field(default=None, description="What the stage Evaluate has found.")


class AcceptedSpec(Answer):
    """The spec that was accepted last. It stays in effect while a newer one is refused."""

    generation: int = Field(description="Its generation.")
    spec: Mapping[str, Any] = Field(description="The spec, as it was written.")


class RunStatus(Conditioned):
    """Status of a TrainingRun, which Piton writes."""

    attempt: int = Field(default=0, ge=0, description="Highest attempt number so far; never goes back.")
    preemptions: int = Field(default=0, ge=0, description="Attempts that lost their machine.")
    infrastructure_failures: int = Field(default=0, ge=0, description="Attempts that the cluster failed.")
    failures: int = Field(default=0, ge=0, description="Attempts that the user's code failed.")
    queue: QueueStatus | None = Field(default=None, description="Where it waits for quota, or has it from.")
    accepted: AcceptedSpec | None = Field(default=None, description="The spec that was accepted last.")
    retried: str | None = Field(default=None, description="The annotation piton.dev/retry that was last acted on.")
    lost: Lost = Field(default_factory=Lost, description="Work that was done twice.")
    cost: CostStatus | None = Field(default=None, description="What it costs, as far as prices are known.")
    progress: ProgressStatus | None = Field(default=None, description="How far training is.")
    checkpoint: CheckpointStatus | None = Field(default=None, description="The newest durable checkpoint.")
    result: Result | None = Field(default=None, description="What the run produced.")
    stages: tuple[StageStatus, ...] = Field(default=(), description="The stages that have begun, in order.")
    attempts: tuple[AttemptStatus, ...] = Field(default=(), description="The newest attempts, oldest first.")
    goes_on_after: int | None = Field(
        default=None,
        description="A break of this attempt, or one before it, ends no training: the user has asked for more.",
    )
    may_hold_unlisted_work: bool | None = Field(
        default=None,
        description="An attempt that is not listed may have saved what nobody heard of; without a value it may.",
    )

    @property
    def current(self) -> AttemptStatus | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    def stage(self, name: Stage) -> StageStatus:
        """Return the status of a stage, even if it has not begun."""
        return next((stage for stage in self.stages if stage.name is name), StageStatus(name=name))

    def without_growth(self) -> Self:
        """Return the status without the costs so far, which follow from the attempts and the clock."""
        if self.cost is None:
            return self
        cost = self.cost.model_copy(update={"spent": "0.00", "wasted": "0.00", "time": None})
        return self.model_copy(update={"cost": cost})

    def _unreadable_parts(self) -> Iterator[str]:
        yield from super()._unreadable_parts()
        for stage in self.stages:
            yield from unknown_values("stages[].name", stage.name)
        if self.current is not None:
            for name in ("state", "stage", "verdict"):
                yield from unknown_values(f"attempts[{self.current.number}].{name}", getattr(self.current, name))
