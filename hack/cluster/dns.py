"""Cluster DNS: which names services and their pods have, served by dnsmasq from a file. The records are pure.

Workers of a job find each other by the name of a headless service. CoreDNS would take minutes to build, and replace 80
lines.
"""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

from hack.cluster import processes
from hack.cluster.layout import CLUSTER_DOMAIN, GATEWAY, STATE

PROCESS = "dnsmasq"
_HOSTS = STATE / "dns" / "hosts"
_SERVICE_NAME = "kubernetes.io/service-name"
Object = dict[str, Any]
Record = tuple[str, str]


def start() -> None:
    """Start dnsmasq on the gateway; what is not of the cluster it asks the machine's own resolvers."""
    _HOSTS.parent.mkdir(parents=True, exist_ok=True)
    _HOSTS.touch()
    own = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--log-facility=-",
        "--no-hosts",
    ]
    where = [f"--listen-address={GATEWAY}", "--bind-interfaces"]
    what = [f"--addn-hosts={_HOSTS}", f"--local=/{CLUSTER_DOMAIN}/", "--no-negcache"]
    if not processes.running(PROCESS):
        processes.start(PROCESS, ["dnsmasq", *own, *where, *what])


def publish(records: Iterable[Record]) -> None:
    """Have dnsmasq serve these and no others."""
    text = "".join(f"{address} {name}\n" for address, name in sorted(set(records)))
    if text == _HOSTS.read_text():
        return
    aside = _HOSTS.with_suffix(".new")
    aside.write_text(text)
    aside.replace(_HOSTS)
    if pid := processes.running(PROCESS):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGHUP)


def records(services: Iterable[Object], slices: Iterable[Object]) -> Iterator[Record]:
    """Address and name: a service has its own address, a headless one those of its ready pods."""
    headless = set()
    for service in services:
        address = service["spec"].get("clusterIP")
        if address == "None":
            headless.add(_domain(service))
        elif address:
            yield address, _domain(service)
    for piece in slices:
        if (domain := _domain_of_slice(piece)) in headless:
            yield from _ready(piece, domain)


def _ready(piece: Object, domain: str) -> Iterator[Record]:
    for endpoint in piece.get("endpoints") or []:
        if (endpoint.get("conditions") or {}).get("ready", True):
            for address in endpoint["addresses"]:
                yield address, domain
                if hostname := endpoint.get("hostname"):
                    yield address, f"{hostname}.{domain}"


def _domain_of_slice(piece: Object) -> str:
    metadata = piece["metadata"]
    return _name((metadata.get("labels") or {}).get(_SERVICE_NAME, ""), metadata["namespace"])


def _domain(service: Object) -> str:
    return _name(service["metadata"]["name"], service["metadata"]["namespace"])


def _name(service: str, namespace: str) -> str:
    return f"{service}.{namespace}.svc.{CLUSTER_DOMAIN}"
