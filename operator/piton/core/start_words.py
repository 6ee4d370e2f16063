"""Find out, by the words of kubelet and container runtime, whose fault it is that a container does not start. Pure.

Words of Kubernetes 1.20 to 1.37, containerd 1.6 to 2, CRI-O 1.2x to 1.3x, runc, crun, youki, gVisor and Kata. What
is not recognized blames the cluster: a node can fail in any words, a program or an image only in the few listed here.

Registry, node and runtime often fail in the words of a user's fault (`not found`, `permission denied`), so the thing of
which they are said counts first.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from piton.observed import ClusterMessage, ReplicaSeen

PULL_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
CREATE_REASONS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "PreCreateHookError",
        "PreStartHookError",
        "RunContainerError",
    }
)
"""The kubelet's reasons for a container that waits because an image, or the container itself, cannot be made."""
_KUBELETS_OWN = frozenset({"PreCreateHookError", "PreStartHookError", "RegistryUnavailable"})
"""Of these, those that no field of a run can be the cause of. The hooks are those of its managers of devices."""
START_ERRORS = frozenset({"StartError", "ContainerCannotRun"})
"""The kubelet's reasons for a container that has ended without having begun."""
INIT_CRASHES = "InitContainerCrashes"
"""Piton's own reason, in the place of a kubelet's, of an init container that is started again and again."""
SIDECAR_STARTS = "SidecarStarts"
"""Piton's own reason for an init container that runs beside the trainer, and keeps it waiting until it has started."""
INIT_CONTAINER = "init container "
"""First words where an init container cannot start. A run has none of its own: a webhook or a controller adds it."""


class Blame(Enum):
    """The one who has to mend it."""

    PROGRAM = "the user, also after it has run: a Secret that does not exist"
    IMAGE = "the user, if the image has never run in this run: a wrong name, or a registry that refuses"
    UNPROVEN = "the user, if this program has never run in this run"
    CLUSTER = "the registry, the node or its container runtime, or nobody knows"


class Culprit(Enum):
    """The one who keeps a container from starting, as the verdict on the attempt has it."""

    RUN = "the image, the command or another field of the run"
    CLUSTER = "the registry, the node or its container runtime"
    INIT_CONTAINER = "an init container, of which a run has none of its own"


@dataclass(frozen=True, kw_only=True)
class Proven:
    """The parts of a container that are proven to be right, whatever keeps it from starting."""

    image: bool
    """A container of this image has run in this run: it exists, and may be pulled."""
    program: bool
    """This program has run in this run, from this image and in such pods: it can start."""


NOTHING_PROVEN = Proven(image=False, program=False)


