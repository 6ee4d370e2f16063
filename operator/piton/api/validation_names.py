"""Rules on names that the API server checks in pods and claims: of labels, taints, images, keys and other objects."""

import re
from collections.abc import Iterable, Iterator, Mapping

from piton.api.cel import not_in_cel
from piton.api.pod_template import PodTemplate, Toleration
from piton.api.spec import SideStage, Spec
from piton.api.stages import side_stages

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SUBDOMAIN_MAX = 253
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(f"({_LABEL_NAME.pattern})?")
_KEY = re.compile(r"(?!\.$|\.\.)[-._A-Za-z0-9]{1,253}")
_SECONDS_MAX = 2**63 - 1
ONLY_NEW = "a run that has begun is not asked, and CEL on a spec does not see its status"


def is_subdomain(text: str) -> bool:
    """True if an object may have this name."""
    return len(text) <= _SUBDOMAIN_MAX and _SUBDOMAIN.fullmatch(text) is not None


def is_qualified_name(text: str) -> bool:
    """True if a label, a taint or a resource may have this name: `gpu`, or with its domain `nvidia.com/gpu`."""
    domain, slash, name = text.rpartition("/")
    return (is_subdomain(domain) or not slash) and _LABEL_NAME.fullmatch(name) is not None


def kinds_of_pods(spec: Spec) -> Iterator[tuple[str, PodTemplate | SideStage]]:
    """Yield what is asked for each kind of pod, with its path in the spec."""
    yield "workers.template", spec.workers.template
    for stage, own in side_stages(spec):
        yield f"stages.{stage.lower()}", own


def check_labels(path: str, labels: Mapping[str, str]) -> Iterator[str]:
    """Return the problems of labels that stand at this path."""
    for key, value in labels.items():
        if not is_qualified_name(key):
            yield f"{path}: '{key}' is no name of a label; write one such as example.com/pool"
        elif not _LABEL_VALUE.fullmatch(value):
            yield (
                f"{path}.{key}: '{value}' is no value of a label; write at most 63 letters, digits, dashes, dots and "
                "underscores, a letter or digit first and last"
            )


def check_annotations(path: str, annotations: Iterable[str]) -> Iterator[str]:
    """Return the problems of the names of annotations that stand at this path. Their values may be any text."""
    for key in annotations:
        if not is_qualified_name(key):
            yield f"{path}: '{key}' is no name of an annotation; write one such as example.com/owner"


@not_in_cel("maps of labels have no bound")
def good_selectors(spec: Spec) -> Iterator[str]:
    """Check that node selectors and tolerations are such as the API server takes of a pod."""
    for path, pod in kinds_of_pods(spec):
        yield from check_labels(f"spec.{path}.nodeSelector", pod.node_selector)
        for number, toleration in enumerate(pod.tolerations):
            for problem in _of_toleration(toleration):
                yield f"spec.{path}.tolerations[{number}].{problem}"


def _of_toleration(toleration: Toleration) -> Iterator[str]:
    if toleration.key and not is_qualified_name(toleration.key):
        yield f"key: '{toleration.key}' is no key of a taint; write one such as nvidia.com/gpu"
    if not toleration.key and toleration.operator != "Exists":
        yield "operator: without a key only Exists is possible; name the key of the taint"
    if toleration.operator == "Exists" and toleration.value:
        yield "value: Exists looks at no value; remove it, or write operator: Equal"
    if toleration.value and not _LABEL_VALUE.fullmatch(toleration.value):
        yield f"value: '{toleration.value}' is no value of a taint; write it as the node has it"
    if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
        yield "tolerationSeconds: only NoExecute has a time; write effect: NoExecute, or remove it"
    if (toleration.toleration_seconds or 0) > _SECONDS_MAX:
        yield "tolerationSeconds: more than 64 bits can hold; remove it to tolerate the taint for ever"


@not_in_cel(ONLY_NEW)
def good_image(spec: Spec) -> Iterator[str]:
    """Check that the image has no blanks around it, which the API server takes of no container."""
    image = spec.trainer.image
    if image != image.strip():
        yield f"spec.trainer.image: '{image}' begins or ends with a blank; remove it"


@not_in_cel(ONLY_NEW)
def good_references(spec: Spec) -> Iterator[str]:
    """Check that objects beside the run have names that an object may have, and keys that a Secret may have."""
    volume = spec.checkpoint.volume
    named = {
        "workers.template.serviceAccountName": spec.workers.template.service_account_name,
        "checkpoint.volume.claimName": volume.claim_name,
        "checkpoint.volume.storageClassName": volume.storage_class_name,
    }
    for path, name in named.items():
        if name is not None and not is_subdomain(name):
            yield f"spec.{path}: {_no_name(name)}"
    for variable in spec.trainer.env:
        source = variable.value_from
        for reference in (source.secret_key_ref, source.config_map_key_ref) if source else ():
            if reference and not is_subdomain(reference.name):
                yield f"spec.trainer.env: in valueFrom of {variable.name} {_no_name(reference.name)}"
            if reference and not _KEY.fullmatch(reference.key):
                yield (
                    f"spec.trainer.env: in valueFrom of {variable.name} '{reference.key}' is no key of a Secret or a "
                    "ConfigMap; write letters, digits, dashes, underscores and dots, as the object has it"
                )


def _no_name(name: str) -> str:
    return f"'{name}' is no name of an object; write a letter or a digit first and last, and on both sides of a dot"
