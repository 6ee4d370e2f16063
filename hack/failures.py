"""`python -m hack.failures` writes docs/failures.md: what follows from each end of an attempt, read from the code."""

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path

from piton.api import reasons
from piton.api.reasons import Reason
from piton.api.spec import Limits
from piton.api.status import Verdict
from piton.contract.duration import format_duration
from piton.core import verdict
from piton.core.increments import REASONS
from piton.core.transitions import COUNTERS
from piton.timing import Timing

PAGE = Path(__file__).parents[1] / "docs" / "failures.md"
_TIMING, _LIMITS = Timing(), Limits()
_LATER = "the next attempt, after the back-off"
_NEXT: Mapping[Verdict, str] = {
    Verdict.FINISHED: "the next stage; after the last one the run has Succeeded",
    Verdict.PREEMPTED: "the next attempt, at once; from the second in a row that saved nothing, after the back-off",
    Verdict.INFRASTRUCTURE: _LATER,
    Verdict.USER_FAILURE: f"{_LATER}; at `limits.failures` ({_LIMITS.failures}) the run has Failed",
    Verdict.STOPPED: "what was ordered: it holds, waits in its queue, is deleted, or has Failed over a limit",
}
_TEXT = f"""# Failures: what follows from each end of an attempt

`python -m hack.failures` writes this page from the code. What each reason means for you is in [reasons](reasons.md).

A run ends by proof of its completion, by a limit of yours (`limits`), or by an error that another attempt would meet
again (`permanent` below). Nothing that the cluster does ends it.

- **The back-off** counts the attempts in a row that ended without a newer durable step, and not by an order of
  Piton's. It begins with {format_duration(_TIMING.backoff_seconds)}, doubles with each, and is at most
  {format_duration(_TIMING.backoff_seconds_max)}. A newer durable step sets it back.
  Two ends neither count nor set it back after more than {format_duration(_TIMING.doubt_seconds)} of training: that
  of a recipe of which nothing was heard, and `JobSuspended`.
- **Stalled**: from {_TIMING.stalled_attempts} such attempts on, the condition `Stalled` says what was seen and what
  helps. When it has been True for `limits.stalled` ({_LIMITS.stalled}), the run holds, with everything kept.
- **Failures of the program** count from the newest durable step as well, for `limits.failures`; `limits.totalFailures`
  bounds those of the whole life.
- **A start** may take `limits.startTimeout` ({_LIMITS.start_timeout}) from when all replicas have a machine, or from
  the first that runs while others have none; three times that from the first machine if none runs. Time in which
  images are pulled does not count, up to twice that limit.
  After an attempt that it has ended, the next one has twice the time: a mount that takes an hour holds a run up once.
  A node that says nothing is told after two minutes (`KubeletSilent`).
  Until all replicas have run, an exit code is no failure of the program.
- **What cannot start** holds its machines for {format_duration(_TIMING.start_seconds)} per attempt; they are free
  during the back-off. What has run once in this run, the same image and command in the same pods, is the cluster's to
  start again, whatever its kubelet says; but a Secret or key that does not exist stays the program's. Before that, a
  missing program is the program's if the container runs it, else the node's, as its helpers are. Until it has run, a
  registry that does not answer and a node that starts no containers are waited for, while an image of a wrong name, or
  one that the registry refuses (401, 403), counts after {format_duration(_TIMING.refused_image_seconds)} each.
- **A hang**: no rank ends a step for `limits.hangTimeout` (auto: ten times the median step, at least 5m), outside a
  save, an evaluation, a compile or a wait for data. The trainer's watchdog keeps the stacks and ends the ranks.
- **What runs beside the trainer**, such as a sidecar of a service mesh, does not count: when the containers `pytorch`
  have ended, so has the attempt, and its pods are deleted with their grace period.
- **After the training** the script may go on: an evaluation, an export, an upload. The run is finished when every
  replica has ended with exit code 0, under `limits.deadline` and `limits.budget`. Until then `kubectl get` shows the
  reason `AfterTraining`. An attempt that is disturbed in that time is repeated; its script finds the training finished
  and does the rest. A preemption then is none without progress. Another exit code is a failure of the program. The
  result and the final manifest stay in any case.
- **A pod that does not end**: the condition `PodStuck` names a pod that was deleted, and that its node, which answers,
  has not ended {format_duration(_TIMING.stuck_seconds)} after its grace period. A node that was silent gets both
  times anew when it answers. If the node says that it is not ready, its words are quoted: the wait is over when it is
  repaired or removed. With
  `limits.stuckPods: ForceDelete` the operator deletes the pod without its kubelet, if its claims are ReadWriteMany
  alone, and the node is cordoned, or has a taint that stays and that the next attempt does not tolerate.
- **Another chance**: `piton retry NAME`, or `kubectl annotate trainingrun NAME piton.dev/retry=1`, takes up a run that
  has Failed, or that is Stalled, from its newest checkpoint. Each new text counts once. A run that has Succeeded since
  its script left the loop by `break`, without `session.finish()`, trains on.

| reason | what was seen | verdict | counter | what comes next |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    """The whole text."""
    seen = meanings()
    permanent = {reason for _, reason, is_permanent in verdict.RESERVED.values() if is_permanent}
    permanent.add(Reason.SCRIPT_TIMEOUT)
    lines = []
    for kind, found in REASONS.items():
        counter = COUNTERS.get(kind)
        for reason in found:
            then = "permanent: the run has Failed" if reason in permanent else _NEXT[kind]
            then = _LATER if reason is Reason.JOB_SUSPENDED else then
            lines.append(f"| `{reason}` | {seen[reason]} | {kind} | {_camel(counter)} | {then} |")
    return _TEXT + "\n".join(lines) + "\n"


def _camel(counter: str | None) -> str:
    if counter is None:
        return "none"
    first, *others = counter.split("_")
    return f"`{first}{''.join(map(str.capitalize, others))}`"


def meanings() -> dict[Reason, str]:
    """Each reason, and the text below it."""
    (listed,) = [node for node in ast.parse(inspect.getsource(reasons)).body if isinstance(node, ast.ClassDef)]
    return {
        Reason(ast.literal_eval(reason.value)): ast.literal_eval(text.value)
        for reason, text in zip(listed.body, listed.body[1:], strict=False)
        if isinstance(reason, ast.Assign) and isinstance(text, ast.Expr)
    }


if __name__ == "__main__":
    PAGE.write_text(page())
