"""Work of which nothing was heard. Nothing heard is not nothing saved.

A program of the user's reports nothing. Reports of a recipe can be blocked by a NetworkPolicy or a certificate, and its
last words go with a machine that is lost.
"""

from datetime import datetime, timedelta

from piton.api.reasons import Reason
from piton.api.spec import Spec, Stage
from piton.api.status import AttemptState, AttemptStatus, RunStatus
from piton.observed import AttemptSeen, JobState, ReplicaSeen
from piton.timing import Timing

_SAVES_WITHIN = timedelta(seconds=60)
"""An attempt that trained for longer may have saved, whatever it said."""
_EXITED_ZERO = frozenset({Reason.FINISHED, Reason.EXITED_ZERO, Reason.NO_PROOF})
_NEVER_RAN = frozenset(
    {
        Reason.CANNOT_START,
        Reason.START_FAILED,
        Reason.IMAGE_PULL_FAILED,
        Reason.SANDBOX_FAILED,
        Reason.INIT_CONTAINER_FAILED,
        Reason.GANG_INCOMPLETE,
        Reason.PRICE_TOO_HIGH,
        Reason.NAME_TAKEN,
        Reason.SUSPENDED,
        Reason.NOT_WANTED,
        Reason.QUOTA_TAKEN,
        Reason.BUDGET_EXCEEDED,
        Reason.DEADLINE_EXCEEDED,
    }
)
"""Ends of an attempt whose pods Piton has seen to the last: none was seen to run, so none has. After any other end a
pod may be gone, or without a word of its containers, before anybody has seen it run."""
_RANK_0 = "-master-0"
"""The end of the name of the pod whose trainer commits the checkpoints."""


def may_hold_checkpoint(status: RunStatus) -> bool:
    """True if the checkpoint volume may hold something that the run has saved. In doubt it does.

    The volume is made right before the first job: a status without attempts was lost, or could not be written.
    """
    if not status.attempts or status.unreadable or status.checkpoint is not None or may_hold_unlisted_work(status):
        return True
    return any(may_have_saved(record) for record in status.attempts)


def may_hold_unlisted_work(status: RunStatus) -> bool:
    """True if an attempt that has a number, and no record any more, may have saved. If nothing is noted it may."""
    if status.may_hold_unlisted_work is not None:
        return status.may_hold_unlisted_work
    return len(status.attempts) < status.attempt


def with_doubt(status: RunStatus, is_some_lost: bool) -> RunStatus:
    """Return the status that says so if there were attempts of which it does not know."""
    return status.model_copy(update={"may_hold_unlisted_work": True}) if is_some_lost else status


def may_have_saved(record: AttemptStatus) -> bool:
    """True if the attempt may have left something on the checkpoint volume. In doubt it has.

    It has not if no trainer of it has run, or if it failed within a minute and its last words name no checkpoint. A
    report is not enough: it may have saved since. What another stage, such as prepare, has made in a minute is soon
    made again.
    """
    if record.stage is not Stage.TRAIN:
        unseen = None if record.reason in _NEVER_RAN else record.created_time
        since = record.trained_from or record.running_time or unseen
        return since is not None and _lasted(record, since)
    if record.running_time is None:
        return _has_run_unseen(record)
    if record.last_words_time is None or record.reason in _EXITED_ZERO:
        return True
    return _lasted(record, min(record.running_time, record.trained_from or record.running_time))


def trained_since(record: AttemptStatus) -> datetime | None:
    """Return since when all replicas of an attempt ran; None if they never did, as in half a gang.

    In doubt they did: the attempt was over before anybody saw one run.
    """
    is_half = record.formed_time is None and record.running_time is not None
    return None if is_half else record.trained_from or record.formed_time


def is_in_doubt(record: AttemptStatus, spec: Spec | None, timing: Timing) -> bool:
    """True if nobody can tell whether an attempt came to something that trained for long enough to.

    A recipe of which neither a step nor last words arrived may have saved. One whose job another client suspended, as a
    queue does that takes turns, did not end by itself.
    """
    since = trained_since(record)
    if since is None or record.ended_time is None:
        return False
    is_recipe = record.stage is Stage.TRAIN and spec is not None and spec.trainer.recipe is not None
    is_unheard = is_recipe and record.step is None and record.last_words_time is None
    if not is_unheard and record.reason is not Reason.JOB_SUSPENDED:
        return False
    return (record.ended_time - since).total_seconds() > timing.doubt_seconds


def began_unseen(record: AttemptStatus, seen: AttemptSeen) -> datetime | None:
    """Return since when a trainer may have run of an attempt that nobody had seen to run before this look.

    The operator may have been away; a kubelet that rejects a pod anew, or evicts it, may forget what its containers
    did.
    """
    if record.running_time is not None:
        return record.trained_from
    times = [replica.began_at for replica in seen.replicas if _may_have_run(replica)]
    known = [record.trained_from, record.created_time if seen.lost else None, *times]
    return min((time for time in known if time is not None), default=None)


def has_last_words(seen: AttemptSeen | None) -> bool:
    """True if the rank that saves has left last words. Those of its peers do not say what it has saved."""
    if seen is None:
        return False
    said = [replica for replica in seen.replicas if replica.termination and replica.termination.is_ours]
    first = next((replica for replica in seen.replicas if replica.name.endswith(_RANK_0)), None)
    if first is None:
        return bool(said) and len(seen.replicas) >= seen.expected_replicas
    return first in said or (bool(said) and first.never_started and not first.ended)


def has_seen_all_wait(seen: AttemptSeen) -> bool:
    """True if all that there is of an attempt is seen, and no trainer of it has begun. In doubt one has."""
    if seen.job is None or seen.lost or not all(map(_has_never_begun, seen.replicas)):
        return False
    is_untouched = seen.job is JobState.ACTIVE and not seen.deleting
    return is_untouched or len(seen.replicas) >= seen.expected_replicas


def _has_run_unseen(record: AttemptStatus) -> bool:
    """True if a trainer may have run that nobody has seen running. In doubt one has."""
    known_to_wait = record.state in (AttemptState.PENDING, AttemptState.STOPPING)
    if record.reason in _NEVER_RAN or (record.reason is None and known_to_wait):
        return record.trained_from is not None and _lasted(record, record.trained_from)
    if record.reason is Reason.NODE_REFUSED:  # at once, or by a kubelet that was started anew under a trainer
        return _lasted(record, record.trained_from or record.created_time)
    return True


def _lasted(record: AttemptStatus, since: datetime) -> bool:
    """True if the attempt ended over a minute after `since`, or as long before it, because then a clock was set."""
    return record.ended_time is None or abs(record.ended_time - since) > _SAVES_WITHIN


def _has_never_begun(replica: ReplicaSeen) -> bool:
    never = replica.never_started or replica.cannot_start or replica.init_failure is not None
    return never and not replica.node_gone


def _may_have_run(replica: ReplicaSeen) -> bool:
    """True if its trainer has run, or if the pod is over and nothing says that it has not."""
    return replica.has_run or (replica.ended and not _has_never_begun(replica))
