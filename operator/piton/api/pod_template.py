"""Models of spec.workers.template: the part of the pods that users may set."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from piton.api.fields import Amount, Capability, Label, Model, Name, UnixId


class Toleration(Model):
    """A toleration of the trainer's pods, as in core/v1."""

    key: str | None = Field(
        default=None, max_length=316, description="Taint key; empty with Exists matches every taint."
    )
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How key and value are compared.")
    value: str | None = Field(default=None, max_length=63, description="Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect; none matches all."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, description="How long NoExecute is tolerated, in seconds."
    )


class Resources(Model):
    """Resources of one container, as in core/v1. Piton adds the GPUs itself."""

    requests: Mapping[str, Amount] = Field(default_factory=dict, description="What the scheduler reserves.")
    limits: Mapping[str, Amount] = Field(default_factory=dict, description="What the container may not exceed.")


class Policy(StrEnum):
    """Node preference of the pods of a group. It is not a requirement: they start elsewhere if it is not met."""

    PACK = "Pack"
    """Prefer nodes with other pods of the group: eight runs of one GPU fill one node before the next."""
    SPREAD = "Spread"
    """Prefer nodes without other pods of the group: the loss of a node stops only one of them."""


class Placement(Model):
    """Group of pods that the run's pods prefer to share nodes with, or to avoid. A sweep sets it for its runs."""

    group: Label = Field(description="Name of the group, in the namespace; for the runs of a sweep the sweep's.")
    policy: Policy = Field(description="Pack: on the nodes of the group's other pods; Spread: on other nodes.")


class Capabilities(Model):
    """Capabilities of the containers. They can only be dropped: Piton grants no more than the image has."""

    drop: Annotated[tuple[Capability, ...], Field(max_length=64)] = Field(
        default=(), description="Capabilities to take away, e.g. ALL."
    )


class SeccompProfile(Model):
    """System calls that the containers may make."""

    type: Literal["RuntimeDefault", "Unconfined"] = Field(description="RuntimeDefault or Unconfined.")


class SecurityContext(Model):
    """User, groups and privileges of the pods of all stages, with the field names of core/v1.

    It combines fields of a pod and of its container. None of them grants a privilege that the image does not have.
    """

    run_as_non_root: bool | None = Field(
        default=None,
        description="Refuse to start as root. Default: true for a recipe; for a command whatever its image does. With"
        " true, what Pod Security's level restricted asks for as well is set, unless it is given here:"
        " allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}.",
    )
    run_as_user: UnixId | None = Field(default=None, description="User of the program; none is the image's.")
    run_as_group: UnixId | None = Field(default=None, description="Group of the program; none is the image's.")
    supplemental_groups: Annotated[tuple[UnixId, ...], Field(max_length=32)] = Field(
        default=(), description="Further groups of the program."
    )
    fs_group: UnixId | None = Field(
        default=None, description="Group that owns a fresh volume; none is that of Piton's trainer image, 65532."
    )
    allow_privilege_escalation: bool | None = Field(
        default=None, description="Whether the program may gain rights, as sudo does."
    )
    capabilities: Capabilities | None = Field(default=None, description="Capabilities to take away.")
    seccomp_profile: SeccompProfile | None = Field(default=None, description="Which system calls are allowed.")
    read_only_root_filesystem: bool | None = Field(
        default=None,
        description="Whether only the volumes can be written to; /tmp is then one of them. Default: true for a recipe"
        " that is not root.",
    )


class PodTemplate(Model):
    """The few pod fields that a user may set; not a PodSpec, because the operator's rights would come with it."""

    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = Field(
        default=(), description="Tolerations besides the GPU taint's, which Piton adds."
    )
    node_selector: Mapping[str, str] = Field(
        default_factory=dict,
        description="Labels that a node must have. Unless they are named, kubernetes.io/arch is amd64, and /os linux.",
    )
    service_account_name: Name | None = Field(default=None, description="Service account of the pods, e.g. for IRSA.")
    resources: Resources = Field(default_factory=Resources, description="CPU, memory and other resources per node.")
    placement: Placement | None = Field(default=None, description="Which other pods to be beside, or apart from.")
    security_context: SecurityContext = Field(
        default_factory=SecurityContext, description="As whom the pods of all stages run, and with which rights."
    )
