"""The kopf half of the operator: watches that wake the controller, and a liveness probe.

Only `on.event` handlers, on every kind: any other kind of handler makes kopf write annotations and finalizers into the
objects that it watches. Finalizer, status and events are the controller's, through its own client.
"""

import asyncio
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import kopf
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException

from piton.clock import SystemClock
from piton.contract import names
from piton.kube import log
from piton.kube.client import JOBS, NODES, PODS, RUNS, SERVICES, SWEEPS, Client, Resource, load_configuration
from piton.kube.job_controller import JobController
from piton.kube.kueue import WORKLOADS
from piton.kube.metrics import OperatorMetrics, Registry, served
from piton.kube.progress_server import ProgressServer
from piton.kube.report_auth import ReportAuthenticator
from piton.kube.run_controller import Controller
from piton.kube.settings import Engine, PitonSettings
from piton.kube.sweep_controller import SweepController
from piton.kube.tls import Certificates
from piton.rendering.appdef import ReportEndpoint

Flag = asyncio.Event | threading.Event

_IDENTITY: Any = "piton"
"""For kopf's peering, which is off. Without a name kopf asks for the user's, and in a container there may be none."""

SERVER_SECONDS = 290
"""Seconds that the server keeps a watch open. Below 300: a load balancer in between often cuts at 5 minutes. A whole
number: the server refuses to read any other."""
CLIENT_SECONDS = 310.0
"""Seconds after which the client closes a watch, even if the server has not."""


def run(settings: PitonSettings) -> None:
    """Run the operator until SIGTERM or SIGINT.

    Raises:
        ValueError: no cluster is configured, or the port for metrics is taken.
    """
    log.configure()
    asyncio.run(serve(settings))


async def serve(settings: PitonSettings, *, stop: Flag | None = None, ready: Flag | None = None) -> None:
    """Run the operator in this event loop, until a signal or `stop`."""
    try:
        configuration = await load_configuration(settings.api_url)
    except ConfigException as error:
        raise ValueError(f"no cluster: {error}; set KUBECONFIG, or run inside one") from error
    certificates = Certificates(settings.tls_dir) if settings.progress_url and settings.tls_dir else None
    loop = asyncio.get_running_loop()
    meter = OperatorMetrics(Registry())
    async with served(meter.registry, settings.metrics_port), Client(configuration) as client:
        server = partial(_server, settings, certificates)
        controller = Controller(client, SystemClock(), loop, settings, meter, server)
        jobs = (
            JobController(client, SystemClock(), loop, settings, meter) if settings.engine is Engine.BUNDLED else None
        )
        sweeps = SweepController(client, SystemClock(), loop, settings, meter)
        registry = build_registry(controller, sweeps, jobs, configuration)
        tasks = [asyncio.create_task(controller.run(), name="controller")]
        tasks.append(asyncio.create_task(sweeps.run(), name="sweeps"))
        tasks += [asyncio.create_task(jobs.run(), name="jobs")] if jobs else []
        if certificates is not None:
            receiver = _receiver(controller, client, certificates, settings)
            tasks.append(asyncio.create_task(receiver.run(), name="receiver"))
        tasks += [asyncio.create_task(_watch(registry, settings, stop, ready), name="kopf")]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end


def _server(settings: PitonSettings, certificates: Certificates | None) -> ReportEndpoint | None:
    if settings.progress_url is None or certificates is None:
        return None
    return ReportEndpoint(url=settings.progress_url, ca_pem=certificates.authority)


def _receiver(
    controller: Controller, client: Client, certificates: Certificates, settings: PitonSettings
) -> ProgressServer:
    authenticator = ReportAuthenticator(client, SystemClock(), asyncio.get_running_loop())
    return ProgressServer(
        authenticator, controller.on_report, certificates, host=settings.progress_host, port=settings.progress_port
    )


async def _watch(
    registry: kopf.OperatorRegistry, settings: PitonSettings, stop: Flag | None, ready: Flag | None
) -> None:
    await kopf.operator(
        registry=registry,
        settings=build_kopf_settings(),
        standalone=True,
        identity=_IDENTITY,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        liveness_endpoint=f"http://{settings.probe_host}:{settings.probe_port}/healthz"
        if settings.probe_port
        else None,
        stop_flag=stop,
        ready_flag=ready,
    )


