"""The figures that are compared, with their goals. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Results = Mapping[str, Any]


class Scale(StrEnum):
    """The part of the floor by which a figure grows with the slowness of the machine."""

    TIME = "seconds_per_patch"
    CPU = "server_cpu_ms_per_patch"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table. Less is better, for all."""

    name: str
    words: str
    read: Callable[[Results], float]
    slack: float
    """A difference below this is nothing, whatever its ratio."""
    scale: Scale = Scale.NONE
    goal: Callable[[int], float] | None = None
    """By the number of runs."""


def _at(*path: str) -> Callable[[Results], float]:
    def read(results: Results) -> float:
        found: Any = results
        for part in path:
            found = found[part]
        return float(found)

    return read


def _above(scenario: tuple[str, ...], without: tuple[str, ...], key: str) -> Callable[[Results], float]:
    """A rate above that of the same minute without an operator."""
    return lambda results: max(0.0, _at(*scenario, key)(results) - _at(*without, key)(results))


def _fixed(value: float) -> Callable[[int], float]:
    return lambda _: value


def _over_necessary(results: Results) -> float:
    return float(results["bring_up"]["seconds"] / (results["floor"]["necessary_seconds_per_run"] * results["runs"]))


_IDLE, _NONE = ("idle",), ("without_operator",)
_WAIT, _WAIT_NONE = ("waiting", "wait"), ("waiting", "without_operator")

