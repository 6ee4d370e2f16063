"""The arithmetic of `make bench-operator`: metrics, a watch, percentiles, and figures beside recorded ones."""

import copy
from pathlib import Path
from typing import Any

import pytest

from bench.operator_scale import __main__ as command
from bench.operator_scale import counters, disturbances, figures, plot, process, recorded, steady, table
from bench.operator_scale.__main__ import SCENARIOS, scenarios
from bench.operator_scale.comparison import Comparison, compare
from bench.operator_scale.counters import Cost, Sample, requests_in_metrics
from bench.operator_scale.harness import percentile, spread
from bench.operator_scale.run_watch import Runs, newest_end

METRICS = """\
# TYPE apiserver_request_total counter
apiserver_request_total{code="200",group="",resource="pods",scope="cluster",subresource="",verb="LIST",version="v1"} 7
apiserver_request_total{code="404",group="",resource="pods",scope="cluster",subresource="",verb="LIST",version="v1"} 2
apiserver_request_total{code="201",group="",resource="pods",subresource="binding",verb="POST",version="v1"} 3
apiserver_request_total{code="200",group="",resource="pods",subresource="",verb="WATCH",version="v1"} 5
apiserver_request_total{code="200",group="coordination.k8s.io",resource="leases",subresource="",verb="PUT"} 1.2e+03
apiserver_request_total{code="200",group="",resource="",subresource="/readyz",verb="GET",version=""} 9
"""


def a_cost(**fields: Any) -> dict[str, Any]:
    return {
        "operator_percent_of_core": 20.0,
        "server_percent_of_core": 60.0,
        "requests_per_second": 30.0,
        "operator_megabytes": 90.0,
        "server_megabytes": 500.0,
        "cores_busy": {"kube-apiserver": 0.6, "bench-operator": 0.2, "kwok": 0.001},
        "most_per_second": {"LIST pods": 3.5},
    } | fields


def results(runs: int = 100, **changes: Any) -> dict[str, Any]:
    bring_up = a_cost(
        seconds=10.0,
        operator_cpu_ms_per_run=50.0,
        server_cpu_ms_per_run=100.0,
        requests_per_run=40.0,
        writes_per_state_change=1.5,
        memory_bytes_per_run=200_000,
        pods_waited={},
    )
    floor = {
        "seconds_per_patch": 0.001,
        "server_cpu_ms_per_patch": 1.0,
        "necessary_seconds_per_run": 0.02,
        "necessary_writes_per_run": 11,
    }
    without = a_cost(requests_per_second=2.0, server_percent_of_core=2.0)
    found = {"runs": runs, "floor": floor, "bring_up": bring_up, "idle": a_cost(), "without_operator": without}
    return copy.deepcopy(found) | changes


def by_name(compared: list[Comparison]) -> dict[str, Comparison]:
    return {one.figure.name: one for one in compared}


# --- reading ---


def test_requests_are_counted_by_verb_and_resource_without_watches_and_leases() -> None:
    assert requests_in_metrics(METRICS) == {"LIST pods": 9, "POST pods/binding": 3}


def test_a_processs_cost_is_what_it_spent_between_two_samples() -> None:
    before = Sample(time=10.0, cpu_seconds={"kube-apiserver": 5.0}, requests=requests_in_metrics(METRICS))
    after = Sample(
        time=14.0,
        cpu_seconds={"kube-apiserver": 6.0, "bench-operator": 0.5},
        requests=requests_in_metrics(METRICS.replace("} 7", "} 17")),
    )

    cost = Cost.between(before, after)

    assert (cost.server_cpu, cost.operator_cpu, cost.requests) == (1.0, 0.5, {"LIST pods": 10})
    assert cost.as_json()["server_percent_of_core"] == 25.0
    assert cost.as_json()["most_per_second"] == {"LIST pods": 2.5}
    assert cost.as_json(per=5)["most_per_run"] == {"LIST pods": 2.0}


def test_writes_are_those_of_objects_and_of_their_status() -> None:
    requests = requests_in_metrics("")
    requests.update(
        {"PUT trainingruns/status": 3, "PATCH trainingruns": 1, "GET trainingruns": 7, "PUT pods/status": 2}
    )

    assert counters.writes(requests, "trainingruns") == 4


def test_the_runs_of_each_phase_are_read_from_the_operators_metrics() -> None:
    text = 'piton_runs{phase="Training"} 7.0\npiton_runs{phase="Pending"} 2.0\npiton_sweeps{phase="Training"} 5.0\n'

    assert process.phases_in_metrics(text) == {"Training": 7, "Pending": 2}


