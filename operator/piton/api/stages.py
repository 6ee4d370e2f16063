"""Stages of a run: the next one, and the spec of each. Pure functions of spec and status.

    Prepare --finished--> Train --finished--> Evaluate --finished--> the run has succeeded

A run passes each stage once, in this order. It never returns to a stage before the newest that has begun, even if the
spec gains a stage meanwhile. The attempts of all stages share one numbering.
"""

from collections.abc import Mapping

from piton.api.pod_template import PodTemplate
from piton.api.reasons import Reason
from piton.api.spec import Capacity, EvaluateStage, SideStage, Spec, Stage, Stages, Trainer, Workers
from piton.api.status import AttemptStatus, Result, RunStatus
from piton.api.status_base import Phase

ARCHITECTURE, OPERATING_SYSTEM = "kubernetes.io/arch", "kubernetes.io/os"
OF_THE_IMAGE = (ARCHITECTURE, OPERATING_SYSTEM)
"""Labels of a node that depend on the image, which is the same in all stages, and not on the kind of machine."""
ORDER = tuple(Stage)
RUNNING: Mapping[Stage, tuple[Phase, Reason]] = {
    Stage.PREPARE: (Phase.PREPARING, Reason.PREPARING),
    Stage.TRAIN: (Phase.TRAINING, Reason.TRAINING),
    Stage.EVALUATE: (Phase.EVALUATING, Reason.EVALUATING),
}
"""Phase of a run while an attempt of a stage runs."""


def wanted(stages: Stages) -> list[Stage]:
    """Return the stages that a run has."""
    return [stage for stage in ORDER if stage is Stage.TRAIN or stages.of(stage) is not None]


def side_stages(spec: Spec) -> list[tuple[Stage, SideStage]]:
    """Return the requested stages other than training."""
    found = ((stage, spec.stages.of(stage)) for stage in Stage)
    return [(stage, own) for stage, own in found if own is not None]


def next_stage(spec: Spec, status: RunStatus) -> Stage | None:
    """Return the stage of the next attempt; None if all requested stages are finished."""
    behind = max((ORDER.index(stage.name) for stage in status.stages), default=0)
    ahead = [stage for stage in wanted(spec.stages) if ORDER.index(stage) >= behind]
    return next((stage for stage in ahead if status.stage(stage).end_time is None), None)


def reason_to_begin(status: RunStatus, stage: Stage) -> Reason:
    """Return the reason for the newest attempt of the stage."""
    earlier = [record for record in status.stages if record.name is not stage]
    if status.stage(stage).attempts > 1:
        return Reason.RETRYING
    return Reason.NEXT_STAGE if earlier else Reason.FIRST_ATTEMPT


def failure_limit(spec: Spec, status: RunStatus, stage: Stage) -> str | None:
    """Return the failure limit that is reached, of a stage or of the run's whole life; None: none yet."""
    own, count = spec.stages.of(stage), status.stage(stage).failures_since_progress
    path, limit = "limits.failures", spec.limits.failures
    if own is not None and own.failures is not None:
        path, limit = f"stages.{stage.lower()}.failures", own.failures
    if count >= limit:
        without = " without a newer checkpoint" if stage is Stage.TRAIN else ""
        return f"{count} failures of the program{without}, {path} is {limit}"
    total = spec.limits.total_failures
    if total is not None and status.failures >= total:
        return f"{status.failures} failures of the program in all, limits.totalFailures is {total}"
    return None


def called(attempt: AttemptStatus, word: str = "attempt") -> str:
    """Return the display name of an attempt, with its stage unless that is training."""
    stage = "" if attempt.stage is Stage.TRAIN else f" ({attempt.stage})"
    return f"{word} {attempt.number}{stage}"


def checkpoint_to_evaluate(spec: Spec, result: Result | None) -> int | None:
    """Return the step of the best checkpoint, or of the last if no best checkpoint is kept."""
    if result is None:
        return None
    best = result.best_step if spec.checkpoint.keep.best else None
    return result.step if best is None else best


def staged(spec: Spec, stage: Stage) -> Spec:
    """Return the spec reduced to this stage, from which its attempts are rendered."""
    if stage is Stage.TRAIN:
        return spec
    own = spec.stages.of(stage)
    assert own is not None, f"{stage} is not wanted"
    gpus = own.gpus if isinstance(own, EvaluateStage) else 0
    return spec.model_copy(
        update={
            "trainer": _trainer(spec.trainer, own),
            "workers": _workers(spec.workers, own, gpus),
            "capacity": spec.capacity if gpus else Capacity(),
        }
    )


def path_of(setting: str, stage: Stage) -> str:
    """Return the path of a setting of the stage's pods: resources, nodeSelector or tolerations."""
    return f"spec.workers.template.{setting}" if stage is Stage.TRAIN else f"spec.stages.{stage.lower()}.{setting}"


def _trainer(trainer: Trainer, own: SideStage) -> Trainer:
    """Return the stage's program. The recipe is kept beside a command, because the command receives it as input."""
    changes: dict[str, object] = {"command": own.command}
    if isinstance(own, EvaluateStage):
        changes["recipe"] = own.recipe or trainer.recipe
        same = own.recipe in (None, trainer.recipe)
        changes["config"] = {**trainer.config, **own.config} if same else own.config
    return trainer.model_copy(update=changes)


def _selector(shared: PodTemplate, gpus: int) -> Mapping[str, str]:
    """Return the stage's part of the workers' node selector: without GPUs, the architecture alone."""
    return shared.node_selector if gpus else {k: v for k, v in shared.node_selector.items() if k in OF_THE_IMAGE}


def _workers(workers: Workers, own: SideStage, gpus: int) -> Workers:
    """Return one machine, in the workers' zones because the volume is there; of their kind only if it needs GPUs."""
    shared = workers.template
    template = PodTemplate(
        tolerations=(*shared.tolerations, *own.tolerations) if gpus else own.tolerations,
        node_selector={**_selector(shared, gpus), **own.node_selector},
        service_account_name=shared.service_account_name,
        resources=own.resources,
        placement=shared.placement if gpus else None,
    )
    return workers.model_copy(
        update={
            "nodes": 1,
            "min_nodes": None,
            "gpus_per_node": gpus,
            "instance_types": workers.instance_types if gpus else (),
            "template": template,
        }
    )
