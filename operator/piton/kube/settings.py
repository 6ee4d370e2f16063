"""Settings of an operator process: flags, with the environment as default."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from piton.contract import InputError
from piton.kube.prices import Prices
from piton.timing import Timing

ENV_NAMESPACES = "PITON_OPERATOR_NAMESPACES"
ENV_RESYNC_SECONDS = "PITON_OPERATOR_RESYNC_SECONDS"
ENV_WORKERS = "PITON_OPERATOR_WORKERS"
ENV_PROBE_PORT = "PITON_OPERATOR_PROBE_PORT"
ENV_PROGRESS_URL = "PITON_OPERATOR_PROGRESS_URL"
ENV_PROGRESS_PORT = "PITON_OPERATOR_PROGRESS_PORT"
ENV_TLS_DIR = "PITON_OPERATOR_TLS_DIR"
ENV_ENGINE = "PITON_OPERATOR_ENGINE"
ENV_METRICS_PORT = "PITON_OPERATOR_METRICS_PORT"
ENV_DEVICE_TAINT_HOURS = "PITON_OPERATOR_DEVICE_TAINT_HOURS"
ENV_STATUS_SECONDS = "PITON_OPERATOR_STATUS_SECONDS"
ENV_PRICES = "PITON_OPERATOR_PRICES"
ENV_LEASE = "PITON_OPERATOR_LEASE"
ENV_POD_NAME = "PITON_OPERATOR_POD_NAME"
ENV_POD_NAMESPACE = "PITON_OPERATOR_POD_NAMESPACE"
_STATUS_SECONDS_MAX = 300
_TAINT_HOURS_MAX = 8760
"""A year: who wants to be rid of a node for longer deletes it."""


class Engine(StrEnum):
    """The controller of the PyTorchJobs that Piton creates. There must be exactly one."""

    BUNDLED = "bundled"
    """This operator: nothing else has to be installed but the resource itself."""
    KUBEFLOW = "kubeflow"
    """Kubeflow's training operator, v1.9 or what is like it."""


@dataclass(frozen=True, kw_only=True)
class LeaseSettings:
    """The election of one leader among the replicas of the operator. The first three durations are client-go's."""

    name: str
    """Name of the Lease, and value of the leader's label."""
    namespace: str
    """Namespace of the Lease and of the pods."""
    pod: str
    """Name of this replica's pod."""
    lease_seconds: int = 15
    """Time without a renewal after which another replica may lead."""
    renew_deadline_seconds: float = 10.0
    """Time without a renewal after which the leader stops."""
    retry_seconds: float = 2.0
    """Time between two renewals, and after one that failed."""
    look_seconds: float = 1.0
    """Time between two looks of a standby at the Lease; the longest time for which nobody sees that it was released."""

    def __post_init__(self) -> None:
        if not self.pod or not self.namespace:
            raise InputError(f"{ENV_LEASE} is set: {ENV_POD_NAME} and {ENV_POD_NAMESPACE} have to be set, too")
        if not 0 < self.retry_seconds < self.renew_deadline_seconds < self.lease_seconds:
            raise InputError("a lease needs 0 < retry_seconds < renew_deadline_seconds < lease_seconds")


