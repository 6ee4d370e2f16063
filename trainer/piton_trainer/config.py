"""Configuration of a trainer process from its environment, parsed once.

Outside Piton none of the variables is set: checkpoints then go to `./checkpoints`, and nothing is reported.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from piton.contract import InputError, names
from piton.contract.assignment import Assignment
from piton.contract.termination import Limit

logger = logging.getLogger(__name__)

REPORT_SECONDS = 5.0
COLLECTIVE_SECONDS = 600.0
JOIN_SECONDS = 1800.0
"""NCCL's own. For a group that is NCCL's and gloo's, torch waits three times as long."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server that receives progress reports (KEP-2779)."""

    url: str
    ca_cert: Path | None = None
    """The authority that signed the server's certificate; None trusts what the machine trusts."""
    token_file: Path | None = None
    """A projected service-account token. The kubelet renews it, so it is read again for each report."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One trainer process's orders."""

    checkpoint_dir: Path
    assignment: Assignment = field(default_factory=Assignment)
    run: str | None = None
    uid: str | None = None
    """Uid of the run, which no other run of its name has; None outside Piton, and from an older operator."""
    namespace: str | None = None
    session: str | None = None
    """Name of one of several trainings of the run, see `named`."""
    attempt: int | None = None
    """None outside Piton: one more than whoever was here last."""
    durable_step: int | None = None
    """The newest step that earlier attempts have reported as durable; None: none that the operator knows of."""
    go_on_after: int | None = None
    """An attempt's number: a `break` of that one, or one before it, ends no training."""
    allow_fresh_start: bool = False
    """Train from step 0 where no checkpoint can be restored, though there was one."""
    gpus: int | None = None
    """Number of GPUs that the pod requests; None: none, or unknown."""
    stop_at: datetime | None = None
    """Save and leave at this time, UTC, by the clock of this machine."""
    stop_after: float | None = None
    """Save and leave so many seconds after the session began."""
    stop_limit: Limit = Limit.BUDGET
    """The limit of the run's that is reached then."""
    report_seconds: float = REPORT_SECONDS
    """At least this long between two reports; 0 reports as fast as the server answers."""
    collective_seconds: float = COLLECTIVE_SECONDS
    """Time-out in seconds of the training's collectives, if the session creates the process group.

    Then NCCL's watchdog ends the attempt. Where the script has made the group, its own time-out stays."""
    join_seconds: float = JOIN_SECONDS
    """Seconds for which a rank waits for the others before training begins: machines are launched, and pull images, at
    different times."""
    hang_timeout: float | Literal["auto"] | None = None
    """Seconds without a step that are a hang; `auto`: by the steps before (`hangs.rule`). None: nobody watches."""
    server: Server | None = None
    termination_log: Path | None = None
    """Path of the termination message; None writes none."""
    background_saves: bool = True
    """Training goes on while a checkpoint is written; False: it waits."""
    rehearsal: int | None = None
    """Take so many steps, stop as on a notice, take as many again and end (`boundary.Rehearsal`). None: in earnest."""
    metrics_port: int | None = None
    """Port of rank 0's Prometheus metrics; None: they are not served."""

    def named(self, name: str) -> Self:
        """Return the configuration of one of several trainings of the script.

        The durable step that the operator knows is the run's, so it is left out.

        Raises:
            ValueError: the name cannot be that of a folder.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise InputError(f"session: {name!r} is no name; write letters, digits, dots and dashes, such as fold-0")
        folder = self.checkpoint_dir / names.SESSIONS_FOLDER / name
        return replace(self, session=name, checkpoint_dir=folder, durable_step=None)

    def goes_on(self, attempt: int) -> bool:
        """True if training goes on where that attempt has left its loop by `break`: outside Piton, or on request."""
        return self.attempt is None or (self.go_on_after is not None and attempt <= self.go_on_after)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Parse the environment.

        Raises:
            ValueError: a variable has a value that makes no sense; the message names it.
        """
        set_vars = {name: value for name, value in env.items() if value}
        report_seconds = _seconds(names.ENV_REPORT_SECONDS, set_vars.get(names.ENV_REPORT_SECONDS))
        return cls(
            checkpoint_dir=Path(set_vars.get(names.ENV_CHECKPOINT_DIR, "checkpoints")).absolute(),
            assignment=_assignment(set_vars.get(names.ENV_CONFIG)),
            run=set_vars.get(names.ENV_RUN),
            uid=set_vars.get(names.ENV_RUN_UID),
            namespace=set_vars.get(names.ENV_NAMESPACE),
            attempt=_count(names.ENV_ATTEMPT, set_vars.get(names.ENV_ATTEMPT)),
            durable_step=_count(names.ENV_DURABLE_STEP, set_vars.get(names.ENV_DURABLE_STEP)),
            go_on_after=_count(names.ENV_GO_ON_AFTER, set_vars.get(names.ENV_GO_ON_AFTER)),
            allow_fresh_start=_is_true(names.ENV_ALLOW_FRESH_START, set_vars.get(names.ENV_ALLOW_FRESH_START)),
            gpus=_count(names.ENV_GPUS, set_vars.get(names.ENV_GPUS)),
            stop_at=_stop_at(set_vars.get(names.ENV_STOP_AT)),
            stop_after=_seconds(names.ENV_STOP_AFTER, set_vars.get(names.ENV_STOP_AFTER)),
            stop_limit=Limit(set_vars.get(names.ENV_STOP_LIMIT, Limit.BUDGET)),
            report_seconds=REPORT_SECONDS if report_seconds is None else report_seconds,
            collective_seconds=float(
                _count(names.ENV_COLLECTIVE_SECONDS, set_vars.get(names.ENV_COLLECTIVE_SECONDS)) or COLLECTIVE_SECONDS
            ),
            join_seconds=float(_count(names.ENV_JOIN_SECONDS, set_vars.get(names.ENV_JOIN_SECONDS)) or JOIN_SECONDS),
            hang_timeout=_hang_timeout(set_vars.get(names.ENV_HANG_TIMEOUT)),
            server=_server(set_vars),
            termination_log=termination_log(set_vars),
            background_saves=_background_saves(set_vars.get(names.ENV_SAVES)),
            rehearsal=_count(names.ENV_REHEARSAL, set_vars.get(names.ENV_REHEARSAL)),
            metrics_port=_port(set_vars.get(names.ENV_METRICS_PORT)),
        )


