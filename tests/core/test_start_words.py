"""Whose fault it is, by the words of kubelets, registries and container runtimes."""

import pytest

from piton.core.start_words import Blame, blame, is_about_image, names_node, tells_no_cause

RUNC = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
INIT = f"StartError: {RUNC}unable to start container process: error during container init: "
NO_CONTAINER = "CreateContainerError: failed to create containerd container: "
PULL = (
    'ErrImagePull: failed to pull and unpack image "ghcr.io/x/timeout:503": failed to resolve reference "ghcr.io/x/y": '
)


def _missing(program: str) -> str:
    return f'exec: "{program}": executable file not found in $PATH'


@pytest.mark.parametrize(
    "words",
    [
        'CreateContainerConfigError: secret "timeout" not found',
        'CreateContainerConfigError: configmap "settings" not found',
        "CreateContainerConfigError: couldn't find key token in Secret team/wandb",
        "No such file or directory: pyhton",
    ],
)
def test_a_key_that_does_not_exist_is_the_programs(words: str) -> None:
    assert blame(words) is Blame.PROGRAM


@pytest.mark.parametrize(
    "words",
    [
        f"{PULL}ghcr.io/x/y: not found",
        f"{PULL}pull access denied, repository does not exist or may require authorization: insufficient_scope",
        f"{PULL}failed to authorize: failed to fetch anonymous token: unexpected status: 403 Forbidden",
        f"{PULL}unexpected status from HEAD request to https://ghcr.io/v2/x/timeout/manifests/503: 401 Unauthorized",
        f"{PULL}no basic auth credentials",
        f"{PULL}no match for platform in manifest: not found",
        "ErrImagePull: reading manifest 1 in docker.io/x/y: manifest unknown",
        "ErrImagePull: docker.io/team/connection-refused:1: not found",
        'InvalidImageName: Failed to apply default image tag "X:": couldn\'t parse image name',
        'ErrImageNeverPull: Container image "x" is not present with pull policy of Never',
    ],
)
def test_a_wrong_name_or_a_refusal_is_the_images(words: str) -> None:
    assert blame(words) is Blame.IMAGE


@pytest.mark.parametrize(
    "words",
    [
        f"{PULL}unexpected status from HEAD request to https://ghcr.io/v2/x/y/manifests/1: 503 Service Unavailable",
        f"{PULL}failed to authorize: failed to fetch oauth token: unexpected status: 500 Internal Server Error",
        f"{PULL}unexpected status: 429 Too Many Requests",
        f'{PULL}failed to do request: Head "https://x/v2/": dial tcp: lookup x on 10.0.0.2:53: no such host',
        f'{PULL}failed to do request: Head "https://x/v2/": dial tcp 10.0.0.1:443: i/o timeout',
        f"{PULL}net/http: TLS handshake timeout",
        f"{PULL}unexpected EOF",
        "ErrImagePull: toomanyrequests: You have reached your pull rate limit",
        "ErrImagePull: write /var/lib/containerd/blob: no space left on device",
        "ImageInspectError: Failed to inspect image: context deadline exceeded",
        "RegistryUnavailable: it is not there",
        f"{INIT}error running prestart hook #0: exit status 1, stderr: nvidia-container-cli: initialization error",
        f'{INIT}error running createRuntime hook #0: exec: "/usr/bin/nvidia-ctk": executable file not found in $PATH',
        'StartError: unable to retrieve OCI runtime error: exec: "nvidia-runtime": executable file not found in $PATH',
        "StartError: fork/exec /usr/bin/nvidia-container-runtime: no such file or directory",
        f'{INIT}error mounting "/dev/nvidia0" to rootfs at "/dev/nvidia0": permission denied',
        f"{INIT}unable to apply cgroup configuration: mkdir /sys/fs/cgroup/x: no space left on device",
        'CreateContainerError: failed to reserve container name "p_x_0": name "p_x_0" is reserved for "abc"',
        "CreateContainerError: context deadline exceeded",
        "CreateContainerError: failed to generate spec: unresolvable CDI devices nvidia.com/gpu=0",
        "CreateContainerConfigError: failed to sync secret cache: timed out waiting for the condition",
        "CreateContainerConfigError: services have not yet been read at least once, cannot construct envvars",
        "init container istio-init: ErrImagePull: not found",
        'StartError: failed to start shim: start failed: exec: "containerd-shim-runc-v2": executable file not found',
        'StartError: failed to create shim task: exec: "/opt/kata/bin/kata-runtime": permission denied: unknown',
        'StartError: failed to create shim task: exec: "/opt/firecracker": permission denied: unknown',
        'CreateContainerError: container create failed: exec: "/usr/local/bin/crun": executable file not found',
        'CreateContainerError: the container name "k8s_x" is already in use by abc. You have to remove that container',
        'RunContainerError: OCI runtime create failed: exec: "runsc": executable file not found in $PATH',
    ],
)
def test_trouble_of_registry_node_and_runtime_is_the_clusters(words: str) -> None:
    assert blame(words) is Blame.CLUSTER