def test_pods_waited_for_the_scheduler_and_then_for_kwok() -> None:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:03Z"}
    status = {"conditions": [scheduled], "startTime": "2026-01-01T00:00:04Z"}
    pod = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": status}
    pending = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {}}

    waited = steady.waits([pod, pending])

    assert (waited["scheduler_mean_seconds"], waited["kwok_mean_seconds"]) == (3.0, 1.0)
    assert steady.waits([pending]) == {}


# --- the watch ---


def event(name: str = "run-1", *, uid: str = "a", phase: str = "", **status: Any) -> dict[str, Any]:
    found = {"metadata": {"name": name, "uid": uid}}
    return found | ({"status": {"phase": phase, **status}} if phase else {})


def test_a_run_has_its_first_status_and_its_first_training_when_they_came() -> None:
    runs = Runs()
    runs.take("ADDED", event(), 1.0)
    for now, phase in ((2.0, "Pending"), (3.0, "Training"), (4.0, "Recovering"), (5.0, "Training")):
        runs.take("MODIFIED", event(phase=phase, attempt=int(now)), now)

    seen = runs.seen["run-1"]
    assert (seen.first_status_at, seen.training_at, seen.phase_at, seen.attempt) == (2.0, 3.0, 5.0, 5)
    assert (runs.phases["Training"], runs.phases["Pending"], runs.changes) == (1, 0, 4)


def test_a_run_that_is_gone_or_made_anew_is_counted_no_more() -> None:
    runs = Runs()
    waiting = [{"type": "Waiting", "status": "True", "reason": "Unschedulable"}]
    runs.take("ADDED", event(phase="Starting", conditions=waiting), 1.0)
    runs.take("ADDED", event("run-2", uid="b", phase="Training"), 1.0)
    assert (+runs.reasons, runs.seen["run-1"].waiting) == ({"Unschedulable": 1}, "Unschedulable")

    runs.take("MODIFIED", event(uid="c", phase="Pending"), 2.0)
    runs.take("DELETED", event("run-2", uid="b", phase="Training"), 2.0)

    assert (+runs.reasons, +runs.phases, runs.seen["run-1"].first_status_at) == ({}, {"Pending": 1}, 2.0)


def test_the_step_of_a_run_is_that_of_the_report_in_its_status() -> None:
    runs = Runs()
    runs.take("ADDED", event(phase="Training"), 1.0)
    assert runs.seen["run-1"].step == 0

    runs.take("MODIFIED", event(phase="Training", progress={"step": 60_000}), 2.0)

    assert runs.seen["run-1"].step == 60_000


def test_a_condition_that_is_not_true_is_no_reason_to_wait() -> None:
    runs = Runs()
    runs.take("ADDED", event(phase="Training", conditions=[{"type": "Waiting", "status": "False", "reason": "X"}]), 1.0)

    assert not +runs.reasons


def test_the_newest_attempt_that_ended_is_named() -> None:
    attempts = [
        {"state": "Ended", "verdict": "Preempted", "reason": "NodeGone"},
        {"state": "Running"},
    ]
    assert newest_end({"attempts": attempts}) == "Preempted NodeGone"
    assert newest_end({}) == ""


# --- figures ---


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert (percentile(range(1, 101), 99), percentile(range(1, 61), 99), percentile([3.0, 1.0], 50)) == (99, 60, 1.0)
    assert spread([1.0, 4.0, 2.0]) == {"median_seconds": 2.0, "p99_seconds": 4.0, "worst_seconds": 4.0, "of": 3}
    with pytest.raises(ValueError, match="no values"):
        percentile([], 99)


def test_there_are_enough_new_runs_for_a_99th_percentile_where_it_is_a_goal() -> None:
    assert [disturbances.new_run_count(runs) for runs in (100, 300, 1000)] == [30, 60, 100]


def test_a_bring_up_is_compared_with_its_necessary_writes_and_a_rate_with_that_of_no_operator() -> None:
    found = figures.values(results())

    assert found["bring_up_over_necessary"] == pytest.approx(5.0)
    assert (found["idle_requests"], found["idle_server"]) == (28.0, 58.0)
    assert found["memory_kb"] == 200.0


def test_what_was_not_measured_has_no_value() -> None:
    found = figures.values(results(idle={"late": "0 of 7 after 3 s"}))

    assert (found["idle_requests"], found["notice_worst"], found["operator_cpu_ms"]) == (None, None, 50.0)