def build_kopf_settings() -> kopf.OperatorSettings:
    """Kopf's settings: it watches, filtered by the server, and does nothing else."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # no rights on CRDs and namespaces needed
    settings.watching.server_timeout = SERVER_SECONDS
    settings.watching.client_timeout = CLIENT_SECONDS
    settings.watching.connect_timeout = 30
    for resource in (JOBS, PODS, SERVICES, WORKLOADS):
        settings.watching.label_selectors[_resource(resource)] = names.LABEL_RUN
    return settings


def build_registry(
    controller: Controller, sweeps: SweepController, jobs: JobController | None, configuration: Configuration
) -> kopf.OperatorRegistry:
    """The handlers. Each only adds keys to the queues; without `jobs` somebody else serves the PyTorchJobs."""
    registry = kopf.OperatorRegistry()
    _wake_runs(registry, controller)
    _wake_sweeps(registry, sweeps)
    if jobs is not None:
        _wake_jobs(registry, jobs)

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await credentials(configuration)

    @kopf.on.probe(registry=registry, id="controller")
    async def alive(**_: Any) -> str:
        ailment = controller.ailment() or sweeps.ailment() or (jobs.ailment() if jobs else None)
        if ailment:  # anything but PermanentError makes kopf repeat the probe and the kubelet wait
            raise kopf.PermanentError(ailment)
        return "working"

    return registry


def _wake_runs(registry: kopf.OperatorRegistry, controller: Controller) -> None:
    @kopf.on.event(*_resource(RUNS), registry=registry)
    async def run_changed(namespace: str | None, name: str, **_: Any) -> None:
        controller.wake(str(namespace), name)

    @kopf.on.event(*_resource(JOBS), registry=registry, labels={names.LABEL_RUN: kopf.PRESENT})
    async def job_changed(namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        controller.wake(str(namespace), labels[names.LABEL_RUN])

    @kopf.on.event(*_resource(WORKLOADS), registry=registry, labels={names.LABEL_RUN: kopf.PRESENT})
    async def workload_changed(namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        controller.wake(str(namespace), labels[names.LABEL_RUN])

    @kopf.on.event(*_resource(PODS), registry=registry, labels={names.LABEL_RUN: kopf.PRESENT})
    async def pod_changed(
        namespace: str | None,
        labels: Mapping[str, str],
        body: kopf.Body,
        type: str | None,  # noqa: A002 - kopf's word
        **_: Any,
    ) -> None:
        controller.on_pod(str(namespace), labels[names.LABEL_RUN], dict(body), deleted=type == "DELETED")

    @kopf.on.event(*_resource(NODES), registry=registry)
    async def node_changed(body: kopf.Body, type: str | None, **_: Any) -> None:  # noqa: A002 - kopf's word
        controller.on_node(dict(body), deleted=type == "DELETED")


def _wake_sweeps(registry: kopf.OperatorRegistry, sweeps: SweepController) -> None:
    @kopf.on.event(*_resource(SWEEPS), registry=registry)
    async def sweep_changed(namespace: str | None, name: str, **_: Any) -> None:
        sweeps.wake(str(namespace), name)

    @kopf.on.event(*_resource(RUNS), registry=registry, labels={names.LABEL_SWEEP: kopf.PRESENT})
    async def its_run_changed(namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        sweeps.saw_run(str(namespace), labels[names.LABEL_SWEEP])


def _wake_jobs(registry: kopf.OperatorRegistry, jobs: JobController) -> None:
    @kopf.on.event(*_resource(JOBS), registry=registry, labels={names.LABEL_RUN: kopf.PRESENT})
    async def served_job_changed(namespace: str | None, name: str, **_: Any) -> None:
        jobs.wake(str(namespace), name)

    @kopf.on.event(*_resource(PODS), registry=registry, labels={names.LABEL_RUN: kopf.PRESENT})
    @kopf.on.event(*_resource(SERVICES), registry=registry, labels={names.LABEL_RUN: kopf.PRESENT})
    async def replica_changed(namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        jobs.saw_replica(str(namespace), labels)


async def credentials(configuration: Configuration) -> kopf.ConnectionInfo:
    """Our client's credentials for kopf, so that both always speak to the same cluster as the same user."""
    header = (await configuration.auth_settings()).get("BearerToken", {}).get("value") or ""
    scheme, _, token = header.rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme.capitalize() or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        trust_env=True,
    )


def _resource(resource: Resource) -> tuple[str, str, str]:
    return resource.group, resource.version, resource.plural
