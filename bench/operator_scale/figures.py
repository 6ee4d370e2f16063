"""The figures that are compared, with their goals, in the order of the table. Pure."""

from bench.operator_scale.figure import Figure, Results, Scale, above, at, fixed


def _over_necessary(results: Results) -> float:
    return float(results["bring_up"]["seconds"] / (results["floor"]["necessary_seconds_per_run"] * results["runs"]))


def _waiting(scenario: str, words: str) -> tuple[Figure, ...]:
    """The figures of runs that all wait for one cause."""
    wait, without = (scenario, "wait"), (scenario, "without_operator")
    shown = at(scenario, "all_show_reasons", "requests")
    return (
        Figure(
            name=f"{scenario}_seconds",
            words=f"{words}: until each shows its reason, s",
            read=at(scenario, "all_show_reasons", "seconds"),
            slack=1.0,
            scale=Scale.TIME,
        ),
        Figure(
            name=f"{scenario}_requests_per_run",
            words=f"{words}: requests per run until then",
            read=lambda results: shown(results) / results["runs"],
            slack=1.0,
        ),
        Figure(
            name=f"{scenario}_requests",
            words=f"{words}: requests per second",
            read=above(wait, without, "requests_per_second"),
            slack=0.3,
            goal=fixed(5),
        ),
        Figure(
            name=f"{scenario}_operator",
            words=f"{words}: operator, % of a core",
            read=at(*wait, "operator_percent_of_core"),
            slack=0.3,
            scale=Scale.CPU,
        ),
        Figure(
            name=f"{scenario}_server",
            words=f"{words}: API server above none, % of a core",
            read=above(wait, without, "server_percent_of_core"),
            slack=0.7,
            scale=Scale.CPU,
        ),
    )


_IDLE, _NONE = ("idle",), ("without_operator",)