@pytest.mark.parametrize(
    "words",
    [
        "ErrImagePull",
        f'{INIT}exec: "pyhton": executable file not found in $PATH: unknown',
        f'{INIT}exec: "/train.sh": permission denied: unknown',
        f'StartError: {RUNC}exec: "/usr/bin/nvidia-smi-wrapper": permission denied',
        f'{INIT}exec: "/opt/crunch": permission denied: unknown',
        'ContainerCannotRun: OCI runtime create failed: exec: "webhook": executable file not found in $PATH',
        "CreateContainerError: container create failed: executable file `pyhton` not found in $PATH: No such file",
        "RunContainerError: crun: open executable: Permission denied: OCI permission denied",
        'ImagePullBackOff: Back-off pulling image "ghcr.io/x/y:1"',
        f"{INIT}container init was OOM-killed (memory limit too low?)",
        "CreateContainerError: unable to find user app: no matching entries in passwd file",
        f'{INIT}exec: "/train.sh": stat /train.sh: no such file or directory: unknown',
        f'{INIT}exec: "/data": is a directory: unknown',
        'CreateContainerError: failed to generate container "p" spec: failed to generate spec: no command specified',
        "CreateContainerConfigError: container has runAsNonRoot and image will run as root",
        "CreateContainerConfigError: image has non-numeric user (app), cannot verify user is non-root",
        f'{INIT}exec: "/mnt/train": stat /mnt/train: no such file or directory: unknown',
        f"StartError: {RUNC}unable to start container process: exec /usr/local/bin/python: exec format error",
        f'{INIT}exec: "/usr/bin/python": exec format error',
    ],
)
def test_what_a_program_or_its_image_has_wrong_depends_on_what_has_run(words: str) -> None:
    assert blame(words) is Blame.UNPROVEN


