"""Whole sweeps on this machine, with real processes and a trainer that needs nothing but Python."""

import io
import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cli.conftest import Piton
from local.helpers import FAKE, a_command, eventually, text_of
from support.processes import is_running

MISSPELT = [{"name": "a", "patch": {"trainer": {"command": ["trane"]}}}]


def a_program(*arguments: str) -> dict[str, Any]:
    return {"trainer": {"command": ["python", str(FAKE), "--steps", "6", *arguments]}}


def write(path: Path, programs: dict[str, tuple[str, ...]], **spec: Any) -> Path:
    """A file of a sweep of the fake; each variant is the fake's arguments."""
    run = {
        "trainer": {"image": "none"},
        "workers": {"gpusPerNode": 0},
        "checkpoint": {"volume": {"size": "1Gi"}},
        "objective": {"metric": "val_loss"},
        "limits": {"failures": 1},
    }
    found = [{"name": name, "patch": a_program(*arguments)} for name, arguments in programs.items()]
    sweep = {
        "apiVersion": "piton.dev/v1alpha1",
        "kind": "TrainingSweep",
        "metadata": {"name": "ablation"},
        "spec": {"template": {"spec": run}, "variants": found, "metrics": ["loss"], **spec},
    }
    path.write_text(yaml.safe_dump(sweep))
    return path


def held_in(folder: Path) -> int:
    """Wait until the trainer waits; its process id."""
    return int(eventually(lambda: text_of(folder / "checkpoints/held-3")))


def the_command(file: Path, *options: str) -> tuple[str, ...]:
    return ("run", str(file), "--dir", str(file.parent / "sweep"), *options)


def test_variants_are_trained_one_after_another_and_tabulated(tmp_path: Path, piton: Piton) -> None:
    file = write(tmp_path / "sweep.yaml", {"plain": (), "longer": ("--steps", "8")}, limits={"deadline": "1h"})
    result = piton(*the_command(file, "--json", "--drill", "plain:kill@step99"))
    again = piton(*the_command(file, "--json"))
    drilled_again = piton(*the_command(file, "--json", "--drill", "plain:kill@step99"))
    table = piton("results", tmp_path / "sweep", "--format", "csv")

    found = json.loads(result.out)
    assert (result.code, found["phase"], found["done"], found["baseline"]) == (3, "Succeeded", "2/2", "plain")
    assert [run["name"] for run in found["runs"]] == ["ablation-plain", "ablation-longer"]
    assert [run["finalStep"] for run in found["runs"]] == [6, 8]
    assert result.err.index("longer: Created attempt 1") > result.err.index("plain: Finished")
    assert (again.code, drilled_again.code) == (0, 3)
    for told in (result.err, drilled_again.err):
        assert "piton: ablation-plain has Succeeded, but not fired: kill@step99; it was over before" in told
    assert [run["drillsNotFired"] for run in found["runs"]] == [["kill@step99"], []]
    assert "nothing was trained" in again.err
    assert json.loads(again.out)["results"] == found["results"]
    assert [line.split(",")[:5] for line in table.out.splitlines()[1:]] == [
        ["plain", "1", "1", "val_loss", "0.25"],
        ["plain", "1", "1", "loss", "0.5"],
        ["longer", "1", "1", "val_loss", "0.25"],
        ["longer", "1", "1", "loss", "0.375"],
    ]


def test_parallelism_trains_beside_each_other_and_a_drill_hits_the_variant_that_it_names(
    tmp_path: Path, piton: Piton
) -> None:
    """Each waits for the other to be there: one after the other they would wait for ever."""
    file = write(tmp_path / "sweep.yaml", {"a": ("--hold-at", "3"), "b": ("--hold-at", "3")}, parallelism=2)
    drills = ("--drill", "a:preempt@step3", "--drill", "b:kill@step3")
    result = piton(*the_command(file, "--json", *drills))

    first, second = json.loads(result.out)["runs"]
    assert result.code == 0
    assert (first["preemptions"], first["lostSteps"], second["preemptions"], second["lostSteps"]) == (1, 0, 1, 3)
    assert first["weightsDigest"] == second["weightsDigest"]
    assert "a: Drill preempt@step3 at step 3" in result.err
    assert "b: Drill kill@step3 at step 3" in result.err