FIGURES = (
    Figure(
        name="bring_up_seconds",
        words="bring-up of all, s",
        read=at("bring_up", "seconds"),
        slack=0.5,
        scale=Scale.TIME,
        goal=lambda runs: 0.08 * runs,
    ),
    Figure(
        name="bring_up_over_necessary",
        words="  over its necessary writes alone",
        read=_over_necessary,
        slack=0.3,
        goal=fixed(2),
    ),
    Figure(
        name="operator_cpu_ms",
        words="  operator CPU per run, ms",
        read=at("bring_up", "operator_cpu_ms_per_run"),
        slack=1.0,
        scale=Scale.CPU,
        goal=fixed(15),
    ),
    Figure(
        name="server_cpu_ms",
        words="  API server CPU per run, ms",
        read=at("bring_up", "server_cpu_ms_per_run"),
        slack=2.0,
        scale=Scale.CPU,
    ),
    Figure(
        name="requests_per_run",
        words="  requests per run, of all clients",
        read=at("bring_up", "requests_per_run"),
        slack=1.0,
    ),
    Figure(
        name="writes_per_change",
        words="  writes per state change",
        read=at("bring_up", "writes_per_state_change"),
        slack=0.1,
        goal=fixed(2),
    ),
    Figure(
        name="memory_kb",
        words="memory per run, KB",
        read=lambda results: float(results["bring_up"]["memory_bytes_per_run"] / 1000),
        slack=10.0,
        goal=fixed(50),
    ),
    Figure(
        name="idle_requests",
        words="idle: requests per second",
        read=above(_IDLE, _NONE, "requests_per_second"),
        slack=0.3,
        goal=fixed(1),
    ),
    Figure(
        name="idle_operator",
        words="idle: operator, % of a core",
        read=at("idle", "operator_percent_of_core"),
        slack=0.3,
        scale=Scale.CPU,
        goal=fixed(1),
    ),
    Figure(
        name="idle_server",
        words="idle: API server above none, % of a core",
        read=above(_IDLE, _NONE, "server_percent_of_core"),
        slack=0.7,
        scale=Scale.CPU,
        goal=fixed(2),
    ),
    Figure(
        name="new_run_p99",
        words="new run to first status, p99, s",
        read=at("new_runs", "first_status", "p99_seconds"),
        slack=0.1,
        scale=Scale.TIME,
        goal=fixed(0.25),
    ),
    Figure(
        name="notice_worst",
        words="notice to Stopping, worst of 20, s",
        read=at("notices", "stopping", "worst_seconds"),
        slack=0.1,
        scale=Scale.TIME,
        goal=fixed(0.25),
    ),
    Figure(
        name="notice_job_worst",
        words="notice to deleted job, worst of 20, s",
        read=at("notices", "job_deleted", "worst_seconds"),
        slack=0.1,
        scale=Scale.TIME,
    ),
    Figure(
        name="lost_seconds",
        words="a tenth of the nodes lost, all train again, s",
        read=at("lost_nodes", "seconds"),
        slack=1.0,
        scale=Scale.TIME,
    ),
    Figure(
        name="lost_cpu_ms",
        words="  operator CPU per run on them, ms",
        read=at("lost_nodes", "operator_cpu_ms_per_run"),
        slack=5.0,
        scale=Scale.CPU,
    ),
    Figure(
        name="lost_requests",
        words="  requests per run on them, of all clients",
        read=at("lost_nodes", "requests_per_run"),
        slack=3.0,
    ),
    Figure(
        name="reporters_age_p99",
        words="reports: age of that in the status, p99, s",
        read=at("reporters", "age_seconds", "p99"),
        slack=1.0,
        goal=fixed(15),
    ),
    Figure(
        name="reporters_answer_p99",
        words="reports: answer, p99, ms",
        read=at("reporters", "answer_ms", "p99"),
        slack=5.0,
        scale=Scale.TIME,
        goal=fixed(50),
    ),
    Figure(
        name="reporters_first_p99",
        words="reports: first answer, p99, s",
        read=at("reporters", "first_answer_seconds", "p99"),
        slack=0.5,
        scale=Scale.TIME,
    ),
    Figure(
        name="reporters_not_taken",
        words="reports: not taken",
        read=at("reporters", "not_taken"),
        slack=0.5,
        goal=fixed(0),
    ),
    Figure(
        name="reporters_operator",
        words="reports: operator, % of a core",
        read=at("reporters", "operator_percent_of_core"),
        slack=2.0,
        scale=Scale.CPU,
        goal=fixed(50),
    ),
    Figure(
        name="reporters_loop",
        words="reports: of it the reconcile loop",
        read=at("reporters", "reconcile_loop_percent_of_core"),
        slack=2.0,
        scale=Scale.CPU,
    ),
    Figure(
        name="reporters_memory_kb",
        words="reports: memory per trainer, KB",
        read=lambda results: float(results["reporters"]["memory_bytes_per_reporter"] / 1000),
        slack=10.0,
    ),
    Figure(
        name="restart_first",
        words="operator start to first decision, s",
        read=at("restart", "first_decision_seconds"),
        slack=0.5,
        scale=Scale.TIME,
        goal=fixed(5),
    ),
    Figure(
        name="restart_all",
        words="  until all runs are known, s",
        read=at("restart", "all_known_seconds"),
        slack=0.7,
        scale=Scale.TIME,
    ),
    Figure(
        name="deletion_seconds",
        words="deletion of all, s",
        read=at("deletion", "seconds"),
        slack=1.0,
        scale=Scale.TIME,
    ),
    Figure(
        name="deletion_cpu_ms",
        words="  operator CPU per deleted run, ms",
        read=at("deletion", "operator_cpu_ms_per_run"),
        slack=1.0,
        scale=Scale.CPU,
    ),
    *_waiting("waiting", "GPU wait"),
    *_waiting("waiting_quota", "quota wait"),
    *_waiting("waiting_queue", "queue wait"),
    Figure(
        name="waiting_queue_positions",
        words="queue wait: requests for positions per second",
        read=at("waiting_queue", "wait", "position_requests_per_second"),
        slack=0.1,
        goal=fixed(0.2),
    ),
    Figure(
        name="operator_megabytes",
        words="memory of the operator, MB",
        read=at("idle", "operator_megabytes"),
        slack=5.0,
    ),
    Figure(
        name="server_megabytes",
        words="memory of the API server, MB",
        read=at("idle", "server_megabytes"),
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