NOBODY_KNOWS = [
    "StartError",
    "StartError: ",
    "StartError: exit status 255: unknown",
    "StartError: something that nobody has seen yet",
    "CreateContainerError: rpc error: code = Unknown desc = ",
    'StartError: failed to start containerd task "pytorch": cannot start a stopped process: unknown',
    "StartError: OCI runtime create failed: runc did not terminate successfully: signal: killed: unknown",
    "StartError: OCI runtime create failed: runc did not terminate successfully: exit status 1: unknown",
    "StartError: OCI runtime create failed: runc did not terminate successfully: exit status 2: fatal error: newosproc",
    "StartError: error constructing low-level runtime: no runtime binary found from candidate list [runc crun]",
    f"{INIT}error jailing process inside rootfs: pivot_root .: invalid argument: unknown",
    f"{INIT}error closing exec fds: get handle to /proc/thread-self/fd: unsafe procfs detected: openat2: invalid cross",
    f"{INIT}failed to set /proc/self/oom_score_adj: permission denied",
    f"{INIT}mkdir /run/nvidia/driver: read-only file system",
    "StartError: hcs::CreateComputeSystem: The operating system does not match the host operating system.",
    "CreateContainerError: error reserving ctr name k8s_pytorch_ragcun-1-master-0_team_0 for id 0a: name is reserved",
    'CreateContainerError: failed to set removing state for container "x": container is already in removing state',
    "CreateContainerError: relabel failed /var/lib/kubelet/pods/x: lsetxattr: operation not supported",
    "CreateContainerConfigError: host IP unknown; known addresses: []",
    "CreateContainerConfigError: Node is not yet ready",
    "CreateContainerConfigError: stat /mnt/data: no such file or directory",
    'RunContainerError: failed to set starting state for container "0a1b": it is in CONTAINER_EXITED state',
    "RunContainerError: cannot start container x: container x is in exited state",
    "RunContainerError: failed to update container resources",
    f'{INIT}exec: "python": input/output error: unknown',
    f"StartError: {RUNC}exec /usr/bin/python: too many open files",
]


@pytest.mark.parametrize("words", NOBODY_KNOWS)
def test_what_says_nothing_of_the_run_is_the_clusters(words: str) -> None:
    assert blame(words, "python") is Blame.CLUSTER


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (f"StartError: {RUNC}exec user process caused: exec format error", "python"),
        (f'{INIT}exec: "run.sh": cannot run executable found relative to current directory', "run.sh"),
        (f'{INIT}exec: "/app/run": text file busy: unknown', "/app/run"),
        (f"{INIT}exec /app/run: invalid argument: unknown", "/app/run"),
        (f"StartError: {RUNC}{_missing('nvidia-container-toolkit-run')}", "nvidia-container-toolkit-run"),
        (f"StartError: {RUNC}{_missing('/opt/conmon')}", "/opt/conmon"),
        ("StartError: Creating container process caused: executable 'torchrun' for container not found", "torchrun"),
        ("StartError: youki: executable 'torchrun' not found in $PATH", "torchrun"),
        ('StartError: failed to create process: finding executable "torchrun": no such file or directory', "torchrun"),
        ("StartError: failed to create process: failed to load /app/run: exec format error", "/app/run"),
        ("StartError: failed to create shim task: the file torchrun was not found: unknown", "torchrun"),
        ("StartError: crun: exec container process (missing dynamic library?) `/app/t`: No such file", "/app/t"),
        ('CreateContainerError: msg="runc create failed: exec: \\"pyhton\\": executable file not found"', "pyhton"),
        ('ContainerCannotRun: caused "exec: \\\\\\"/w\\\\\\": stat /w: no such file or directory"', "/w"),
        (f"StartError: {RUNC}exec /bin/sh: argument list too long: unknown", "/app/run"),
        (f"{INIT}mkdir /workspace: permission denied: unknown", "python"),
        (f"{INIT}mkdir /workspace/x: read-only file system: unknown", "python"),
        ("StartError: crun: chdir to `/workspace`: No such file or directory", "python"),
        (f"{NO_CONTAINER}mount image config: user: unknown userid foo", "python"),
        (f"{NO_CONTAINER}failed to generate spec: no users found", "python"),
        (f"{NO_CONTAINER}unable to find group users: no matching entries in group file", "python"),
        ("CreateContainerError: set memory limit 4000000 too low; should be at least 12582912 bytes", "python"),
        ("CreateContainerError: Error response from daemon: Minimum memory limit allowed is 6MB", "python"),
        ("CreateContainerError: unknown capability to drop: CAP_NOPE", "python"),
        ("CreateContainerConfigError: container's runAsUser breaks non-root policy (pod: x, container: y)", "python"),
        ('CreateContainerConfigError: missing value for "NAME"', "python"),
        ('CreateContainerConfigError: subPath "../x" must not contain ".."', "python"),
        ("CreateContainerConfigError: unsupported fieldPath: status.x", "python"),
        (
            'CreateContainerConfigError: secrets "s3" is forbidden: no relationship found between node and this',
            "python",
        ),
    ],
)
def test_each_runtime_has_words_of_its_own_for_what_a_run_has_wrong(words: str, program: str) -> None:
    assert blame(words, program) is Blame.UNPROVEN