def test_a_signal_saves_all_and_the_same_command_continues(tmp_path: Path, piton: Piton) -> None:
    file = write(tmp_path / "sweep.yaml", {"a": ("--hold-at", "3"), "b": ("--hold-at", "3")}, parallelism=2)
    with a_command(*the_command(file, "--json"), cwd=tmp_path) as process:
        held = [held_in(tmp_path / f"sweep/{variant}") for variant in "ab"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    continued = piton(*the_command(file, "--json"))

    stopped = json.loads(out)
    assert not any(is_running(pid) for pid in held)
    assert "the same command continues" in err
    assert (stopped["phase"], stopped["done"]) == ("Suspended", "0/2")
    found = json.loads(continued.out)
    assert (continued.code, found["phase"], found["done"]) == (0, "Succeeded", "2/2")
    assert [(run["attempts"], run["lostSteps"], run["failures"]) for run in found["runs"]] == [
        (2, 0, 0),
        (2, 0, 0),
    ]


def test_a_failed_variant_fails_the_sweep_and_another_command_gives_it_another_chance(
    tmp_path: Path, piton: Piton
) -> None:
    bug = ("--crash-at", "4", "--crash-attempts", "1")
    file = write(tmp_path / "sweep.yaml", {"bad": bug, "last": ()})
    first = piton(*the_command(file, "--json", "--quiet"))
    second = piton(*the_command(file, "--json", "--quiet"))

    assert (first.code, json.loads(first.out)["done"], json.loads(first.out)["phase"]) == (1, "2/2", "Failed")
    assert "ablation-bad failed" in first.err
    assert (second.code, json.loads(second.out)["phase"]) == (0, "Succeeded")
    assert [run["attempts"] for run in json.loads(second.out)["runs"]] == [2, 1]


def test_with_stop_nothing_more_begins_after_a_failure(tmp_path: Path, piton: Piton) -> None:
    file = write(tmp_path / "sweep.yaml", {"bad": ("--crash-at", "4"), "last": ()}, onFailure="Stop")
    result = piton(*the_command(file, "--json", "--quiet"))

    assert result.code == 1
    assert [run["name"] for run in json.loads(result.out)["runs"]] == ["ablation-bad"]


EXPORTS = ("--exit-after", "1", "--exit-attempts", "0")
"""The script leaves a file of its own in the run's folder."""


@pytest.mark.parametrize(
    "before", [("--end", "diverged"), (), EXPORTS], ids=["failed", "succeeded", "succeeded with an export"]
)
def test_a_sweep_that_was_changed_is_refused_and_fresh_starts_over(
    before: tuple[str, ...], tmp_path: Path, piton: Piton
) -> None:
    piton(*the_command(write(tmp_path / "sweep.yaml", {"a": before}), "--quiet"))
    changed = write(tmp_path / "sweep.yaml", {"a": ("--steps", "7")})
    refused = piton(*the_command(changed, "--quiet"))
    fresh = piton(*the_command(changed, "--quiet", "--fresh"))

    assert (refused.code, fresh.code) == (2, 0)
    assert "are not what this sweep began with; put them back, say --fresh" in refused.err


@pytest.mark.parametrize(
    ("parts", "options", "problem"),
    [
        ({"suspend": True}, (), "spec.suspend: the sweep is told to hold"),
        ({"folds": 2}, (), "spec.folds: a program of your own has no config to set"),
        ({}, ("--drill", "nobody:kill@50%"), "a name before the colon is one of a"),
        ({}, ("--drill", "kill@500%"), "outside of the run"),
        ({"variants": MISSPELT}, (), "variant a: spec.trainer.command: there is no program trane here"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(
    parts: dict[str, Any], options: tuple[str, ...], problem: str, tmp_path: Path, piton: Piton
) -> None:
    result = piton(*the_command(write(tmp_path / "sweep.yaml", {"a": ()}, **parts), *options))

    assert result.code == 2
    assert problem in result.err
    assert result.err.count("\n") == 1
    assert not list((tmp_path / "sweep").glob("*/checkpoints"))


def test_a_folder_of_a_run_is_no_sweeps(tmp_path: Path, piton: Piton) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/state.json").write_text("{}")

    result = piton(*the_command(write(tmp_path / "sweep.yaml", {"a": ()})))

    assert (result.code, "holds something else than a sweep" in result.err) == (2, True)


def test_validate_and_plan_know_sweeps(tmp_path: Path, piton: Piton) -> None:
    matrix = {"checkpoint.every": [{"steps": 2}, {"steps": 3}]}
    file = write(tmp_path / "sweep.yaml", {"a": (), "b": ()}, matrix=matrix, parallelism=2)
    good, plan, wire = piton("validate", file), piton("plan", file), piton("plan", file, "--json")
    recipe = [{"name": "a", "patch": {"trainer": {"recipe": "charlm", "config": {"steps": 1, "depths": 3}}}}]
    bad = piton("validate", write(tmp_path / "bad.yaml", {}, variants=recipe))

    assert (good.code, "ablation is a TrainingSweep that can work" in good.out) == (0, True)
    assert plan.out.splitlines()[0] == "ablation makes 4 runs, at most 2 at once, in this order:"
    assert [run["variant"] for run in json.loads(wire.out)["runs"]] == [
        "a-every-steps-2", "a-every-steps-3", "b-every-steps-2", "b-every-steps-3",
    ]  # fmt: skip
    assert (bad.code, "variant a: spec.trainer.config.depths: charlm has no such setting" in bad.err) == (2, True)


def test_plan_adds_up_what_the_runs_of_a_sweep_cost(tmp_path: Path, piton: Piton) -> None:
    trainer = {"recipe": "charlm", "config": {"steps": 9}}
    variants: list[dict[str, Any]] = [
        {"name": f"t{hours}", "patch": {"trainer": trainer, "limits": {"trainingTime": f"{hours}h"}}}
        for hours in (1, 2)
    ]
    file = write(tmp_path / "sweep.yaml", {}, variants=variants, seeds=[0, 1, 2])
    told, wire = (piton("plan", file, "--price-per-hour", "10", *options) for options in ((), ("--json",)))

    assert "What each of the 3 runs of t1 takes:" in told.out
    assert told.out.rstrip().endswith("All 6 runs together cost $90.00.")
    costs = {name: found["cost"]["value"] for name, found in json.loads(wire.out)["estimates"].items()}
    assert costs == {"t1": 10.0, "t2": 20.0}
    assert "together" not in piton("plan", file).out
    patched = [{**v, "patch": {**v["patch"], "capacity": {"maxPricePerHour": "10.00"}}} for v in variants]
    small = write(tmp_path / "sweep.yaml", {}, variants=patched, seeds=[0, 1, 2], limits={"budget": {"usd": "50"}})
    assert piton("plan", small).out.rstrip().endswith("cost at most $90.00.\n        ! limits.budget is $50")
    bounded = write(tmp_path / "sweep.yaml", {"a": ()}, limits={"deadline": "3h"})
    assert "at most 3h (limits.deadline)" in piton("plan", bounded).out


def test_preflight_looks_at_one_run_of_each_variant(tmp_path: Path, piton: Piton) -> None:
    file = write(tmp_path / "sweep.yaml", {"a": (), "b": ("--crash-at", "2")})
    result = piton("preflight", file, "--dir", tmp_path / "runs", "--quiet", "--json")

    found = json.loads(result.out)
    steps = {
        name: check["state"]
        for name, run in found["runs"].items()
        for check in run["checks"]
        if check["name"] == "steps"
    }
    assert (result.code, found["ok"]) == (1, False)
    assert steps == {"ablation-a": "ok", "ablation-b": "failed"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no TrainingSweep with a status; pipe kubectl get tsweep NAME -o json here"),
        ("[]", "no TrainingSweep with a status"),
        ("{}", "no TrainingSweep with a status"),
        ('{"status": null}', "no TrainingSweep with a status"),
        ('{"status": "x"}', "no TrainingSweep with a status"),
        ('{"status": {"conditions": {}}}', "no TrainingSweep with a status"),
        ('{"kind": "TrainingRun", "status": {"phase": "Training"}}', "that is a TrainingRun, and results are of a"),
        ('{"kind": "List", "items": []}', "no TrainingSweep with a status"),
    ],
)
def test_results_of_what_is_no_sweep_are_refused(
    text: str, words: str, tmp_path: Path, piton: Piton, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweep.json").write_text(text)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))

    for found in (piton("results", "-"), piton("results", tmp_path / "sweep.json")):
        assert (found.code, found.out) == (2, "")
        assert words in found.err


def test_results_are_read_from_what_kubectl_prints(
    tmp_path: Path, piton: Piton, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "sweep.yaml", {"a": ()})
    piton(*the_command(file, "--quiet"))
    status = json.loads((tmp_path / "sweep/sweep.json").read_text())["status"]
    document = json.dumps({"kind": "TrainingSweep", "status": status})

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(document.encode())))
    piped = piton("results", "-", "--format", "markdown")
    local = piton("results", file, "--dir", tmp_path / "sweep", "--format", "markdown")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "sweep").rename(tmp_path / "runs/ablation")
    named = piton("results", "ablation", "--format", "markdown")
    nothing = piton("results", tmp_path)

    assert (
        piped.out
        == local.out
        == named.out
        == "| variant | runs | val_loss | loss |\n| --- | ---: | ---: | ---: |\n| a | 1/1 | 0.25 | 0.5 |\n"
    )
    assert (nothing.code, "holds no sweep" in nothing.err) == (2, True)
