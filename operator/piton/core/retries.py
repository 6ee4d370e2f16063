"""The annotation `piton.dev/retry`: the user's word takes up a run that has failed, holds, or was left by `break`."""

from dataclasses import replace

from piton.api import stages
from piton.api.conditions import FAILED, SUCCEEDED
from piton.api.problems import in_brief
from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import AttemptState, RunStatus
from piton.api.status_base import Phase
from piton.contract import names
from piton.contract.manifest import is_left_by_break
from piton.core import stalled
from piton.core.context import Context
from piton.core.effects import Announcement, Decision
from piton.core.transitions import change


def may_go_on(status: RunStatus) -> bool:
    """True if the run has Succeeded although its script left the loop by `break`, and did not say that it was meant."""
    return status.is_true(SUCCEEDED) and status.result is not None and is_left_by_break(status.result.reason)


def restart_on_request(context: Context) -> Decision | None:
    """Take the run up again as the annotation asks, once for each text of it, whatever the run does then."""
    status, asked = context.status, context.meta.retry
    if not asked or asked == status.retried:
        return None
    if may_go_on(status):
        return _restart_after_break(context, asked)
    is_stalled, flying = stalled.is_stalled(status, context.timing), context.flying
    status = status.model_copy(update={"retried": asked})
    if not (is_stalled if flying else is_stalled or status.is_true(FAILED)):
        message = f"{names.ANNOTATION_RETRY} changes nothing: {_why_not(context)}"
        said = Announcement(reason=Reason.NOTHING_TO_RETRY, message=message)
        is_new = not status.attempts  # the manifest may have it from an earlier run
        return Decision(rule="retried", status=status, announcements=() if is_new else (said,), look_again_seconds=0)
    step = f"step {status.checkpoint.step}" if status.checkpoint else "the beginning"
    how = f"{stages.called(flying)} goes on" if flying else f"taken up again from {step}"
    message = f"{how}, as {names.ANNOTATION_RETRY} asks; failures count anew"
    status = give_another_chance(status)
    if flying is None:
        status = context.phase(status, Phase.PENDING, Reason.RETRYING, message)
    news = Announcement(reason=Reason.RETRYING, message=message)
    return Decision(rule="retried", status=status, announcements=(news,), look_again_seconds=0)


def _why_not(context: Context) -> str:
    """Return why there is nothing to take up, and what starts the next attempt."""
    if context.status.is_true(SUCCEEDED):
        return "the run has Succeeded; a new run trains anew"
    if context.flying is not None:
        return f"{stages.called(context.flying)} is under way; a run that has Failed, or is Stalled, is taken up"
    if context.spec is not None and context.spec.suspend:
        return "the run is suspended; set spec.suspend to false"
    obstacle = _obstacle(context)
    if obstacle is not None:
        return f"{obstacle[1]}; change that"
    return "the next attempt starts by itself; the condition Training says when"


def _restart_after_break(context: Context, asked: str) -> Decision:
    """Take up a training that has left its loop by `break`, unless it would fail at once: then it stays as it is."""
    status = context.status.model_copy(update={"retried": asked})
    obstacle = _obstacle(replace(context, observed=replace(context.observed, status=go_on(status))))
    if obstacle is not None:
        reason, problem = obstacle
        message = f"{problem}, so the training does not go on; change that, and annotate the run anew"
        news = Announcement(severity="Warning", reason=reason, message=message)
        return Decision(rule="retried", status=status, announcements=(news,), look_again_seconds=0)
    step = status.result.step if status.result else None
    message = (
        f"the training goes on from step {step}, which its script had left by break: {names.ANNOTATION_RETRY} asks"
    )
    status = context.phase(go_on(status), Phase.PENDING, Reason.RETRYING, message)
    news = Announcement(reason=Reason.RETRYING, message=message)
    return Decision(rule="retried", status=status, announcements=(news,), look_again_seconds=0)


def _obstacle(context: Context) -> tuple[Reason, str] | None:
    """Return why no attempt could be started, with the field; None: one can."""
    left, account = context.seconds_to_deadline(), context.account()
    if context.spec is None:
        return Reason.INVALID_SPEC, f"spec: it is refused ({in_brief(context.observed.problems)})"
    if left is not None and left <= 0:
        return Reason.DEADLINE_EXCEEDED, "limits.deadline: it has passed"
    if account is not None and account.used_up:
        return Reason.BUDGET_EXCEEDED, "limits.budget: it does not pay for another attempt"
    return None


def give_another_chance(status: RunStatus) -> RunStatus:
    """Return the status with a fresh count of what failed, as the user wishes; all that was gained stays.

    The deadline of a stage begins anew with the next attempt; one in flight keeps its own.
    """
    fresh: dict[str, object] = {"failures_since_progress": 0, "fruitless_attempts": 0}
    if status.current is None or status.current.state is AttemptState.ENDED:
        fresh["start_time"] = None
    found = tuple(stage if stage.end_time else stage.model_copy(update=fresh) for stage in status.stages)
    status = status.model_copy(update={"stages": found})
    return change(status, permanent=False) if status.current is not None else status


def go_on(status: RunStatus) -> RunStatus:
    """Return the status in which a training goes on that was left by `break`. What came after it is repeated."""
    fresh = {"end_time": None, "start_time": None, "failures_since_progress": 0, "fruitless_attempts": 0}
    found = tuple(
        stage.model_copy(update=fresh) if stage.name is Stage.TRAIN else stage
        for stage in status.stages
        if stage.name is not Stage.EVALUATE
    )
    return status.model_copy(update={"stages": found, "goes_on_after": status.attempt})
