"""Who is who in the box: one certificate authority, a certificate for each part, and kubeconfigs that carry them."""

import base64
from pathlib import Path

import yaml

from hack.cluster.layout import API_PORT, API_SERVICE_IP, CLUSTER_DOMAIN, GATEWAY, PKI
from hack.cluster.shell import run

CA = PKI / "ca.crt"
SERVICE_ACCOUNT_KEY = PKI / "service-account.key"
SERVICE_ACCOUNT_PUBLIC = PKI / "service-account.pub"
ADMIN = "admin"

_CA_KEY = PKI / "ca.key"
_CONFIG = PKI / "openssl.cnf"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650")
_SERVER_NAMES = (
    *("DNS:" + "kubernetes.default.svc".rsplit(".", cut)[0] for cut in range(3)),
    f"DNS:kubernetes.default.svc.{CLUSTER_DOMAIN}",
    "DNS:localhost",
    *(f"IP:{address}" for address in ("127.0.0.1", GATEWAY, API_SERVICE_IP)),
)


def create() -> None:
    """Make the authority, the service-account key, and what the control plane needs. Once."""
    if CA.exists():
        return
    PKI.mkdir(parents=True, exist_ok=True, mode=0o700)
    _CONFIG.write_text(
        "[req]\ndistinguished_name = dn\n[dn]\n"
    )  # OpenSSL's own would make every certificate an authority
    _request(CA, _CA_KEY, "/CN=piton-box", "basicConstraints=critical,CA:TRUE", "keyUsage=keyCertSign,digitalSignature")
    run(["openssl", "genpkey", "-algorithm", "RSA", "-out", SERVICE_ACCOUNT_KEY])
    run(["openssl", "pkey", "-in", SERVICE_ACCOUNT_KEY, "-pubout", "-out", SERVICE_ACCOUNT_PUBLIC])
    issue("apiserver", "/CN=kube-apiserver", names=_SERVER_NAMES)
    issue("apiserver-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet-client")
    issue(ADMIN, "/O=system:masters/CN=admin")
    issue("controller-manager", "/CN=system:kube-controller-manager")
    issue("scheduler", "/CN=system:kube-scheduler")
    issue("proxy", "/CN=system:kube-proxy")
    issue("front-proxy", "/CN=front-proxy")


def issue(name: str, subject: str, *, names: tuple[str, ...] = ()) -> None:
    """Make a certificate, once."""
    if certificate(name).exists():
        return
    extensions = ["basicConstraints=CA:FALSE", "extendedKeyUsage=clientAuth,serverAuth"]
    extensions += [f"subjectAltName={','.join(names)}"] if names else []
    _request(certificate(name), key(name), subject, *extensions, "-CA", str(CA), "-CAkey", str(_CA_KEY))


def _request(crt: Path, private: Path, subject: str, *more: str) -> None:
    extensions = [word for extension in more if "=" in extension for word in ("-addext", extension)]
    flags = [word for word in more if "=" not in word]
    run(["openssl", "req", "-x509", "-config", _CONFIG, *_NEW_KEY, "-subj", subject, *extensions, *flags,
         "-out", crt, "-keyout", private])  # fmt: skip


def certificate(name: str) -> Path:
    """Where it is."""
    return PKI / f"{name}.crt"


def key(name: str) -> Path:
    """Its private key."""
    return PKI / f"{name}.key"


def kubeconfig(name: str, path: Path, *, node: str | None = None) -> Path:
    """Write a kubeconfig that acts as `name`, complete in one file.

    With `node` it acts as that node's kubelet, as far as `name` may: a certificate's subject has 64 characters at most,
    and names that provisioners give are longer.
    """
    content = document(
        authority=CA.read_bytes(),
        certificate=certificate(name).read_bytes(),
        private=key(name).read_bytes(),
        user=name,
        node=node,
    )
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def document(
    *, authority: bytes, certificate: bytes, private: bytes, user: str, node: str | None = None
) -> dict[str, object]:
    """What a kubeconfig says; nodes, too, find the API server at the gateway."""
    credentials: dict[str, object] = {
        "client-certificate-data": _text(certificate),
        "client-key-data": _text(private),
    }
    if node is not None:
        credentials |= {"as": f"system:node:{node}", "as-groups": ["system:nodes"]}
    cluster = {"server": f"https://{GATEWAY}:{API_PORT}", "certificate-authority-data": _text(authority)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "piton-box", "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "piton-box", "context": {"cluster": "piton-box", "user": user}}],
        "current-context": "piton-box",
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
