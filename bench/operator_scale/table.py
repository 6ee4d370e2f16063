"""Results as text: a table with goals and recorded figures, notes on what limited the runs, and a last sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.operator_scale.comparison import NOT_RECORDED, TOLERANCE, Comparison
from bench.operator_scale.counters import busiest

_WIDTH = 48
_SCENARIOS_WITH_CPU = ("bring_up", "lost_nodes", "reporters", "deletion")
_SCENARIOS_WITH_REQUESTS = ("bring_up", "idle", "lost_nodes", "reporters", "deletion")
_WAITING = ("waiting", "waiting_quota", "waiting_queue")


def table(runs: int, compared: Sequence[Comparison]) -> str:
    """Return one line for each figure. A goal that is missed has a `!`."""
    head = f"{f'{runs:,} runs':<{_WIDTH}}{'now':>10}{'goal':>10}  {'recorded':>10}{'ratio':>8}"
    return "\n".join([head, *(_line(runs, one) for one in compared)])


def _line(runs: int, one: Comparison) -> str:
    goal = one.figure.goal(runs) if one.figure.goal else None
    missed = "!" if goal is not None and one.value is not None and one.value > goal else " "
    cells = f"{_number(one.value):>10}{_number(goal):>10}{missed} {_number(one.recorded):>10}{_number(one.ratio):>8}"
    return f"{one.figure.words:<{_WIDTH}}{cells}  {one.verdict}".rstrip()


def notes(results: Mapping[str, Any], cores: int) -> list[str]:
    """Return sentences on the floor, on what the machine was busy with, and on what did not get to its end."""
    floor = results["floor"]
    necessary = f"{floor['necessary_writes_per_run']} necessary writes of a run"
    patch, run = 1000 * floor["seconds_per_patch"], 1000 * floor["necessary_seconds_per_run"]
    found = [f"floor, 16 at once: {patch:.2f} ms per raw PATCH, {run:.1f} ms for the {necessary}"]
    for scenario in _SCENARIOS_WITH_CPU:
        if "cores_busy" in (part := results.get(scenario, {})):
            found.append(f"{scenario}: {busiest(part, cores)}")
            found += _waits(part.get("pods_waited", {}))
    parts = {name: results.get(name, {}) for name in _SCENARIOS_WITH_REQUESTS}
    parts |= {name: results.get(name, {}).get("wait", {}) for name in _WAITING}
    for scenario, most in parts.items():
        unit = "second" if "most_per_second" in most else "run"
        if kinds := most.get(f"most_per_{unit}"):
            words = ", ".join(f"{kind} {count:g}" for kind, count in list(kinds.items())[:8])
            found.append(f"{scenario}: requests per {unit}: {words}")
    if verdicts := results.get("lost_nodes", {}).get("verdicts"):
        words = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.items())
        found.append(f"lost_nodes: attempts ended as {words}")
    if reports := results.get("reporters", {}).get("reporters"):
        found.append(f"reporters: the trainers of {reports:,} of {results['runs']:,} runs reported")
    found += [f"{name}: not measured: {part['late']}" for name, part in results.items() if _late(part)]
    return found


def last_sentence(comparisons: Mapping[int, Sequence[Comparison]], recorded: Mapping[int, Any]) -> str:
    """Return what got worse than recorded, or why nobody can say."""
    worse = [
        f"{one.figure.words.strip()} ({_times(one)}) at {runs:,} runs"
        for runs, compared in comparisons.items()
        for one in compared
        if one.verdict == "worse"
    ]
    missing = [f"{runs:,}" for runs in comparisons if runs not in recorded]
    unknown = f" Nothing is recorded for {', '.join(missing)} runs: add --record to keep these figures."
    if missing and len(missing) == len(comparisons):
        return unknown.strip()
    words = f"Worse than recorded: {'; '.join(worse)}." if worse else "Nothing got worse than recorded"
    words += "" if worse else f", by more than {TOLERANCE:.0%}."
    return words + _new_figures(comparisons) + (unknown if missing else "")


def _new_figures(comparisons: Mapping[int, Sequence[Comparison]]) -> str:
    """Say how many figures have nothing to be compared with, though others of as many runs have."""
    new = {runs: sum(one.verdict == NOT_RECORDED for one in compared) for runs, compared in comparisons.items()}
    parts = [f"{count} figures at {runs:,} runs" for runs, count in new.items() if count]
    return f" Not recorded: {', '.join(parts)}." if parts else ""


def _times(one: Comparison) -> str:
    return f"{one.value:.2f}, recorded {one.recorded:.2f}" + (f", {one.ratio:.2f} times" if one.ratio else "")


def _waits(waited: Mapping[str, float]) -> list[str]:
    if not waited:
        return []
    scheduler = f"{waited['scheduler_mean_seconds']:.1f} s (p99 {waited['scheduler_p99_seconds']:.0f} s)"
    kubelet = f"{waited['kwok_mean_seconds']:.1f} s (p99 {waited['kwok_p99_seconds']:.0f} s)"
    return [f"bring_up: a pod waited {scheduler} for the scheduler and {kubelet} for kwok"]


def _late(part: object) -> bool:
    return isinstance(part, Mapping) and "late" in part


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"
