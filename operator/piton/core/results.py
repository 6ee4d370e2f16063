"""Results of the attempts: what a training or an evaluation has produced, and since when that is known.

Pods that said it are deleted: nothing that is known is ever forgotten.
"""

from collections.abc import Callable
from datetime import datetime

from piton.api.spec import Stage
from piton.api.status import REPLICAS_MAX, AttemptState, Evaluation, Result, RunStatus
from piton.contract.manifest import Complete
from piton.contract.progress import Progress
from piton.contract.termination import Termination
from piton.core.evidence import has_ended_well, has_exited_zero
from piton.core.transitions import change, metric_values, terminations_of
from piton.observed import AttemptSeen, Observed, ReplicaSeen


def learn(status: RunStatus, observed: Observed, seen: AttemptSeen | None, *, now: datetime) -> RunStatus:
    """Write down that the current attempt has finished the training, with the result, and whose script has ended.

    The result stays whatever follows. A script that trains on, in another session, has to prove its end again. Of a
    program that need not prove it, a replica that has exited 0 is remembered as well.
    """
    record, progress = status.current, observed.progress
    if record is None or record.stage is not Stage.TRAIN:
        return status
    told = next((termination for termination in terminations_of(seen) if termination.is_proof), None)
    manifests = (observed.complete, progress.complete if progress is not None else None)
    own = next((found for found in manifests if found is not None and found.attempt == record.number), None)
    if own is not None or told is not None:
        result = _trained(status, own, told).with_unknown_of(status.result)
        if record.trained_time is None or status.result is None or status.result.step != result.step:
            status = change(status, trained_time=now).model_copy(update={"result": result})
    elif record.trained_time is None:
        is_own_program = observed.spec is not None and observed.spec.trainer.recipe is None
        return _with_done(status, seen, has_exited_zero) if is_own_program else status
    elif is_beyond(status.result, progress):
        return change(status, trained_time=None, done=None)
    return _with_done(status, seen, has_ended_well)


def _with_done(status: RunStatus, seen: AttemptSeen | None, is_done: Callable[[ReplicaSeen], bool]) -> RunStatus:
    """Return the status with the replicas that are done: whatever becomes of their pods later, they have ended."""
    record = status.current
    if record is None or seen is None or record.state is AttemptState.STOPPING:
        return status
    known = set(record.done or ())
    done = known | {replica.name for replica in seen.replicas if is_done(replica)}
    return status if done == known else change(status, done=tuple(sorted(done))[:REPLICAS_MAX])


def is_beyond(result: Result | None, progress: Progress | None) -> bool:
    """Return True if training is reported that is not in that result."""
    known, reached = result.step if result else None, progress.step if progress else None
    return known is not None and reached is not None and reached > known


def conclude(status: RunStatus, complete: Complete | None, seen: AttemptSeen | None) -> RunStatus:
    """Write down what the current attempt produced. Pods that said it are deleted: nothing known is ever forgotten."""
    assert status.current is not None
    termination = next(iter(terminations_of(seen)), None)
    if status.current.stage is Stage.TRAIN:
        return with_trained(status, complete, termination)
    if status.current.stage is Stage.EVALUATE and termination is not None:
        found = Evaluation(
            step=termination.step, attempt=status.current.number, metrics=metric_values(termination.metrics)
        )
        old = status.result or Result()
        result = old.model_copy(update={"evaluation": found.with_unknown_of(old.evaluation)})
        return status.model_copy(update={"result": result})
    return status


def with_trained(status: RunStatus, complete: Complete | None, termination: Termination | None = None) -> RunStatus:
    """Return the status with what the training has produced, by the final manifest, else by last words."""
    result = _trained(status, complete, termination)
    return status.model_copy(update={"result": result.with_unknown_of(status.result)})


def with_evaluated_checkpoint(status: RunStatus, step: int | None, *, is_best: bool) -> RunStatus:
    """Return the status with a result that has the step of the evaluated checkpoint, if the result was lost.

    With `is_best` it is the best checkpoint, otherwise the final one. A result that is there stays.
    """
    if status.result is not None:
        return status
    return status.model_copy(update={"result": Result(best_step=step) if is_best else Result(step=step)})


def _trained(status: RunStatus, complete: Complete | None, termination: Termination | None) -> Result:
    if complete is not None:
        return Result(
            step=complete.step,
            weights_digest=complete.weights_digest,
            best_step=complete.best_step,
            best_metric=_text(complete.best_metric),
            reason=complete.reason,
        )
    known = status.result is not None and status.result.step is not None
    if termination is not None and (termination.is_proof or not known):
        return Result(
            step=termination.step,
            weights_digest=termination.weights_digest,
            best_step=termination.best_step,
            best_metric=_text(termination.best_metric),
            reason=termination.detail,
        )
    return status.result or Result()


def _text(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"