_RUNTIME_FAILS = r"running (\w+ )?hook|executing hook|unable to retrieve OCI runtime error|fork/exec "
"""Failures of the runtime itself, whatever the program of the container is called."""
_RUNTIMES_OWN = (
    rf"{_RUNTIME_FAILS}|nvidia-(container|ctk)|nvml"
    r"|libnvidia|CDI device|/dev/nvidia|shim( task)?: (start failed: )?exec: "
    r"|exec: \\*\"([^\"]*/)?(containerd-shim[^\"/]*|kata-(runtime|shim)|qemu-[^\"/]*|runsc|runc|crun|youki|conmon)\\*\""
)
"""Programs of the container runtime that fail. Their words are often those of a program that does not exist."""
_EXEC = r"(\bexec: \\*\"[^\"]*\": (stat .*?: )?|\bexec (/[^:]*|[^\s:]+): )"
_EXEC_FAILS = (
    rf"{_EXEC}(executable file|not found|no such file|permission denied|operation not permitted|exec format"
    r"|is a directory|not a directory|text file busy|invalid argument|file ?name too long|too many (levels|symbolic)"
    r"|no command|cannot run executable)|executable file .*not found|executable '[^']*'.* not found"
    r"|the file \S+ was not found"
    r"|open executable: (permission denied|no such file)|finding executable|exec format error|exec container process"
    r"|exec user process caused|failed to load /[^:]*: (no such|exec format|permission denied|not a dir|is a dir)"
)
"""A program that does not exist, or cannot be executed."""
_PROGRAM_NAMED = re.compile(
    r"\bexec(?:: |utable file )(?:\\*\"([^\"]+?)\\*\"|`([^`]+)`)|\bexec (/[^:]+): "
    r"|exec container process [^`]*`([^`]+)`|\bexecutable [\"']([^\"']+)[\"']|the file (\S+) was not found",
    re.IGNORECASE,
)
"""In quotes it may have any characters: `python train.py` is one program if a user wrote it as one word."""
_NO_SUCH_KEY = (
    r"(secret|configmap) \"[^\"]*\" not found|couldn't find key|non-existent (secret|config ?map|key)"
    r"|environment variable key .* not found"
)
_CANNOT_ENTER = (
    r"(permission denied|operation not permitted|no such file|not a directory|file exists|read-only file system)"
)
_WRONG_SETTING = (
    r"no command specified|runAsNonRoot|non-root|non-numeric user|unable to find (user|group)|no (users|groups) found"
    r"|unknown (user|group) ?(id|name)|no matching entries in (passwd|group)|invalid USER value|uids and gids must be"
    r"|current working directory|working directory .*invalid|outside of container root|memory limit|OOM-killed"
    r"|invalid environment variable|argument list too long|\bsubPath\S* .*must not|missing value for \""
    r"|invalid fieldPath|unsupported (fieldPath|container resource)|unknown capability"
    r"|(secrets|configmaps) \"[^\"]*\" is forbidden"
    r"|no match(ing manifest)? for "
)
"""Other faults of a run or its image: in its user, its memory, its environment."""
_WRONG_FOLDER = rf"\bchdir\b.*{_CANNOT_ENTER}|container init: mkdir \"?/[^:]*: {_CANNOT_ENTER}"
"""The working directory of the image is missing, or its user may not enter it."""
_NODE_OR_RUNTIME = (
    r"is reserved for|failed to reserve|deadline exceeded|timed? ?out|ttrpc|containerd-shim|connection (refused|reset)"
    r"|no space left|too many open files|temporarily unavailable|cannot allocate memory|read-only file system"
    r"|input/output error|stale (NFS )?file handle|transport endpoint|cgroup|mount|apparmor|resource busy"
    r"|failed to sync|not registered|not yet been read|name .*is already in use"
)
_STORE = (
    r"\b(layers?|blobs?|snapshot\w*|mount\w*|lease|ingest|bucket|overlay\w*|tar)\b|content (store|digest|descriptor)"
    r"|extract|(?<!pull and )unpack|failed to (copy|commit)|get image from"
)
"""Words of what comes after the registry has named the image to one who may have it: its layers are fetched, and stored
on the node. They often end in words of a wrong name: `content digest sha256:0a: not found`."""
_CALL = (
    r"\b(open(at2?)?|creat(e|ing)|mk(dir|nod|fifo)(at)?|l?ch(own|mod)|(sym|un)?link(at)?|renam(e|ing)|remov(e|ing)"
    r"|l?stat(fs)?|read(ing|link)?|writ(e|ing)|truncate|f?sync|unshare|setns|clone|ioctl|chroot|l?[sg]etxattr)"
)
_FILE_FAILS = rf"{_CALL}( \"?/[^:]*)?: ([a-z]+: )?(permission denied|operation not permitted|no such file)"
"""A system call of the one who pulls. Registries deny permissions as well, but they open no file."""
_FILE_OF_NODE = rf"{_CALL} \"?/(dev|proc|sys|run|var/(run|lib)|etc/(cdi|containers|containerd|crio))/|/dev/|\.sock\b"
_PART_OF_NODE = (
    r"\bdevices?\b|pre-?start|allocat(ed|ing|e) |resolv\.conf|sandbox|not running|shutting down|\bEOF\b|cancell?ed"
    r"|unavailable|connection error|code = (aborted|resourceexhausted)|reading from server|transport is closing"
    r"|broken pipe|dial unix|systemd|d-?bus|message bus|unable to start unit|seccomp|selinux|rlimit|sysctl|keyring"
    r"|\be?bpf|\bQMP\b|hypervisor|\bguest\b|gofer|sentry|vsock|firecracker|structure needs cleaning|i/o error"
    r"|network|external connectivity|iptables|no such (image|container|task)"
    r"|\b(image|container|task)( id)?( [\w.:-]+)?\s*:?\s+(is |was )?(not (found|known)|does not exist)"
)
"""Parts of the node and its runtime that a run cannot name: what is wrong with them is never a field of its spec."""
_REGISTRY_IS_DOWN = (
    r"time-?out|timed out|deadline exceeded|connection (refused|reset)|no such host|server misbehaving"
    r"|temporary failure|unreachable|no route|\bEOF\b|too ?many ?requests|dial (tcp|unix)|connection error|tls: |x509"
    r"|quota exceeded|exceeded .*quota|rate ?(limit|exceeded)|throttl|resource.?exhausted"
    r"|\b(429|5\d\d) [A-Z]|status( code)?:? (429|5\d\d)\b"
)
_BAD_REFERENCE = r"invalid reference|couldn't parse image"
_WRONG_KIND = (
    r"(unexpected|unsupported|unknown) (media ?)?type \"?application/|encountered remote \"application/"
    r"|(?<!415 )(unsupported|unimplemented) ((docker )?config |manifest |image )?(schema|mime|media)[ -]?(type|version)"
    r"|image-specific operation on artifact|mismatched image rootfs|no longer supported since containerd"
    r"|schema ?(version )?1\b[^:]*\b(not|no longer|disabled|deprecat|unsupported)|unsupported[^:]*\bschema ?1\b"
    r"|no image found in (an |the )?(image index|manifest list|index)|no match(ing manifest)? for \S"
    r"|cannot be used on this (platform|operating system)|short[- ]name "
)
"""An image of another architecture, or in a form that no node takes any more; or a chart, or another artifact."""
_NOT_SIGNED = r"signature ?validation ?failed|source image rejected|is rejected by policy|signature was required"
"""A policy of the node refuses the image as it is."""
_WRONG_NAME = (
    rf"{_BAD_REFERENCE}|not found|(manifest|name|repository name)[ _](is )?(unknown|not known)|does not exist"
    r"|no such image|no match(ing)? "
)
_NOT_ALLOWED = (
    r"\b40[13]\b|unauthorized|forbidden|denied|authorization failed|authentication required|no basic auth"
    r"|invalid username"
)
_NAMES = re.compile(
    r"""\"[^\"]*\"|(?<!\w)'[^'\s]+'(?!\w)|[^\s\"]*/[^\s\"]*|(?<=manifest for )\S+|(?<=access denied for )[^\s,]+"""
    r"|(?<=reading manifest )\S+(?= in )|(?<=(?:project|ository) )\S+(?= (?:is )?not found)"
)
"""Names of images and addresses, which may contain any word."""
_WORDS_THAT_NAME = re.compile(r'"[^"\s]*"|[^\s"]*/[^\s"]*')
"""Names again, where a runtime quotes whole sentences of another program as well."""
_OF_INIT_CONTAINER = re.compile(rf"^{INIT_CONTAINER}[^:]*: ")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_BACK_OFF = re.compile(r"ImagePullBackOff|ErrImagePull|Back-off pulling image|[:\s]")