def test_a_figure_is_worse_beyond_the_tolerance_and_better_as_well() -> None:
    before, after = results(), results()
    after["bring_up"] |= {"operator_cpu_ms_per_run": 63.0, "server_cpu_ms_per_run": 60.0, "requests_per_run": 49.0}

    compared = by_name(compare(after, before))

    assert compared["operator_cpu_ms"].verdict == "worse"
    assert compared["operator_cpu_ms"].ratio == pytest.approx(1.26)
    assert (compared["server_cpu_ms"].verdict, compared["requests_per_run"].verdict) == ("better", "")
    assert compared["requests_per_run"].ratio == pytest.approx(1.225)


def test_a_slow_machine_makes_times_no_worse_and_numbers_of_requests_do_not_depend_on_it() -> None:
    before, after = results(), results()
    after["floor"] |= {"seconds_per_patch": 0.002, "server_cpu_ms_per_patch": 2.0}
    after["bring_up"] |= {"seconds": 20.0, "operator_cpu_ms_per_run": 100.0, "requests_per_run": 80.0}

    compared = by_name(compare(after, before))

    assert (compared["bring_up_seconds"].verdict, compared["operator_cpu_ms"].verdict) == ("", "")
    assert compared["requests_per_run"].verdict == "worse"


def test_what_was_not_recorded_is_named_and_neither_worse_nor_better() -> None:
    before, after = results(), results(deletion={"seconds": 9.0, "operator_cpu_ms_per_run": 1.0})

    compared = compare(after, before)

    assert by_name(compared)["deletion_seconds"].verdict == "not recorded"
    assert by_name(compare(after, None))["deletion_seconds"].verdict == ""
    assert table.last_sentence({100: compared}, {100: before}).endswith("25%. Not recorded: 2 figures at 100 runs.")


def test_a_report_that_was_not_taken_is_worse_than_none() -> None:
    reports = {"not_taken": 0, "age_seconds": {"p99": 12.0}}
    before, after = results(reporters=reports), results(reporters={**reports, "not_taken": 1})

    assert by_name(compare(after, before))["reporters_not_taken"].verdict == "worse"
    assert "1.00      0.00!       0.00" in table.table(100, compare(after, before))


def test_a_small_difference_is_nothing_even_if_its_ratio_is_large() -> None:
    before, after = results(), results()
    before["idle"]["requests_per_second"], after["idle"]["requests_per_second"] = 2.0, 2.2

    compared = by_name(compare(after, before))["idle_requests"]

    assert (compared.verdict, compared.ratio) == ("", None)
    after["idle"]["requests_per_second"] = 3.0
    assert by_name(compare(after, before))["idle_requests"].verdict == "worse"


# --- text ---


def test_the_table_has_goals_and_recorded_figures_and_marks_missed_goals() -> None:
    lines = table.table(100, compare(results(), results())).splitlines()

    assert lines[0].split() == ["100", "runs", "now", "goal", "recorded", "ratio"]
    assert lines[1].split() == ["bring-up", "of", "all,", "s", "10.00", "8.00!", "10.00", "1.00"]
    assert next(line for line in lines if "writes per state" in line).split()[-4:] == ["1.50", "2.00", "1.50", "1.00"]
    assert next(line for line in lines if "deletion" in line).split()[-4:] == ["-", "-", "-", "-"]


def test_the_last_sentence_says_what_got_worse() -> None:
    worse = results()
    worse["bring_up"]["operator_cpu_ms_per_run"] = 100.0

    sentence = table.last_sentence({100: compare(worse, results())}, {100: results()})

    assert sentence == "Worse than recorded: operator CPU per run, ms (100.00, recorded 50.00, 2.00 times) at 100 runs."


def test_the_last_sentence_says_that_nothing_got_worse_or_that_nothing_is_recorded() -> None:
    same = {100: compare(results(), results())}
    assert table.last_sentence(same, {100: results()}) == "Nothing got worse than recorded, by more than 25%."
    assert table.last_sentence({100: compare(results(), None)}, {}).startswith("Nothing is recorded for 100 runs")
    both = same | {1000: compare(results(1000), None)}
    assert table.last_sentence(both, {100: results()}).endswith(
        "recorded for 1,000 runs: add --record to keep these figures."
    )


def test_notes_name_the_busy_processes_the_requests_and_what_is_missing() -> None:
    found = table.notes(results(deletion={"late": "deletion: 3 runs left after 5 s"}), cores=2)

    assert "bring_up: 0.80 of 2 cores busy: API server 0.60, operator 0.20" in found
    assert "idle: requests per second: LIST pods 3.5" in found
    assert "deletion: not measured: deletion: 3 runs left after 5 s" in found


def test_notes_say_how_many_of_the_runs_reported() -> None:
    found = table.notes(results(5000, reporters=a_cost(reporters=1000)), cores=2)

    assert "reporters: the trainers of 1,000 of 5,000 runs reported" in found


# --- files ---