@pytest.mark.parametrize("words", NOBODY_KNOWS[:5])
def test_words_that_nobody_knows_name_no_node(words: str) -> None:
    assert not names_node(words)


@pytest.mark.parametrize(
    "words",
    [
        f"{INIT}error running prestart hook #0: exit status 1",
        f"{NO_CONTAINER}failed to mount: no such device",
        "RunContainerError: context canceled",
    ],
)
def test_words_of_a_part_of_the_node_name_it(words: str) -> None:
    assert names_node(words)


@pytest.mark.parametrize(
    ("words", "program", "found"),
    [
        (f'{INIT}exec: "pyhton": executable file not found in $PATH: unknown', "pyhton", Blame.UNPROVEN),
        (f'{INIT}exec: "/opt/t.sh": stat /opt/t.sh: no such file or directory: unknown', "/opt/t.sh", Blame.UNPROVEN),
        (f"StartError: {RUNC}exec /usr/local/bin/python: exec format error", "python", Blame.UNPROVEN),
        ("CreateContainerError: executable file `pyhton` not found in $PATH: No such file", "pyhton", Blame.UNPROVEN),
        ("RunContainerError: crun: open executable: Permission denied: OCI permission denied", "t", Blame.UNPROVEN),
        (f"{NO_CONTAINER}get apparmor_parser version: {_missing('apparmor_parser')}", "python", Blame.CLUSTER),
        (f"{NO_CONTAINER}{_missing('fuse-overlayfs')}", "/opt/t.sh", Blame.CLUSTER),
        (f"{NO_CONTAINER}failed to mount: {_missing('mount.erofs')}", "python", Blame.CLUSTER),
        (f"StartError: {RUNC}{_missing('nvidia-modprobe')}", "python", Blame.CLUSTER),
        (f"StartError: {RUNC}{_missing('/usr/sbin/newuidmap')}", "python", Blame.CLUSTER),
        ("CreateContainerError: executable file `newuidmap` not found in $PATH", "python", Blame.CLUSTER),
        (f"{NO_CONTAINER}{_missing('apparmor_parser')}", None, Blame.UNPROVEN),
        ('StartError: finding executable "gofer": no such file or directory', "python", Blame.CLUSTER),
        (f"{INIT}{_missing('python train.py')}: unknown", "python train.py", Blame.UNPROVEN),
        ("StartError: crun: executable file `python -m app` not found in $PATH", "python -m app", Blame.UNPROVEN),
        (f'{INIT}exec: "/opt/an app/t": stat /opt/an app/t: no such file', "/opt/an app/t", Blame.UNPROVEN),
        (f"{INIT}exec /opt/my app/t: exec format error", "/opt/my app/t", Blame.UNPROVEN),
        (f"{INIT}{_missing('torchrun:v2')}", "torchrun:v2", Blame.UNPROVEN),
        (f'{INIT}exec: "/app/": permission denied', "/app/", Blame.UNPROVEN),
        (f"{INIT}{_missing('')}", "", Blame.UNPROVEN),
        (f"{INIT}{_missing('python3.9')}", "$(PYTHON)", Blame.UNPROVEN),
        (f"{INIT}{_missing('/opt/v2/train')}", "/opt/$(VERSION)/$(NAME)", Blame.UNPROVEN),
        (f"{NO_CONTAINER}{_missing('mount helper')}", "python train.py", Blame.CLUSTER),
    ],
)
def test_a_missing_program_is_the_nodes_unless_the_container_runs_it(
    words: str, program: str | None, found: Blame
) -> None:
    assert blame(words, program) is found


