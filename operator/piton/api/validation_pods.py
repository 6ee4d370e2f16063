"""Rules on the pods: what the API server would refuse of them, and what is Piton's to set."""

from collections.abc import Iterator

from piton.api.cel import cel
from piton.api.spec import EvaluateStage, Spec
from piton.api.stages import side_stages
from piton.api.validation_names import good_image, good_references, good_selectors
from piton.api.validation_resources import fitting_limits, good_claim, good_resources
from piton.contract import names

GPUS = "spec.{path}.{part}: nvidia.com/gpu is {why}; remove it"
_NO_GPU = "!('nvidia.com/gpu' in self)"
_WORKERS = ("workers.template.resources", "set by spec.workers.gpusPerNode")
_PREPARE = ("stages.prepare.resources", "not for this stage")
_EVALUATE = ("stages.evaluate.resources", "set by spec.stages.evaluate.gpus")


def _gpus(of: tuple[str, str], part: str) -> str:
    path, why = of
    return GPUS.format(path=path, part=part, why=why)


@cel("spec.workers.template.resources.requests", _NO_GPU, _gpus(_WORKERS, "requests"))
@cel("spec.workers.template.resources.limits", _NO_GPU, _gpus(_WORKERS, "limits"))
@cel("spec.stages.prepare.resources.requests", _NO_GPU, _gpus(_PREPARE, "requests"))
@cel("spec.stages.prepare.resources.limits", _NO_GPU, _gpus(_PREPARE, "limits"))
@cel("spec.stages.evaluate.resources.requests", _NO_GPU, _gpus(_EVALUATE, "requests"))
@cel("spec.stages.evaluate.resources.limits", _NO_GPU, _gpus(_EVALUATE, "limits"))
def gpus_by_piton(spec: Spec) -> Iterator[str]:
    """Check that GPUs are requested in their own field only; before training there are none."""
    all_resources = [(_WORKERS, spec.workers.template.resources)]
    all_resources += [
        (_EVALUATE if isinstance(own, EvaluateStage) else _PREPARE, own.resources) for _, own in side_stages(spec)
    ]
    for of, resources in all_resources:
        for part, wanted in (("requests", resources.requests), ("limits", resources.limits)):
            if names.GPU in wanted:
                yield _gpus(of, part)


ROOT_OR_NOT = (
    "spec.workers.template.securityContext: runAsUser 0 is root, and runAsNonRoot forbids root; remove one of them"
)


@cel(
    "spec.workers.template.securityContext",
    "!(self.?runAsNonRoot.orValue(false) && self.?runAsUser.orValue(1) == 0)",
    ROOT_OR_NOT,
)
def root_or_not(spec: Spec) -> Iterator[str]:
    """Check that runAsNonRoot is not combined with user 0, which is root."""
    security = spec.workers.template.security_context
    if security.run_as_non_root and security.run_as_user == 0:
        yield ROOT_OR_NOT


YOUNGER = (good_resources, fitting_limits, good_selectors, good_image, good_references, good_claim)
"""Rules that are younger than some runs. A run may train with what they refuse: only a later stage has it."""
PODS = (gpus_by_piton, root_or_not, *YOUNGER)
"""Rules in the order of display."""
