"""What a cluster runs besides Kubernetes, in one process: it watches, feeds DNS, and makes volumes."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from hack.cluster import api, dns, processes, storage
from hack.cluster.shell import BoxError

PROCESS = "addons"
_RETRY_SECONDS = 0.5
Objects = list[dict[str, Any]]


def start() -> None:
    """Start DNS and this process."""
    storage.create_classes()
    dns.start()
    if not processes.running(PROCESS):
        processes.start(PROCESS, [sys.executable, "-m", "hack.cluster", "addons"])


def stop() -> None:
    """Stop both."""
    processes.stop(PROCESS)
    processes.stop(dns.PROCESS)


def serve() -> None:
    """Until it is killed."""
    names = _Names()
    watched: dict[str, Callable[[Objects], None]] = {
        "/api/v1/services": names.services_changed,
        "/apis/discovery.k8s.io/v1/endpointslices": names.slices_changed,
        "/api/v1/persistentvolumeclaims": storage.provision,
        "/api/v1/persistentvolumes": storage.reclaim,
    }
    threads = [threading.Thread(target=watch, args=pair) for pair in watched.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def watch(path: str, changed: Callable[[Objects], None]) -> None:
    """Tell of every change, for ever. The API server may go away and come back as it likes."""
    while True:
        try:
            for objects in api.follow(path):
                changed(objects)
        except (BoxError, ValueError) as error:
            print(f"{path}: {error}", flush=True)
            time.sleep(_RETRY_SECONDS)


class _Names:
    """The services and the slices of their endpoints as last seen, which two threads bring."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._services: Objects = []
        self._slices: Objects = []

    def services_changed(self, services: Objects) -> None:
        with self._lock:
            self._services = services
            self._publish()

    def slices_changed(self, slices: Objects) -> None:
        with self._lock:
            self._slices = slices
            self._publish()

    def _publish(self) -> None:
        dns.publish(dns.records(self._services, self._slices))