def test_recorded_results_are_kept_by_the_number_of_runs(tmp_path: Path) -> None:
    path = tmp_path / "recorded" / "operator.json"
    assert recorded.load(path) == {}
    recorded.save({1000: results(1000), 100: results()}, path)
    recorded.save({100: results(wall_seconds=123.456)}, path)

    assert sorted(recorded.load(path)) == [100, 1000]
    assert recorded.load(path)[100]["wall_seconds"] == 123.5
    path.write_text("[1]")
    with pytest.raises(ValueError, match="holds no recorded results"):
        recorded.load(path)


def test_results_are_not_recorded_where_a_scenario_was_late_or_one_that_is_recorded_was_left_out() -> None:
    assert recorded.may_replace(results(), None)
    assert recorded.may_replace(results(), results())
    assert not recorded.may_replace(results(idle={"late": "0 of 7 after 3 s"}), None)
    assert not recorded.may_replace(results(), {**results(), "deletion": {}})


@pytest.mark.parametrize(("changes", "code"), [({}, 0), ({"idle": {"late": "0 of 7 after 3 s"}}, 1)])
def test_a_table_with_holes_is_no_success(
    changes: dict[str, Any], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--only", "idle", "--picture", str(tmp_path / "picture.svg")])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("hack.cluster.box.is_up", lambda: False)
    monkeypatch.setattr(command, "measured_alone", lambda found, _: found.update(results(**changes)))

    assert command.main() == code


def test_the_picture_has_the_points_of_each_number_of_runs(tmp_path: Path) -> None:
    both = {100: results(), 1000: results(1000), 300: results(300, idle={"late": "not reached"})}
    path = tmp_path / "build" / "picture.svg"

    plot.draw(path, both, {100: results()})

    assert plot.line("operator_cpu_ms", both) == [(100, 50.0), (300, 50.0), (1000, 50.0)]
    assert plot.line("idle_requests", both) == [(100, 28.0), (1000, 28.0)]
    assert path.read_text().lstrip().startswith("<?xml")


def test_scenarios_bring_those_that_they_need() -> None:
    assert list(scenarios([])) == list(SCENARIOS)
    assert list(scenarios(["lost_nodes"])) == ["bring_up", "lost_nodes"]
    assert list(scenarios(["reporters"])) == ["bring_up", "reporters"]
    assert list(scenarios(["idle"])) == ["bring_up", "idle", "without_operator"]
    assert list(scenarios(["idle", "waiting"])) == [
        "bring_up",
        "idle",
        "without_operator",
        "restart",
        "deletion",
        "waiting",
    ]


@pytest.mark.parametrize(
    ("asked", "done"),
    [
        (["waiting_queue"], ["waiting_queue"]),
        (["waiting_queue", "waiting"], ["waiting", "waiting_queue"]),
        (["lost_nodes", "waiting_quota"], ["bring_up", "lost_nodes", "deletion", "waiting_quota"]),
        (["deletion"], ["bring_up", "deletion"]),
        (["deletion", "without_operator"], ["bring_up", "without_operator", "restart", "deletion"]),
    ],
)
def test_runs_that_wait_need_no_others_and_the_others_are_deleted_before(asked: list[str], done: list[str]) -> None:
    assert list(scenarios(asked)) == done


def test_runs_that_wait_are_compared_by_their_cause() -> None:
    wait = {
        "all_show_reasons": {"seconds": 20.0, "requests": 900},
        "wait": a_cost(requests_per_second=9.0, position_requests_per_second=0.1),
        "without_operator": a_cost(requests_per_second=3.0),
    }

    found = by_name(compare(results(waiting_queue=wait), results()))

    assert (found["waiting_queue_requests"].value, found["waiting_queue_requests_per_run"].value) == (6.0, 9.0)
    assert (found["waiting_queue_positions"].value, found["waiting_queue_positions"].verdict) == (0.1, "not recorded")
    assert (found["waiting_requests"].value, found["waiting_quota_requests"].value) == (None, None)
    assert "waiting_queue: requests per second: LIST pods 3.5" in table.notes(results(waiting_queue=wait), 2)


def test_positions_are_counted_in_all_parts_of_the_audit_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = '{"verb":"get","objectRef":{"resource":"localqueues","name":"q","subresource":"pendingworkloads"}}\n'
    monkeypatch.setattr(counters, "AUDIT_LOG", tmp_path / "audit.log")
    (tmp_path / "audit.log").write_text(asked + '{"verb":"create","objectRef":{"resource":"pods"}}\n' + asked)
    (tmp_path / "audit-2026-01-01T00-00-00.000.log").write_text(asked)

    assert counters.position_requests() == 3
