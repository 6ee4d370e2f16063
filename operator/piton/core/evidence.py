"""Evidence for a verdict on the end of an attempt, and the facts that the rules derive from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import Verdict
from piton.contract.manifest import Complete
from piton.contract.termination import Outcome, ScriptEnd, Termination, outcome_of
from piton.core.start_words import NOTHING_PROVEN, Proven
from piton.observed import AttemptSeen, JobState, LostReplica, ReplicaSeen, ReplicaState
from piton.timing import Timing

SIGKILL_EXIT = 137
SIGABRT_EXIT = 134
SIGSEGV_EXIT = 139
LAUNCHER_EXIT = 1
"""Exit code of torchrun, whatever its processes ended with."""


class Patience(Enum):
    """The thing that a patient judgement waits for; `timing.py` says for how long."""

    PEERS = "evidence on the other replicas"
    START = "a container that may start yet"
    IMAGE = "an image that may be there yet, though the registry says that it is not"

    def seconds(self, timing: Timing) -> float:
        """Return for how long it waits."""
        match self:
            case Patience.PEERS:
                return timing.evidence_seconds
            case Patience.START:
                return timing.start_seconds
            case Patience.IMAGE:
                return min(timing.refused_image_seconds, timing.start_seconds)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The evidence for a verdict."""

    seen: AttemptSeen
    complete: Complete | None
    """Proof of the training's end, of this attempt or one before; for another stage it proves nothing."""
    proof_needed: bool
    """A recipe proves the end of its training; the user's own program may not know how."""
    stage: Stage = Stage.TRAIN
    formed: bool = True
    """True if all replicas have run at some time. One that never met its peers has ended for their sake."""
    proven: Proven = NOTHING_PROVEN
    """The parts of the attempt's containers that are proven to be right."""
    limits: Mapping[Reason, bool] = field(default_factory=dict)
    """The limits of the run, as the reasons of an attempt that they end; True for those that may have ended this one,
    which come first."""
    ordered: Reason | None
    """The reason for which Piton stopped the attempt, or None."""

    @property
    def proof(self) -> Complete | Termination | None:
        """The final manifest, read from the volume, reported, or told in a termination message. None: there is none.

        Only a training has one.
        """
        if self.stage is not Stage.TRAIN:
            return None
        words = (replica.termination for replica in self.seen.replicas)
        return self.complete or next((told for told in words if told is not None and told.is_proof), None)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict with its reason and the sentence that justifies it."""

    verdict: Verdict
    reason: Reason
    message: str
    permanent: bool = False
    """Another attempt would end the same way."""
    patient: bool = False
    """It may still change: a peer may bring better evidence, or what does not start may start."""
    patience: Patience = Patience.PEERS
    """For what it waits, if it does."""


def cause_of_failure(replica: ReplicaSeen, evidence: Evidence) -> Reason | None:
    """Return the reason for which the replica failed, without regard to the others; None if it did not fail."""
    if outcome_of_replica(replica) is Outcome.STOPPED or deleted_by_others(replica, evidence):
        return Reason.POD_DELETED
    if replica.end_unknown:
        return Reason.NO_EVIDENCE
    if replica.exit_code == SIGKILL_EXIT:
        return Reason.KILLED
    if outcome_of_replica(replica) is Outcome.DEVICE_LOST or is_aborted(replica, evidence):
        return Reason.DEVICE_LOST
    return Reason.CRASHED if replica.exit_code else None


def has_ended_well(replica: ReplicaSeen) -> bool:
    """Return True if its script came to its end, after a training with proof or without one: exit code 0.

    Libraries may abort an interpreter that has nothing left to do. That is no failure where the trainer says that its
    training is finished and its script came to its end; an older trainer does not say the latter, and is believed.
    Exit code 0 of one that is told to end is no end of its own, unless the trainer says that it is.
    """
    words = replica.termination
    if replica.state is ReplicaState.SUCCEEDED and not replica.is_told_to_end:
        return True
    if words is None or not words.is_proof or words.script not in (None, ScriptEnd.ENDED):
        return False
    is_hidden = words.launched or words.script is None
    return replica.exit_code in (0, SIGABRT_EXIT, SIGSEGV_EXIT, *((LAUNCHER_EXIT,) if is_hidden else ()))


def have_all_ended_well(evidence: Evidence) -> bool:
    """Return True if every replica has. Of a job that has succeeded, the others may have been cleaned away."""
    seen = evidence.seen
    well = [replica for replica in seen.replicas if has_ended_well(replica)]
    if not well or not all(r in well or (r.ended and cleaned_away(r, evidence)) for r in seen.replicas):
        return False
    return seen.job in (JobState.SUCCEEDED, JobState.FAILED) or len(seen.replicas) >= seen.expected_replicas


def is_done(replica: ReplicaSeen, evidence: Evidence) -> bool:
    """Return True if nothing is left to do for it: it has ended well, and its training is finished if it needs proof.

    Then it has no use for its machine, which is taken away because it is empty.
    """
    if evidence.proof is not None:
        return has_ended_well(replica)
    return not evidence.proof_needed and has_exited_zero(replica)


def has_exited_zero(replica: ReplicaSeen) -> bool:
    """Return True if a program without the library has exited 0 before anything told it to. That is its end."""
    is_by_itself = replica.disruption is None and replica.termination is None
    return replica.state is ReplicaState.SUCCEEDED and is_by_itself and not replica.is_told_to_end


def is_aborted(replica: ReplicaSeen, evidence: Evidence) -> bool:
    """Return True if SIGABRT ended it, as one of several replicas, before Python could write a message.

    NCCL's watchdog ends a collective that hangs in this way, and a process whose GPU failed.
    """
    return replica.exit_code == SIGABRT_EXIT and replica.termination is None and evidence.seen.expected_replicas > 1


def deleted_by_others(replica: ReplicaSeen, evidence: Evidence) -> bool:
    """Return True if another client deletes it: neither Piton, nor the job's controller after the job's end.

    A job's controller that has failed the job for a container beside a trainer counts as another client.
    """
    if not replica.is_told_to_end or evidence.seen.deleting:
        return False
    return evidence.seen.job is JobState.ACTIVE or failed_beside(evidence) is not None


def failed_beside(evidence: Evidence) -> ReplicaSeen | None:
    """Return the replica whose pod has failed the job although its trainer exited 0; None where a trainer failed."""
    seen = evidence.seen
    failed = any(each.state is ReplicaState.FAILED and not each.is_told_to_end for each in seen.replicas)
    if failed or seen.job is not JobState.FAILED:
        return None
    return next((replica for replica in seen.replicas if replica.failed_beside), None)


def cleaned_away(replica: ReplicaSeen, evidence: Evidence) -> bool:
    """Return True if it is deleted by the job's controller, because the job has succeeded."""
    return replica.deleting and evidence.seen.job is JobState.SUCCEEDED


def missing_replicas(evidence: Evidence) -> tuple[LostReplica, ...]:
    """Return the missing replicas, unless Piton stops the attempt or the job has succeeded without them."""
    seen = evidence.seen
    expected = seen.job in (JobState.ACTIVE, JobState.FAILED) and not seen.deleting and evidence.ordered is None
    return seen.lost if expected else ()


def last_state(replica: LostReplica) -> str:
    """Describe the last recorded state of the replica; empty without one."""
    return f" (running since {replica.running_since:%H:%M:%S} UTC)" if replica.running_since else ""


def outcome_of_replica(replica: ReplicaSeen) -> Outcome | None:
    """Return the outcome by the termination message, else by the exit code; None if neither names one.

    A script that fails after its training has left the message of a training that is finished.
    """
    words = replica.termination
    if words and not (words.is_proof and replica.exit_code):
        return words.outcome
    return outcome_of(replica.exit_code) if replica.exit_code else None