PULLS = 'ErrImagePull: failed to pull and unpack image "ghcr.io/x/y:1": '
LAYER = f"{PULLS}failed to extract layer sha256:0a: "
DAEMON = "ErrImagePull: Error response from daemon: "
CRIO = "ErrImagePull: initializing source docker://ghcr.io/x/blob:1: "


@pytest.mark.parametrize(
    "words",
    [
        (f"{LAYER}failed to get reader from content store: content digest sha256:0a: not found"),
        (
            f'{PULLS}failed to prepare snapshot "extract-1 sha256:0a": parent snapshot sha256:0a does not exist: '
            "not found"
        ),
        f"{PULLS}failed to commit snapshot extract-1: failed to stat active key during commit: not found",
        (f"{LAYER}mount callback failed on /var/lib/tmpmounts/m1: open /x: permission denied: unknown"),
        f"{LAYER}unshare: operation not permitted: permission denied",
        f"{PULLS}error unpacking image: apply layer error: lease does not exist: not found",
        f"{PULLS}snapshotter nydus was not found: not found",
        f"{PULLS}failed to copy: httpReadSeeker: failed open: unexpected status code https://x/blobs/1: 403 Forbidden",
        f"{PULLS}failed to copy: httpReadSeeker: failed open: could not fetch content descriptor sha256:0: not found",
        f"{PULLS}unexpected media type text/html for sha256:0a from layer: not found",
        f"{PULLS}failed to load hosts: open /etc/containerd/certs.d/ghcr.io/hosts.toml: permission denied",
        f"{PULLS}rename /var/lib/a /var/lib/b: no such file or directory: does not exist",
        (
            f"{PULLS}unexpected status from GET request to https://x/v2/y: 403 Forbidden - Server message: denied: "
            "Quota exceeded for quota metric 'Requests' and limit 'Requests per project per region per minute'"
        ),
        "ErrImagePull: denied: Rate exceeded for this account",
        "ErrImagePull: connection error: desc = dial unix /run/containerd/containerd.sock: connect: permission denied",
        "ErrImagePull: writing blob: adding layer: processing tar file(open /usr: permission denied)",
        ('ErrImagePull: copying system image: storing blob to file "/var/tmp/1": open /var/tmp/1: permission denied'),
        "ErrImagePull: creating /var/tmp: mkdir: permission denied",
        "ErrImagePull: failed to register layer: lstat /var/lib/docker/0a: no such file or directory: not found",
        'ImageInspectError: Failed to inspect image "x": rpc error: code = NotFound desc = snapshot 1: not found',
        'ImageInspectError: Failed to inspect image "x": connect: permission denied',
        "RegistryUnavailable: 403 denied",
    ],
)
def test_an_image_that_the_node_cannot_fetch_or_store_is_no_wrong_name(words: str) -> None:
    assert blame(words) is Blame.CLUSTER


@pytest.mark.parametrize(
    "words",
    [
        f'{PULLS}failed to resolve reference "ghcr.io/team/snapshot:layer": ghcr.io/team/snapshot:layer: not found',
        (f"{CRIO}reading manifest layer in ghcr.io/x/blob: manifest unknown"),
        f"{DAEMON}manifest for snapshotter:nope not found: manifest unknown",
        (
            f"{DAEMON}pull access denied for layer, repository does not exist or may "
            "require 'docker login': denied: requested access is denied"
        ),
        f"{PULLS}The repository with name 'snapshot-models' does not exist in the registry with id '12': not found",
        f'{PULLS}403 Forbidden: denied: Permission denied for "latest" from request "/v2/p/blob/manifests/latest"',
        f'{PULLS}denied: Permission "downloadArtifacts" denied on resource "projects/x/layer"',
        f"{PULLS}artifact library/layer:1 not found",
        f"{PULLS}project snapshot not found",
        (
            f"{PULLS}failed to authorize: failed to fetch oauth token: unexpected status from GET request to "
            "https://x/v2/token: 403 Forbidden"
        ),
        f"{PULLS}failed to unpack image on snapshotter x: unexpected media type application/vnd.helm: not found",
        f"{CRIO}reading manifest 1 in x/y: unauthorized: authentication required",
        'ImageInspectError: Failed to inspect image "X": rpc error: code = Unknown desc = invalid reference format',
    ],
)
def test_a_wrong_name_stays_the_images_whatever_words_are_in_it(words: str) -> None:
    assert blame(words) is Blame.IMAGE