def blame(words: str, program: str | None = None) -> Blame:
    """Return whose fault it is. `words` begin with the kubelet's reason: `ErrImagePull: not found`.

    `program` is the one that the container runs, where that is known. Another one that is missing is a part of the
    node: a helper of its container runtime, of its security module or of a file system.
    """
    if words.startswith(INIT_CONTAINER):
        return Blame.CLUSTER
    reason, _, message = words.partition(":")
    if reason in _KUBELETS_OWN:
        return Blame.CLUSTER
    if reason in PULL_REASONS:
        return _blame_for_image(reason, message)
    if reason not in CREATE_REASONS | START_ERRORS:
        return Blame.PROGRAM  # no kubelet says so: on this machine, the operating system does
    if _has(_RUNTIMES_OWN, message):
        return Blame.UNPROVEN if _is_about_own(message, program) else Blame.CLUSTER
    if _has(_NO_SUCH_KEY, message):
        return Blame.PROGRAM
    if _has(_WRONG_SETTING, message):
        return Blame.UNPROVEN
    if _has(_EXEC_FAILS, message):
        return Blame.CLUSTER if _is_about_another(message, program) else Blame.UNPROVEN
    if _has(_WRONG_FOLDER, message) and not _has(_FILE_OF_NODE, message):
        return Blame.UNPROVEN
    return Blame.CLUSTER