FIGURES = (
    Figure(
        name="bring_up_seconds",
        words="bring-up of all, s",
        read=_at("bring_up", "seconds"),
        slack=0.5,
        scale=Scale.TIME,
        goal=lambda runs: 0.08 * runs,
    ),
    Figure(
        name="bring_up_over_necessary",
        words="  over its necessary writes alone",
        read=_over_necessary,
        slack=0.3,
        goal=_fixed(2),
    ),
    Figure(
        name="operator_cpu_ms",
        words="  operator CPU per run, ms",
        read=_at("bring_up", "operator_cpu_ms_per_run"),
        slack=1.0,
        scale=Scale.CPU,
        goal=_fixed(15),
    ),
    Figure(
        name="server_cpu_ms",
        words="  API server CPU per run, ms",
        read=_at("bring_up", "server_cpu_ms_per_run"),
        slack=2.0,
        scale=Scale.CPU,
    ),
    Figure(
        name="requests_per_run",
        words="  requests per run, of all clients",
        read=_at("bring_up", "requests_per_run"),
        slack=1.0,
    ),
    Figure(
        name="writes_per_change",
        words="  writes per state change",
        read=_at("bring_up", "writes_per_state_change"),
        slack=0.1,
        goal=_fixed(2),
    ),
    Figure(
        name="memory_kb",
        words="memory per run, KB",
        read=lambda results: float(results["bring_up"]["memory_bytes_per_run"] / 1000),
        slack=10.0,
        goal=_fixed(50),
    ),
    Figure(
        name="idle_requests",
        words="idle: requests per second",
        read=_above(_IDLE, _NONE, "requests_per_second"),
        slack=0.3,
        goal=_fixed(1),
    ),
    Figure(
        name="idle_operator",
        words="idle: operator, % of a core",
        read=_at("idle", "operator_percent_of_core"),
        slack=0.3,
        scale=Scale.CPU,
        goal=_fixed(1),
    ),
    Figure(
        name="idle_server",
        words="idle: API server above none, % of a core",
        read=_above(_IDLE, _NONE, "server_percent_of_core"),
        slack=0.7,
        scale=Scale.CPU,
        goal=_fixed(2),
    ),
    Figure(
        name="new_run_p99",
        words="new run to first status, p99, s",
        read=_at("new_runs", "first_status", "p99_seconds"),
        slack=0.1,
        scale=Scale.TIME,
        goal=_fixed(0.25),
    ),
    Figure(
        name="notice_worst",
        words="notice to Stopping, worst of 20, s",
        read=_at("notices", "stopping", "worst_seconds"),
        slack=0.1,
        scale=Scale.TIME,
        goal=_fixed(0.25),
    ),
    Figure(
        name="notice_job_worst",
        words="notice to deleted job, worst of 20, s",
        read=_at("notices", "job_deleted", "worst_seconds"),
        slack=0.1,
        scale=Scale.TIME,
    ),
    Figure(
        name="lost_seconds",
        words="a tenth of the nodes lost, all train again, s",
        read=_at("lost_nodes", "seconds"),
        slack=1.0,
        scale=Scale.TIME,
    ),
    Figure(
        name="lost_cpu_ms",
        words="  operator CPU per run on them, ms",
        read=_at("lost_nodes", "operator_cpu_ms_per_run"),
        slack=5.0,
        scale=Scale.CPU,
    ),
    Figure(
        name="lost_requests",
        words="  requests per run on them, of all clients",
        read=_at("lost_nodes", "requests_per_run"),
        slack=3.0,
    ),
    Figure(
        name="reporters_age_p99",
        words="reports: age of that in the status, p99, s",
        read=_at("reporters", "age_seconds", "p99"),
        slack=1.0,
        goal=_fixed(15),
    ),
    Figure(
        name="reporters_answer_p99",
        words="  answer, p99, ms",
        read=_at("reporters", "answer_ms", "p99"),
        slack=5.0,
        scale=Scale.TIME,
        goal=_fixed(50),
    ),
    Figure(
        name="reporters_first_p99",
        words="  first answer, p99, s",
        read=_at("reporters", "first_answer_seconds", "p99"),
        slack=0.5,
        scale=Scale.TIME,
    ),
    Figure(
        name="reporters_not_taken",
        words="  reports that were not taken",
        read=_at("reporters", "not_taken"),
        slack=0.5,
        goal=_fixed(0),
    ),
    Figure(
        name="reporters_operator",
        words="  operator, % of a core",
        read=_at("reporters", "operator_percent_of_core"),
        slack=2.0,
        scale=Scale.CPU,
        goal=_fixed(50),
    ),
    Figure(
        name="reporters_loop",
        words="    of it the reconcile loop",
        read=_at("reporters", "reconcile_loop_percent_of_core"),
        slack=2.0,
        scale=Scale.CPU,
    ),
    Figure(
        name="reporters_memory_kb",
        words="  memory per trainer, KB",
        read=lambda results: float(results["reporters"]["memory_bytes_per_reporter"] / 1000),
        slack=10.0,
    ),
    Figure(
        name="restart_first",
        words="operator start to first decision, s",
        read=_at("restart", "first_decision_seconds"),
        slack=0.5,
        scale=Scale.TIME,
        goal=_fixed(5),
    ),
    Figure(
        name="restart_all",
        words="  until all runs are known, s",
        read=_at("restart", "all_known_seconds"),
        slack=0.7,
        scale=Scale.TIME,
    ),
    Figure(
        name="deletion_seconds",
        words="deletion of all, s",
        read=_at("deletion", "seconds"),
        slack=1.0,
        scale=Scale.TIME,
    ),
    Figure(
        name="deletion_cpu_ms",
        words="  operator CPU per run, ms",
        read=_at("deletion", "operator_cpu_ms_per_run"),
        slack=1.0,
        scale=Scale.CPU,
    ),
    Figure(
        name="waiting_seconds",
        words="all wait: until each shows its reason, s",
        read=_at("waiting", "all_show_reasons", "seconds"),
        slack=1.0,
        scale=Scale.TIME,
    ),
    Figure(
        name="waiting_requests",
        words="  requests per second",
        read=_above(_WAIT, _WAIT_NONE, "requests_per_second"),
        slack=0.3,
        goal=_fixed(5),
    ),
    Figure(
        name="waiting_operator",
        words="  operator, % of a core",
        read=_at(*_WAIT, "operator_percent_of_core"),
        slack=0.3,
        scale=Scale.CPU,
    ),
    Figure(
        name="waiting_server",
        words="  API server above none, % of a core",
        read=_above(_WAIT, _WAIT_NONE, "server_percent_of_core"),
        slack=0.7,
        scale=Scale.CPU,
    ),
    Figure(
        name="operator_megabytes",
        words="memory of the operator, MB",
        read=_at("idle", "operator_megabytes"),
        slack=5.0,
    ),
    Figure(
        name="server_megabytes",
        words="memory of the API server, MB",
        read=_at("idle", "server_megabytes"),
        slack=50.0,
    ),
)


def values(results: Results) -> dict[str, float | None]:
    """Return all figures by name; None for those whose scenario was left out, or did not get to its end."""
    found: dict[str, float | None] = {}
    for figure in FIGURES:
        try:
            found[figure.name] = figure.read(results)
        except KeyError:
            found[figure.name] = None
    return found