CHOOSES = "ErrImagePull: choosing an image from manifest list docker://x/y:1: "
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
HELM = "application/vnd.cncf.helm.config.v1+json"


@pytest.mark.parametrize(
    "words",
    [
        f'{CHOOSES}no image found in image index for architecture "amd64", variant "", OS "linux"',
        f'{CHOOSES}no image found in manifest list for architecture amd64, variant "", OS linux',
        f"{PULLS}no match for platform in manifest sha256:0a1b: not found",
        f"{PULLS}failed to unpack image on snapshotter overlayfs: no match for platform in manifest: not found",
        f"{DAEMON}no matching manifest for linux/amd64 in the manifest list entries",
        f'{DAEMON}image operating system "windows" cannot be used on this platform',
        f'{PULLS}media type "{SCHEMA_1}" is no longer supported since containerd v2.1, please rebuild the image',
        f"{PULLS}docker schema 1 images are not supported",
        f"{DAEMON}Docker Image manifest version 2, schema 1 support is disabled by default",
        f"{PULLS}failed to unpack image on snapshotter overlayfs: mismatched image rootfs and manifest layers",
        f'ErrImagePull: image configuration: unsupported image-specific operation on artifact with type "{HELM}"',
        f'{DAEMON}Encountered remote "{HELM}"(helm chart) when fetching',
        f"{PULLS}encountered unknown type {HELM}; children may not be fetched",
        "ErrImagePull: unsupported manifest media type and digest",
        'ErrImagePull: short-name "y:1" did not resolve to an alias and no unqualified-search registries are defined',
        "SignatureValidationFailed: image pull failed for x because the signature validation failed",
        "SignatureValidationFailed",
        "ErrImagePull: SignatureValidationFailed: Source image rejected: A signature was required, but none exists",
    ],
)
def test_an_image_that_no_such_node_can_run_or_may_run_is_the_images(words: str) -> None:
    assert blame(words) is Blame.IMAGE


@pytest.mark.parametrize(
    "words",
    [
        "SignatureValidationFailed: fetching signature: unexpected status: 503 Service Unavailable",
        "ErrImagePull: SignatureValidationFailed: reading signatures: dial tcp 10.0.0.1:443: i/o timeout",
        f"{PULLS}unexpected status from HEAD request to https://x/v2/y: 415 Unsupported Media Type",
        f"{CHOOSES}reading manifest sha256:0a: received unexpected HTTP status: 502 Bad Gateway",
    ],
)
def test_a_registry_that_does_not_answer_for_a_signature_or_a_list_is_waited_for(words: str) -> None:
    assert blame(words) is Blame.CLUSTER


