"""Causes for which a run waits, recognised by the cluster's own messages, each with a remedy.

The patterns are words of Kubernetes 1.20 to 1.37, Karpenter 1 and Kubeflow's training operator 1.9. In each table the
first pattern that is found counts, so the more specific come first. What none recognizes is quoted without advice.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.stages import path_of
from piton.core.start_words import Culprit


@dataclass(frozen=True)
class Cause:
    """One known cause."""

    reason: Reason
    pattern: str
    """A regular expression, searched in what the cluster says."""
    advice: str = ""
    """The remedy. Groups of the pattern are filled in."""
    ends_with_room: bool = False
    """True if it is over as soon as a ResourceQuota has room, and not before."""
    of: Culprit | None = None
    """The culprit with whom alone it counts, where a container cannot start; None: with each."""


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """A cause that was found in a text."""

    reason: Reason
    advice: str = ""
    """The remedy, with names filled in."""
    ends_with_room: bool = False


_PLACES = (
    "widen spec.workers.instanceTypes or spec.workers.zones, or remove spec.capacity.tiers",
    "spec.workers.instanceTypes, spec.workers.zones, spec.capacity.tiers",
)
_PLACES_BESIDE = ("ask for less in {resources}, or widen spec.workers.zones", "spec.workers.zones")
"""Ways to widen the choice of nodes, and settings that narrow it: of the workers, and of a stage beside them."""


def recognize(
    text: str, causes: Iterable[Cause], stage: Stage, *, culprit: Culprit = Culprit.RUN, **known: str
) -> Recognized | None:
    """Return the first cause that is found in the text, with its advice. Paths of the stage and `known` are filled in.

    A stage beside the training chooses its node by its own settings and by the zones, where the volume is.
    """
    known |= {setting: path_of(setting, stage) for setting in ("resources", "tolerations")}
    known["selector"] = path_of("nodeSelector", stage)
    known["widen"], known["labels"] = _PLACES if stage is Stage.TRAIN else _PLACES_BESIDE
    known["widen"] = known["widen"].format(**known)
    for cause in causes:
        found = re.search(cause.pattern, text, re.DOTALL)
        if found and cause.of in (None, culprit):
            advice = cause.advice.format(**known, **found.groupdict())
            return Recognized(reason=cause.reason, advice=advice, ends_with_room=cause.ends_with_room)
    return None


REFUSALS = (
    Cause(
        Reason.WEBHOOK_UNAVAILABLE,
        r'failed calling webhook .*?"https?://(?P<host>[^/:"?]+)',
        "Check that the pods behind the service {host} run; if it is not installed any more, delete its webhook"
        " configuration.",
    ),
    Cause(
        Reason.WEBHOOK_UNAVAILABLE,
        r'failed calling webhook "(?P<webhook>[^"]+)"',
        "Check that the service behind the webhook {webhook} runs.",
    ),
    Cause(
        Reason.POLICY_DENIED,
        r'admission webhook "(?P<policy>[^"]+)" denied',
        "Change what {policy} objects to, or ask the cluster's administrator for an exception.",
    ),
    Cause(
        Reason.POLICY_DENIED,
        r"ValidatingAdmissionPolicy '(?P<policy>[^']+)'.* denied",
        "Change what the policy {policy} objects to, or ask the cluster's administrator for an exception.",
    ),
    Cause(
        Reason.POD_SECURITY,
        r'violates PodSecurity "(?P<level>[^:"]+)',
        'The namespace enforces Pod Security "{level}". A command trains there with'
        " spec.workers.template.securityContext.runAsNonRoot: true and an image that is not root; or have the namespace"
        " labelled pod-security.kubernetes.io/enforce with a level that allows the pods.",
    ),
    Cause(
        Reason.QUOTA_EXCEEDED,
        r"exceeded quota: (?P<quota>[^,\s]+)",
        "Raise the ResourceQuota {quota} of this namespace, or free a part of it.",
        ends_with_room=True,
    ),
    Cause(
        Reason.QUOTA_EXCEEDED,
        r"failed quota: (?P<quota>[^:\s]+): must specify",
        "The ResourceQuota {quota} wants this stated: set it in {resources}.",
    ),
    Cause(
        Reason.LIMIT_RANGE,
        r"(maximum|minimum) \S+ usage per (Container|Pod|PersistentVolumeClaim)|limit to request ratio",
        "Change {resources} or spec.checkpoint.volume.size, or the LimitRange of this namespace.",
    ),
    Cause(
        Reason.LIMIT_RANGE,
        r"must be less than or equal to (?P<resource>[\w./-]+) limit",
        "A LimitRange of this namespace sets a limit of {resource} by default that is below what the run requests: set"
        " {resources}.limits, or have the LimitRange changed.",
    ),
    Cause(
        Reason.MISSING_RIGHTS,
        r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"',
        "Allow {user} to {verb} {resource}: the chart's ClusterRole does; install or upgrade it again.",
    ),
    Cause(
        Reason.NAMESPACE_TERMINATING,
        r"because it is being terminated",
        "The namespace is being deleted: create the run in another one.",
    ),
    Cause(
        Reason.ENGINE_MISSING,
        r"PyTorchJobs cannot be created here|does not serve (PyTorchJobs|pytorchjobs)",
        "Install the CRD of PyTorchJobs: with Piton's chart, or with Kubeflow's training operator.",
    ),
    Cause(Reason.CLAIM_MISSING, r"there is no claim"),
    Cause(
        Reason.REFUSED,
        r'serviceaccount "(?P<account>[^"]+)" not found',
        "Create the service account {account}, or change spec.workers.template.serviceAccountName.",
    ),
)
"""Causes for which the API server refuses an object: a job, a claim, or a pod of the job."""

PLACEMENT = (
    Cause(
        Reason.CLAIM_MISSING,
        r'persistentvolumeclaim "(?P<claim>[^"]+)" (not found|is being deleted)',
        "Create the claim {claim}, or write the claimName of another one in spec.checkpoint.volume, with nothing else"
        " in it.",
    ),
    Cause(
        Reason.VOLUME_UNBOUND,
        r"unbound immediate PersistentVolumeClaims|didn't find available persistent volumes to bind"
        r"|non-existent (pv|persistent ?volume)|must be bound",
        "`kubectl describe persistentvolumeclaim` says why the claim has no volume; check its storage class.",
    ),
    Cause(
        Reason.VOLUME_IN_OTHER_ZONE,
        r"didn't match PersistentVolume's node affinity|volume node affinity conflict|no available volume zone"
        r"|incompatible volume requirements",
        "The volume can be reached from its own zone only: set spec.workers.zones to that zone, or use a volume that"
        " every zone reaches.",
    ),
    Cause(
        Reason.UNSCHEDULABLE,
        r"label \S+ is (not allowed|restricted)",
        "Take that label out of {selector}: Karpenter launches no node for pods that name it.",
    ),
    Cause(
        Reason.UNSCHEDULABLE,
        r"exceed limits for nodepool|node limits have been exhausted",
        "Raise spec.limits of the NodePool.",
    ),
    Cause(
        Reason.UNSCHEDULABLE,
        r"didn't match pod affinity rules|unsatisfiable topology constraint for pod affinity",
        "It waits for a node in the zone of the attempt's other replicas{zone}: all have to be in one. If none comes"
        " within limits.startTimeout, the next attempt tries another zone.",
    ),
    Cause(
        Reason.UNSCHEDULABLE,
        r"out of resources|POOL_EXHAUSTED|[Ii]nsufficient ?\w*[Cc]apacity|after failed scale-up|SkuNotAvailable",
        "The cloud has no such machine at present. Wait for one, or {widen}.",
    ),
    Cause(
        Reason.UNSCHEDULABLE,
        r"(?i)quota exceeded|QuotaExceeded|exceed\w* .*\bquota|LimitExceeded",
        "The account's quota at the cloud has no room for such a machine: have it raised, or {widen}.",
    ),
    Cause(
        Reason.UNSCHEDULABLE,
        r"max node group size reached",
        "Raise the largest size of the node group, or {widen}.",
    ),
    Cause(
        Reason.UNSCHEDULABLE,
        r"Insufficient (?P<resource>[\w./-]+\w)",
        "No node has enough {resource} free. Wait for one, or {widen}.",
    ),
    Cause(
        Reason.UNSCHEDULABLE,
        r"no instance type",
        "No NodePool has such a node: {widen}, or widen the requirements of the NodePool.",
    ),
    Cause(
        Reason.UNSCHEDULABLE,
        r"node affinity/selector|incompatible requirements",
        "No node has the labels that the run asks for: check {labels} and {selector}.",
    ),
    Cause(
        Reason.UNSCHEDULABLE,
        r"untolerated taint|did not tolerate taint|taints that the pod didn't tolerate",
        "Add a toleration to {tolerations} if the run may use these nodes.",
    ),
    Cause(Reason.UNSCHEDULABLE, r""),
)
"""Causes for which no node is found, by messages of the scheduler and the autoscaler about a pod."""

ATTACHING = (
    Cause(
        Reason.VOLUME_ATTACHING,
        r"exclusively attached|already used by|Multi-Attach",
        "The volume is still attached to another node. If that node has died, this ends by itself after 6 minutes, or"
        " at once when the node is tainted node.kubernetes.io/out-of-service.",
    ),
    Cause(Reason.VOLUME_ATTACHING, r"", "Check the controller of the volume's CSI driver."),
)
MOUNTING = (
    Cause(
        Reason.VOLUME_MOUNTING,
        r'(?P<kind>configmap|secret) "(?P<name>[^"]+)" not found',
        "Create the {kind} {name} in this namespace.",
    ),
    Cause(Reason.VOLUME_MOUNTING, r"", "Check the pods of the volume's CSI driver on this node."),
)
SANDBOX = (
    Cause(
        Reason.SANDBOX_FAILED,
        r"",
        "The container runtime or the network plugin (CNI) of this node fails. If it stays so, drain the node.",
    ),
)


def _added(reason: Reason) -> Cause:
    """Return the cause that lies with an init container: a run has none of its own."""
    advice = (
        "This is about an init container that is not in the run's spec: look at the webhook or controller that adds it."
    )
    return Cause(reason, r"", advice, of=Culprit.INIT_CONTAINER)


PULL_FAILED = (
    _added(Reason.IMAGE_PULL_FAILED),
    Cause(
        Reason.IMAGE_PULL_FAILED,
        r"",
        "The registry fails, or the node's way to it or its disk: the run tries again by itself. If that lasts, look at"
        " the registry, and at the log of the node's container runtime.",
        of=Culprit.CLUSTER,
    ),
    Cause(
        Reason.IMAGE_PULL_FAILED,
        r"no image found in|no match(ing manifest)? for|cannot be used on this",
        "Build the image for the architecture of these nodes, or choose others in {selector}.",
    ),
    Cause(
        Reason.IMAGE_PULL_FAILED,
        r"[Ss]ignature|rejected by policy",
        "A policy of the nodes refuses the image: have it signed, or take another.",
    ),
    Cause(
        Reason.IMAGE_PULL_FAILED,
        r"no longer supported|schema ?1|media ?type|application/vnd|image-specific|mismatched image rootfs",
        "Its name is not that of an image that nodes can run: correct it, or build the image anew.",
    ),
    Cause(
        Reason.IMAGE_PULL_FAILED,
        r"",
        "Check the image's name, and that nodes may pull it: a private registry needs imagePullSecrets at the service"
        " account.",
    ),
)
CONTAINER_CONFIG = (
    Cause(
        Reason.CONTAINER_CONFIG,
        r'(?P<kind>secret|configmap) "(?P<name>[^"]+)" not found',
        "Create the {kind} {name} in this namespace.",
    ),
    Cause(
        Reason.CONTAINER_CONFIG,
        r"runAsNonRoot",
        "The image runs as root, and the pod may not: take an image with a numeric user.",
    ),
    _added(Reason.CONTAINER_CONFIG),
    Cause(
        Reason.CONTAINER_CONFIG,
        r"",
        "Piton recognizes nothing about the run in this, so it takes the node or its container runtime to be at fault,"
        " and the run tries again by itself. If that lasts, look at the logs of the node's kubelet and container"
        " runtime, or at the image and the command if other nodes say the same.",
        of=Culprit.CLUSTER,
    ),
    Cause(Reason.CONTAINER_CONFIG, r"", "Check spec.trainer."),
)
LAUNCHING = (
    Cause(Reason.NODE_LAUNCHING, r"nodeclaim/|scale-up", "A node is being launched."),
    Cause(Reason.NODE_LAUNCHING, r""),
)
PULLING = (Cause(Reason.IMAGE_PULLING, r""),)
INITIALIZING = (Cause(Reason.INIT_CONTAINER, r""),)
INIT_CRASHING = (
    Cause(
        Reason.INIT_CONTAINER_FAILED,
        r"",
        "The trainer starts after it: look at its log, and at the webhook that adds it.",
    ),
)
GATED = (Cause(Reason.SCHEDULING_GATED, r"", "Whoever set the pod's scheduling gates has to take them off."),)
HELD_BACK = (
    Cause(
        Reason.JOB_SUSPENDED,
        r"",
        "Piton suspends no job: another controller has, and has to let it go on. Where that is Kueue, docs/kueue.md"
        " says how it leaves jobs of Piton alone, and how a run waits for quota.",
    ),
)
