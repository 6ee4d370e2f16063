"""The stages of a run: which of them comes next, and what one is made of. Pure functions of spec and status.

    Prepare --finished--> Train --finished--> Evaluate --finished--> the run has succeeded

A run goes through them once, in this order: it never goes back to one behind the newest that has begun, also when the
spec is given another stage meanwhile. An attempt at one is an attempt like any other, with the next number.
"""

from collections.abc import Mapping

from piton.api.reasons import Reason
from piton.api.spec import (
    Capacity,
    EvaluateStage,
    PodTemplate,
    SideStage,
    Spec,
    Stage,
    Stages,
    Trainer,
    Workers,
)
from piton.api.status import AttemptStatus, Phase, Result, RunStatus

ARCHITECTURE = "kubernetes.io/arch"
"""Label of a node. It belongs to the image, which is the same in all stages, and not to the kind of machine."""
ORDER = tuple(Stage)
RUNNING: Mapping[Stage, tuple[Phase, Reason]] = {
    Stage.PREPARE: (Phase.PREPARING, Reason.PREPARING),
    Stage.TRAIN: (Phase.TRAINING, Reason.TRAINING),
    Stage.EVALUATE: (Phase.EVALUATING, Reason.EVALUATING),
}
"""Phase of a run while an attempt of a stage runs."""


def wanted(stages: Stages) -> list[Stage]:
    """The stages that a run has."""
    return [stage for stage in ORDER if stage is Stage.TRAIN or stages.of(stage) is not None]


def side_stages(spec: Spec) -> list[tuple[Stage, SideStage]]:
    """The stages beside the training that are wanted."""
    found = ((stage, spec.stages.of(stage)) for stage in Stage)
    return [(stage, own) for stage, own in found if own is not None]


def next_stage(spec: Spec, status: RunStatus) -> Stage | None:
    """The stage that the next attempt is for; None when all that is wanted is finished."""
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
    """An attempt, for people: those that do not train say what they are for."""
    stage = "" if attempt.stage is Stage.TRAIN else f" ({attempt.stage})"
    return f"{word} {attempt.number}{stage}"


def checkpoint_to_evaluate(spec: Spec, result: Result | None) -> int | None:
    """The step of the best checkpoint, or of the last where none is kept for being the best."""
    if result is None:
        return None
    best = result.best_step if spec.checkpoint.keep.best else None
    return result.step if best is None else best


def staged(spec: Spec, stage: Stage) -> Spec:
    """The run as it would be if this stage were all of it: what an attempt at the stage is made from."""
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


def _trainer(trainer: Trainer, own: SideStage) -> Trainer:
    """The stage's program. The recipe stays beside a command: it is what the command is told of."""
    changes: dict[str, object] = {"command": own.command}
    if isinstance(own, EvaluateStage):
        changes["recipe"] = own.recipe or trainer.recipe
        same = own.recipe in (None, trainer.recipe)
        changes["config"] = {**trainer.config, **own.config} if same else own.config
    return trainer.model_copy(update=changes)


def _selector(shared: PodTemplate, gpus: int) -> Mapping[str, str]:
    """Return the stage's part of the workers' node selector: without GPUs, the architecture alone."""
    return shared.node_selector if gpus else {k: v for k, v in shared.node_selector.items() if k == ARCHITECTURE}


def _workers(workers: Workers, own: SideStage, gpus: int) -> Workers:
    """One machine, in the zones of the others since the volume is there; of their kind only if it has to have GPUs."""
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
