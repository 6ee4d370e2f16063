"""The operator process: its cache, its controllers, the progress server, and kopf around them.

Kopf runs the process: signals, and login. Watching is the cache's, since one copy of the objects serves both the
wake-up and the pass; docs/decisions/0058 has the measurements.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from piton.clock import ServerClock
from piton.contract import InputError
from piton.kube import log
from piton.kube.cache import ClusterCache, watched_kinds
from piton.kube.client import Client, load_configuration
from piton.kube.controller_base import Worker
from piton.kube.garbage import collect_rarely
from piton.kube.job_controller import JobController
from piton.kube.leader_election import LeaderElection, LeaseLost
from piton.kube.listening import probed
from piton.kube.metrics import OperatorMetrics, Registry, served
from piton.kube.report_thread import ReportThread
from piton.kube.run_controller import Controller
from piton.kube.settings import Engine, PitonSettings
from piton.kube.sweep_controller import SweepController
from piton.kube.tls import Certificates
from piton.rendering.appdef import ReportEndpoint

Flag = asyncio.Event | threading.Event

_IDENTITY: Any = "piton"
"""For kopf's peering, which is off. Without a name kopf asks for the user's, and in a container there may be none."""


def run(settings: PitonSettings) -> None:
    """Run the operator until SIGTERM or SIGINT.

    Raises:
        ValueError: no cluster is configured, the port for metrics is taken, or another process leads now.
    """
    log.configure()
    collect_rarely()
    try:
        asyncio.run(serve(settings))
    except LeaseLost as lost:
        raise InputError(f"{lost}; this process ends, and stands by when it is started again") from lost


async def serve(settings: PitonSettings, *, stop: Flag | None = None, ready: Flag | None = None) -> None:
    """Run the operator in this event loop, until a signal or `stop`."""
    try:
        configuration = await load_configuration(settings.api_url)
    except Exception as error:  # ConfigException, and whatever a file raises that is no kubeconfig
        why = "the kubeconfig is empty or no kubeconfig" if isinstance(error, TypeError | AttributeError) else error
        raise InputError(f"no cluster: {why}; set KUBECONFIG to a file for it, or run inside one") from error
    certificates = Certificates(settings.tls_dir) if settings.progress_url and settings.tls_dir else None
    meter = OperatorMetrics(Registry())
    async with (
        served(meter.registry, settings.metrics_port),
        Client(configuration) as client,
        Client(configuration) as of_election,
    ):
        process = _Process(settings, client, of_election, meter, certificates)
        working = asyncio.create_task(process.run(), name="operator")
        registry = build_registry(configuration, partial(_end, working))
        async with probed(process.ailment, settings.probe_port):
            await _together(_await(working), _run_kopf(registry, settings, stop, ready))


class _Process:
    """The parts of an operator process, and which of them run when."""

    def __init__(
        self,
        settings: PitonSettings,
        client: Client,
        of_election: Client,
        meter: OperatorMetrics,
        certificates: Certificates | None,
    ) -> None:
        self._meter = meter
        loop, clock, bundled = asyncio.get_running_loop(), ServerClock(), settings.engine is Engine.BUNDLED
        client.on_date = clock.hear
        self._cache = ClusterCache(
            client,
            loop,
            watched_kinds(engine=bundled),
            namespaces=settings.namespaces,
            stuck_seconds=settings.stuck_seconds,
        )
        server = partial(_server, settings, certificates)
        runs = Controller(client, clock, loop, settings, meter, server, cache=self._cache)
        self._workers: list[Worker] = [runs, SweepController(client, clock, loop, settings, meter, cache=self._cache)]
        if bundled:
            self._workers.append(JobController(client, clock, loop, settings, meter, cache=self._cache))
        for worker in self._workers:
            worker.subscribe(self._cache)
        self._reports = certificates and ReportThread(
            settings, certificates, meter, on_report=runs.on_report, answer=runs.answer
        )
        self._election = settings.lease and LeaderElection(of_election, clock, loop, settings.lease, meter)

    def ailment(self) -> str | None:
        """Return what hangs, for the liveness probe."""
        parts: Sequence[ClusterCache | Worker] = (self._cache, *self._workers)
        return next((found for part in parts if (found := part.ailment())), None)

    async def run(self) -> None:
        """Watch always; work, and receive reports, as the leader, where there is more than one process."""
        self._meter.show_leader(self._election is None)
        await _together(self._cache.run(), self._elected(self._election) if self._election else self._work())

    async def _elected(self, election: LeaderElection) -> None:
        """Stand for election once the cache is filled: before that, another process is of more use as the leader."""
        await self._cache.synced()
        await election.run(self._work)

    async def _work(self) -> None:
        await _together(*(worker.run() for worker in self._workers), *([self._reports.run()] if self._reports else []))


async def _together(*parts: Coroutine[None, None, None]) -> None:
    """Run all until one ends; end the others.

    Raises:
        Exception: the first error of any of them.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end


async def _await(task: asyncio.Task[None]) -> None:
    await task


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _server(settings: PitonSettings, certificates: Certificates | None) -> ReportEndpoint | None:
    if settings.progress_url is None or certificates is None:
        return None
    return ReportEndpoint(url=settings.progress_url, ca_pem=certificates.authority)


async def _run_kopf(
    registry: kopf.OperatorRegistry, settings: PitonSettings, stop: Flag | None, ready: Flag | None
) -> None:
    await kopf.operator(
        registry=registry,
        settings=build_kopf_settings(),
        standalone=True,
        identity=_IDENTITY,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        stop_flag=stop,
        ready_flag=ready,
    )


def build_kopf_settings() -> kopf.OperatorSettings:
    """Kopf's settings: it watches nothing, and writes nothing."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # no rights on CRDs and namespaces needed
    return settings


def build_registry(configuration: Configuration, stop: Callable[[], Awaitable[object]]) -> kopf.OperatorRegistry:
    """The handlers: credentials, and the end."""
    registry = kopf.OperatorRegistry()

    @kopf.on.cleanup(registry=registry)
    async def end(**_: Any) -> None:
        await stop()  # kopf would wait 5 s for these tasks to end by themselves

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await credentials(configuration)

    return registry


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