def _assignment(path: str | None) -> Assignment:
    if path is None:
        return Assignment()
    try:
        return Assignment.from_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{names.ENV_CONFIG} names {path}, which cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{names.ENV_CONFIG} names {path}, which is wrong: {error}") from error


def _count(variable: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InputError(f"{variable} has to be a whole number above 0, not {text!r}")
    return int(text)


def _is_true(variable: str, text: str | None) -> bool:
    if text not in (None, "true", "false"):
        raise InputError(f"{variable} has to be true or false, not {text!r}")
    return text == "true"


def _stop_at(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{names.ENV_STOP_AT} has to be a time such as 2026-01-31T12:00:00Z, not {text!r}") from error
    return moment.replace(tzinfo=moment.tzinfo or UTC)


def _seconds(variable: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InputError(f"{variable} has to be a number of seconds, 0 or more, not {text!r}")
    return seconds


def _hang_timeout(text: str | None) -> float | Literal["auto"] | None:
    if text in (None, names.HANGS_OFF):
        return None
    if text == names.HANGS_AUTO:
        return "auto"
    try:
        seconds = float(text or "")
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"{names.ENV_HANG_TIMEOUT} has to be auto, off or a number of seconds above 0, not {text!r}")
    return seconds


def _background_saves(text: str | None) -> bool:
    if text not in (None, names.SAVES_BACKGROUND, names.SAVES_BLOCKING):
        raise InputError(f"{names.ENV_SAVES} has to be background or blocking, not {text!r}")
    return text != names.SAVES_BLOCKING


def _port(text: str | None) -> int | None:
    """Return the port for metrics. One that is none costs the metrics, and never the training."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65_536):
        logger.warning("%s has to be a port, 1 to 65535, not %r; metrics are not served", names.ENV_METRICS_PORT, text)
        return None
    return int(text)


def _server(env: Mapping[str, str]) -> Server | None:
    url = env.get(names.ENV_SERVER_URL)
    if url is None:
        return None
    if not url.startswith(("https://", "http://")):
        raise InputError(f"{names.ENV_SERVER_URL} has to start with https:// or http://, not be {url!r}")
    ca_cert, token = env.get(names.ENV_SERVER_CA_CERT), env.get(names.ENV_SERVER_TOKEN)
    return Server(
        url=url,
        ca_cert=None if ca_cert is None else Path(ca_cert),
        token_file=None if token is None else Path(token),
    )


def termination_log(env: Mapping[str, str]) -> Path | None:
    """Return the path of the termination message; other invalid values in the environment do not matter to it."""
    if path := env.get(names.ENV_TERMINATION_LOG):
        return Path(path)
    default = Path(names.DEFAULT_TERMINATION_LOG)
    return default if env.get(names.ENV_ATTEMPT) and default.exists() else None