def names_node(words: str) -> bool:
    """True if the words name a part of the node or its runtime, and are not only those that nobody knows."""
    message = words.partition(":")[2]
    return _has(_RUNTIMES_OWN, message) or _is_about_node(message)


def blames_cluster(words: str, program: str | None, proven: Proven) -> bool:
    """True if the cluster is to blame, by the words, or because what does not start is proven to be right."""
    found = blame(words, program)
    is_right = proven.image if is_about_image(words) else proven.program
    return found is Blame.CLUSTER or (is_right and found is not Blame.PROGRAM)


def words_of(replica: ReplicaSeen) -> str:
    """Return the kubelet's words for what cannot start, with those of its last event where the state has no cause."""
    words = replica.waiting or ""
    if not tells_no_cause(words):
        return words
    told = [w for w in replica.words if w.reason == "Failed" and w.message.startswith("Failed to pull image")]
    newest = max(told, key=lambda word: word.last_time or _LONG_AGO, default=None)
    return f"{words}: {newest.message}" if newest else words


def find_culprit(word: ClusterMessage, replica: ReplicaSeen, proven: Proven) -> Culprit:
    """Return the one to blame for a container that cannot start, as the verdict would have it."""
    words = words_of(replica) if replica.cannot_start else f"{word.reason}: {word.message}"
    if words.startswith(INIT_CONTAINER):
        return Culprit.INIT_CONTAINER
    return Culprit.CLUSTER if blames_cluster(words, replica.program, proven) else Culprit.RUN


def is_about_image(words: str) -> bool:
    """True if the image is missing: no container was made."""
    return _OF_INIT_CONTAINER.sub("", words).partition(":")[0] in PULL_REASONS


def tells_no_cause(words: str) -> bool:
    """True if they only say that the image is tried again later. Kubelets before 1.32 do."""
    return is_about_image(words) and not _BACK_OFF.sub("", _NAMES.sub("", words))


def _blame_for_image(reason: str, message: str) -> Blame:
    text = _NAMES.sub("", message)
    if reason in ("InvalidImageName", "ErrImageNeverPull"):
        return Blame.IMAGE
    if reason == "ImageInspectError":  # asked of the node's runtime alone
        return Blame.IMAGE if _has(_BAD_REFERENCE, text) else Blame.CLUSTER
    if _has(_REGISTRY_IS_DOWN, text):
        return Blame.CLUSTER
    if _has(_WRONG_KIND, message) or _has(_NOT_SIGNED, f"{reason}:{message}"):
        return Blame.IMAGE
    if _has(_STORE, text) or _has(_FILE_FAILS, message):
        return Blame.CLUSTER
    if _has(_WRONG_NAME, text) or _has(_NOT_ALLOWED, text):
        return Blame.IMAGE
    return Blame.UNPROVEN if tells_no_cause(f"{reason}:{message}") else Blame.CLUSTER


def _is_about_node(message: str) -> bool:
    """True if the words name a part of the node, outside of all names that a user or an image has given."""
    text = _WORDS_THAT_NAME.sub("", message)
    return _has(_NODE_OR_RUNTIME, message) or _has(_FILE_OF_NODE, message) or _has(f"{_STORE}|{_PART_OF_NODE}", text)


def _is_about_another(message: str, program: str | None) -> bool:
    """True if it names a program, and not the one that the container runs.

    What the kubelet makes of a variable in it is not known.
    """
    named = _find_program(message)
    if not program or "$(" in program or named is None:
        return False
    return named != _last_part(program)


def _is_about_own(message: str, program: str | None) -> bool:
    """True if the program that the container runs cannot be executed, and has the name of a runtime's."""
    if not program or not _has(_EXEC_FAILS, message) or _has(_RUNTIME_FAILS, message):
        return False
    return _find_program(message) == _last_part(program)


def _find_program(message: str) -> str | None:
    """Return the last part of the program's path that the message is about; None: it names no program."""
    named = _PROGRAM_NAMED.search(message)
    return None if named is None else _last_part(next(filter(None, named.groups())))


def _has(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
