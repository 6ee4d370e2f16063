"""Rules on the pods: what the API server would refuse of them, and what is Piton's to set."""

import re
from collections.abc import Iterator

from piton.api.cel import cel, not_in_cel
from piton.api.fields import DNS_LABEL
from piton.api.pod_template import PodTemplate, Toleration
from piton.api.spec import EvaluateStage, SideStage, Spec
from piton.api.stages import side_stages
from piton.contract.quantity import parse_quantity

_LABEL_NAME = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

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
            if "nvidia.com/gpu" in wanted:
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


NO_ZONE = "spec.workers.zones: '{zone}' is no zone; write one such as us-east-1a"


@cel("spec.workers.zones[]", f"self.matches('{DNS_LABEL}')", NO_ZONE, zone="self")
def good_labels(spec: Spec) -> Iterator[str]:
    """Check that zones are valid label values."""
    for zone in spec.workers.zones:
        if not re.fullmatch(DNS_LABEL, zone):
            yield NO_ZONE.format(zone=zone)


def _kinds_of_pods(spec: Spec) -> Iterator[tuple[str, PodTemplate | SideStage]]:
    """Yield what is asked for each kind of pod, with its path in the spec."""
    yield "workers.template", spec.workers.template
    for stage, own in side_stages(spec):
        yield f"stages.{stage.lower()}", own


@not_in_cel("maps of resources have no bound, and amounts have units")
def fitting_limits(spec: Spec) -> Iterator[str]:
    """Check that no limit is below its request: the API server takes no such pod."""
    for path, pod in _kinds_of_pods(spec):
        for name, least in pod.resources.requests.items():
            most = pod.resources.limits.get(name)
            if most is not None and parse_quantity(most) < parse_quantity(least):
                yield (
                    f"spec.{path}.resources.limits.{name}: {most} is below the request of {least}; raise the limit, or "
                    "lower the request"
                )


@not_in_cel("maps of labels have no bound")
def good_selectors(spec: Spec) -> Iterator[str]:
    """Check that node selectors and tolerations are such as the API server takes of a pod."""
    for path, pod in _kinds_of_pods(spec):
        for key, value in pod.node_selector.items():
            if not _LABEL_NAME.fullmatch(key):
                yield f"spec.{path}.nodeSelector: '{key}' is no name of a label; write one such as example.com/pool"
            elif not _LABEL_VALUE.fullmatch(value):
                yield (
                    f"spec.{path}.nodeSelector.{key}: '{value}' is no value of a label; write at most 63 letters, "
                    "digits, dashes, dots and underscores, a letter or digit first and last"
                )
        for number, toleration in enumerate(pod.tolerations):
            for problem in _of_toleration(toleration):
                yield f"spec.{path}.tolerations[{number}].{problem}"


def _of_toleration(toleration: Toleration) -> Iterator[str]:
    if toleration.key and not _LABEL_NAME.fullmatch(toleration.key):
        yield f"key: '{toleration.key}' is no key of a taint; write one such as nvidia.com/gpu"
    if not toleration.key and toleration.operator != "Exists":
        yield "operator: without a key only Exists is possible; name the key of the taint"
    if toleration.operator == "Exists" and toleration.value:
        yield "value: Exists looks at no value; remove it, or write operator: Equal"
    if toleration.value and not _LABEL_VALUE.fullmatch(toleration.value):
        yield f"value: '{toleration.value}' is no value of a taint; write it as the node has it"
    if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
        yield "tolerationSeconds: only NoExecute has a time; write effect: NoExecute, or remove it"


YOUNGER = (fitting_limits, good_selectors)
"""Rules that are younger than some runs. A run may train with what they refuse: only a later stage has it."""
PODS = (gpus_by_piton, root_or_not, good_labels, *YOUNGER)
"""Rules in the order of display."""
