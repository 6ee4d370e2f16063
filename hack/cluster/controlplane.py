"""etcd, the API server, the controller manager and the scheduler, and how one tells that they are up."""

from pathlib import Path
from urllib.request import urlopen

from hack.cluster import api, pki, processes
from hack.cluster.layout import (
    API_PORT,
    CLUSTER_DOMAIN,
    ETCD_PEER_PORT,
    ETCD_PORT,
    GATEWAY,
    KUBECONFIG,
    LOGS,
    PKI,
    SERVICE_NET,
    STATE,
)
from hack.cluster.release import program

AUDIT_LOG = LOGS / "audit.log"
"""Who created and deleted what, and who asked for positions in Kueue's queues, one JSON object per line; what tests
and benches count. What another program serves is not in the API server's metrics."""

NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
_UNTHROTTLED = ("--kube-api-qps=1000", "--kube-api-burst=2000")
"""By default the garbage collector sends 20 requests a second, and the scheduler 50: with hundreds of objects these
limits are what is measured, and not what the controllers of the cluster do."""
_ETCD = f"http://127.0.0.1:{ETCD_PORT}"
_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: None, resources: [{group: "", resources: [events]}, {group: events.k8s.io}]}
  - {level: Metadata, verbs: [create, delete]}
  - {level: Metadata, verbs: [get], resources: [{group: visibility.kueue.x-k8s.io}]}
  - {level: None}
"""


def start() -> None:
    """Start what does not run yet, and wait until the API server is ready."""
    commands = {
        "etcd": _etcd(),
        "kube-apiserver": _apiserver(),
        "kube-controller-manager": _controller_manager(),
        "kube-scheduler": _scheduler(),
    }
    for name in NAMES:
        if processes.running(name):
            continue
        processes.start(name, commands[name])
        if name == "etcd":
            processes.wait_for("etcd to be healthy", _etcd_is_healthy, seconds=30, of=name)
        if name == "kube-apiserver":
            processes.wait_for("the API server to be ready", api.ready, seconds=60, of=name)
    pki.kubeconfig(pki.ADMIN, KUBECONFIG)


def stop() -> None:
    """Stop all of it, etcd last."""
    for name in reversed(NAMES):
        processes.stop(name)


def _etcd() -> list[str | Path]:
    return [
        program("etcd"),
        f"--data-dir={STATE / 'etcd'}",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls=http://127.0.0.1:{ETCD_PEER_PORT}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{ETCD_PEER_PORT}",
        f"--initial-cluster=default=http://127.0.0.1:{ETCD_PEER_PORT}",
        "--unsafe-no-fsync",  # the box does not outlive the machine
    ]


def _etcd_is_healthy() -> bool:
    try:
        with urlopen(f"{_ETCD}/health", timeout=2) as response:  # noqa: S310 - the address is ours
            return b"true" in response.read()
    except OSError:
        return False


def _apiserver() -> list[str | Path]:
    policy = STATE / "audit.yaml"
    policy.write_text(_AUDIT_POLICY)
    return [
        program("kube-apiserver"),
        f"--etcd-servers={_ETCD}",
        "--bind-address=0.0.0.0",
        f"--secure-port={API_PORT}",
        f"--advertise-address={GATEWAY}",
        f"--service-cluster-ip-range={SERVICE_NET}",
        f"--tls-cert-file={pki.certificate('apiserver')}",
        f"--tls-private-key-file={pki.key('apiserver')}",
        f"--client-ca-file={pki.CA}",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={pki.SERVICE_ACCOUNT_PUBLIC}",
        f"--service-account-signing-key-file={pki.SERVICE_ACCOUNT_KEY}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--kubelet-client-certificate={pki.certificate('apiserver-kubelet')}",
        f"--kubelet-client-key={pki.key('apiserver-kubelet')}",
        "--kubelet-preferred-address-types=InternalIP",  # node names do not resolve
        "--enable-aggregator-routing=true",  # straight to the pods of a webhook: there is no kube-proxy here
        f"--requestheader-client-ca-file={pki.CA}",  # for APIs that other programs serve
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki.certificate('front-proxy')}",
        f"--proxy-client-key-file={pki.key('front-proxy')}",
        "--allow-privileged=true",
        f"--audit-policy-file={policy}",
        f"--audit-log-path={AUDIT_LOG}",
    ]


def _controller_manager() -> list[str | Path]:
    return [
        program("kube-controller-manager"),
        f"--kubeconfig={pki.kubeconfig('controller-manager', PKI / 'controller-manager.kubeconfig')}",
        "--leader-elect=false",
        *_UNTHROTTLED,
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki.SERVICE_ACCOUNT_KEY}",
        f"--root-ca-file={pki.CA}",
        "--bind-address=127.0.0.1",
    ]


def _scheduler() -> list[str | Path]:
    return [
        program("kube-scheduler"),
        f"--kubeconfig={pki.kubeconfig('scheduler', PKI / 'scheduler.kubeconfig')}",
        "--leader-elect=false",
        *_UNTHROTTLED,
        "--bind-address=127.0.0.1",
    ]