@dataclass(frozen=True, kw_only=True)
class PitonSettings:
    """The operator's settings."""

    namespaces: tuple[str, ...] = ()
    """Namespaces to serve; none means the whole cluster."""
    resync_seconds: float = 600.0
    """Seconds in which every run is reconciled once without an event, one after the other, from the cache."""
    workers: int = 8
    """Runs that are reconciled at the same time. A pass waits for the API server most of the time."""
    probe_port: int | None = 8080
    """Port of the liveness probe at /healthz; None: no probe."""
    progress_url: str | None = None
    """Base URL at which trainer pods reach this operator, e.g. https://piton-operator.piton-system.svc:8443; None: it
    receives no reports, and how far a run is shows when an attempt ends."""
    progress_port: int = 8443
    """Port at which the reports arrive."""
    progress_host: str = ""
    """Address at which the reports arrive; empty: every address, of IPv4 and of IPv6."""
    tls_dir: Path | None = None
    """Folder with tls.crt, tls.key and ca.crt for that; read again when they change."""
    stuck_seconds: float = 300.0
    """A pass that takes longer than this fails the liveness probe. Every call to the API server gives up after 30 s."""
    api_url: str | None = None
    """URL of the API server, without credentials (kubectl proxy, tests); None: KUBECONFIG or the service account."""
    engine: Engine = Engine.KUBEFLOW
    """The controller of the PyTorchJobs. Two controllers of one job would conflict, so the default assumes
    that Kubeflow's is there."""
    metrics_port: int | None = 8081
    """Port of the Prometheus metrics at /metrics; None: they are not served."""
    prices: Prices = field(default_factory=Prices)
    """Prices of nodes that have none on themselves."""
    lease: LeaseSettings | None = None
    """The lease for which several operators compete; None: this is the only one."""
    stop_seconds: float = 1.0
    """Time that a pass has to end when the operator stops."""
    timing: Timing = field(default_factory=Timing)
    """The patience of the core."""

    def __post_init__(self) -> None:
        if self.resync_seconds <= 0:
            raise InputError(f"resync of {self.resync_seconds} s: has to be above 0")
        if self.workers < 1:
            raise InputError(f"{self.workers} workers: at least one is needed")
        if self.progress_url is not None and not self.progress_url.startswith("https://"):
            raise InputError(f"{ENV_PROGRESS_URL}: {self.progress_url!r} has to start with https://")
        if not 1 <= self.progress_port <= 65_535:
            raise InputError(f"{ENV_PROGRESS_PORT}: {self.progress_port} is no port")
        if self.progress_url is not None and self.tls_dir is None:
            raise InputError(f"{ENV_PROGRESS_URL} is set, {ENV_TLS_DIR} is not: name the folder with the certificate")
        if self.lease and self.lease.renew_deadline_seconds + self.stop_seconds >= self.lease.lease_seconds:
            raise InputError("passes of a leader that cannot renew its lease have to end before the lease does")

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Settings from the environment; what is not set keeps its default.

        Raises:
            ValueError: a variable is not a number, out of range, or an unknown word.
        """
        defaults = cls()
        namespaces = tuple(name.strip() for name in env.get(ENV_NAMESPACES, "").split(",") if name.strip())
        port = int(_number(env, ENV_PROBE_PORT, float(defaults.probe_port or 0)))
        return cls(
            namespaces=namespaces,
            resync_seconds=_number(env, ENV_RESYNC_SECONDS, defaults.resync_seconds),
            workers=int(_number(env, ENV_WORKERS, float(defaults.workers))),
            probe_port=port or None,
            progress_url=env.get(ENV_PROGRESS_URL, "").rstrip("/") or None,
            progress_port=int(_number(env, ENV_PROGRESS_PORT, defaults.progress_port)),
            tls_dir=Path(env[ENV_TLS_DIR]) if env.get(ENV_TLS_DIR) else None,
            engine=_engine(env, defaults.engine),
            metrics_port=int(_number(env, ENV_METRICS_PORT, float(defaults.metrics_port or 0))) or None,
            prices=_prices(env),
            timing=_timing(env),
            lease=_lease(env),
        )


def _engine(env: Mapping[str, str], default: Engine) -> Engine:
    word = env.get(ENV_ENGINE, "")
    try:
        return Engine(word) if word else default
    except ValueError:
        raise InputError(f"{ENV_ENGINE}: {word!r} is none of {', '.join(Engine)}") from None


def _timing(env: Mapping[str, str]) -> Timing:
    """Without hours, or with 0, no node is tainted: the operator may lack the right."""
    hours = _number(env, ENV_DEVICE_TAINT_HOURS, 0.0)
    if not 0 <= hours <= _TAINT_HOURS_MAX:
        raise InputError(f"{ENV_DEVICE_TAINT_HOURS}: {hours:g} is not between 0 and {_TAINT_HOURS_MAX}")
    seconds = _number(env, ENV_STATUS_SECONDS, Timing().progress_seconds)
    if not 1 <= seconds <= _STATUS_SECONDS_MAX:
        raise InputError(f"{ENV_STATUS_SECONDS}: {seconds:g} is not between 1 and {_STATUS_SECONDS_MAX}")
    return Timing(device_taint_seconds=hours * 3600 or None, progress_seconds=seconds)


def _lease(env: Mapping[str, str]) -> LeaseSettings | None:
    pod, namespace = env.get(ENV_POD_NAME, ""), env.get(ENV_POD_NAMESPACE, "")
    name = env.get(ENV_LEASE, "")
    return LeaseSettings(name=name, namespace=namespace, pod=pod) if name else None


def _prices(env: Mapping[str, str]) -> Prices:
    try:
        return Prices.from_json(env.get(ENV_PRICES) or "{}")
    except ValueError as error:
        raise InputError(f"{ENV_PRICES}: {error}") from error


def _number(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise InputError(f"{name}: {text!r} is not a number") from None
