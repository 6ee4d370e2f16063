"""As whom the pods of a run run, and with which rights: those of Pod Security's level `restricted` where that can be.

a recipe    runs in an image of ours, or one made from it: restricted, with a root file system that is read-only
a command   runs in an image of which nothing is known: what it does as root it may go on doing, until the spec
            says `runAsNonRoot: true`, which is what a namespace that enforces `restricted` takes
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from piton.api.pod_template import SecurityContext
from piton.api.spec import Spec

TRAINER_GROUP = 65532
"""The group of the trainer image's user. A fresh block volume is root's; with this it is the group's as well."""
_OF_THE_POD = {"fs_group", "supplemental_groups"}
_NOT_ROOT: Mapping[str, Any] = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True, kw_only=True)
class Security:
    """Two security contexts of core/v1."""

    pod: Mapping[str, Any]
    """Fields that only a pod can have."""
    container: Mapping[str, Any]

    @property
    def needs_tmp(self) -> bool:
        """True if /tmp has to be a volume, as nothing else can be written to."""
        return bool(self.container.get("readOnlyRootFilesystem"))


def security_of(spec: Spec) -> Security:
    """The rights of every pod of the run."""
    given = spec.workers.template.security_context
    wanted = {"fsGroup": TRAINER_GROUP, "fsGroupChangePolicy": "OnRootMismatch"}
    of_pod = given.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=_OF_THE_POD)
    of_container = given.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=_OF_THE_POD)
    return Security(pod={**wanted, **of_pod}, container={**_defaults(spec, given), **of_container})


def _defaults(spec: Spec, given: SecurityContext) -> dict[str, Any]:
    ours = bool(spec.trainer.recipe) and given.run_as_user != 0
    not_root = ours if given.run_as_non_root is None else given.run_as_non_root
    if not not_root:
        return {}
    return {**_NOT_ROOT, "readOnlyRootFilesystem": True} if ours else dict(_NOT_ROOT)