@pytest.mark.parametrize(
    "words",
    [
        (
            f'StartError: {RUNC}error gathering device information adding device "/dev/infiniband/uverbs0": no '
            "such file or directory: unknown"
        ),
        f"{INIT}open /dev/neuron0: no such file or directory",
        f"{INIT}write sysctl key net.ipv4.x: open /proc/sys/net/ipv4/x: no such file or directory",
        f"{INIT}open /run/nvidia/driver: no such file or directory",
        f"{INIT}error loading seccomp filter into kernel: errno 524",
        f"{INIT}failed to set rlimit: operation not permitted",
        f"StartError: {RUNC}unable to start container process: can't get final child's PID from pipe: EOF",
        f'StartError: {RUNC}unable to start unit "x.scope": Message recipient disconnected from message bus',
        'StartError: failed to create shim task: Status { message: "failed to allocate guest memory"}',
        "StartError: failed to create shim task: QMP command failed: unknown",
        "StartError: OCI runtime start failed: starting root container: failed to setupFS: gofer did not start",
        "RunContainerError: rpc error: code = Unavailable desc = error reading from server: EOF",
        "RunContainerError: context canceled",
        "CreateContainerError: rpc error: code = Canceled desc = grpc: the client connection is closing",
        'CreateContainerError: connection error: desc = "transport: dial unix /run/crio.sock": connect: no such file',
        'CreateContainerError: failed to get image from containerd "sha256:0a1b": image "sha256:0a1b": not found',
        "CreateContainerError: Error response from daemon: No such image: sha256:0a1b",
        "CreateContainerError: reading image 0a1b: locating image with ID 0a1b: image not known",
        f"{NO_CONTAINER}snapshot sha256:0a1b does not exist: not found",
        f'{NO_CONTAINER}failed to create snapshot: missing parent "k8s.io/2/sha256:0a" bucket: not found',
        f"{NO_CONTAINER}failed to extract layer sha256:0a: content digest sha256:0a: not found",
        'CreateContainerError: failed to find sandbox id "0a1b": not found',
        'RunContainerError: failed to create containerd task: container "0a1b": not found',
        "PreStartHookError: internal error of cpumanager",
        "PreCreateHookError: no such file or directory",
        (
            "CreateContainerConfigError: pre-start check failed for device plugin resource nvidia.com/gpu: "
            "rpc error: code = Unknown"
        ),
        "CreateContainerConfigError: device plugin PreStartContainer rpc failed with err: not found",
        "CreateContainerConfigError: failed to get container allocated resources: no allocation",
        "CreateContainerConfigError: failed to create resolv.conf",
    ],
)
def test_a_part_of_the_node_that_fails_is_the_clusters(words: str) -> None:
    assert blame(words, "python") is Blame.CLUSTER


@pytest.mark.parametrize(
    "words",
    [
        f'{INIT}exec: "/opt/device/snapshot.sh": permission denied: unknown',
        f'{INIT}exec: "/mnt/layer/train": stat /mnt/layer/train: no such file or directory: unknown',
        f'{INIT}chdir to cwd ("/workspace/device") set in config.json failed: permission denied: unknown',
        f'{INIT}chdir to cwd ("/workspace") set in config.json failed: no such file or directory: unknown',
        f"{NO_CONTAINER}failed to generate spec: unable to find user guest: no matching entries in passwd file",
        f"StartError: {RUNC}unable to start container process: exec /usr/bin/python: argument list too long",
        'CreateContainerError: Error response from daemon: invalid environment variable: "="',
    ],
)
def test_a_users_own_names_say_nothing_of_the_node(words: str) -> None:
    assert blame(words) is Blame.UNPROVEN


def test_a_key_stays_the_users_whatever_its_name() -> None:
    assert blame('CreateContainerConfigError: secret "device-layer" not found') is Blame.PROGRAM
    assert blame("CreateContainerConfigError: couldn't find key snapshot in Secret team/sandbox") is Blame.PROGRAM


def test_a_back_off_without_a_cause_is_told_from_one_with_a_cause() -> None:
    assert tells_no_cause('ImagePullBackOff: Back-off pulling image "ghcr.io/x/y:1"')
    assert not tells_no_cause('ImagePullBackOff: Back-off pulling image "x": ErrImagePull: x: not found')
    assert not tells_no_cause("CreateContainerError")
    assert is_about_image("init container istio-init: ErrImagePull: not found")
