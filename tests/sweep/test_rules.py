"""What a user may write into a sweep, and what is said to them when they may not."""

from typing import Any

import pytest

from piton.api.parse import SpecError
from piton.sweep.parse import parse, parse_file
from support.builders import NOW, a_manifest
from support.sweeps import a_sweep

COMMAND = {"trainer": {"image": "i", "command": ["python", "train.py"]}}


def problems_of(name: str = "ragcun", **parts: Any) -> tuple[str, ...]:
    return parse(a_sweep(name, **parts)).problems


def variants(*patches: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": letter, "patch": patch} for letter, patch in zip("abcd", patches, strict=False)]


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"varaints": []}, "spec.varaints: unknown field; did you mean variants?"),
        ({"variants": [{"name": "Upper"}]}, "spec.variants[0].name"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "spec.variants: the name a is given twice"),
        ({"seeds": [1, 1]}, "spec.seeds: 1 is given twice"),
        ({"folds": 1}, "spec.folds: 1 is out of range; write at least 2"),
        ({"folds": 10, "seeds": list(range(10))}, "make more than the 200 runs that a sweep may have"),
        ({"matrix": {"trainer..config": [1]}}, "spec.matrix: 'trainer..config' is no path"),
        ({"matrix": {"trainer.config.depth": []}}, "spec.matrix.trainer.config.depth"),
        ({"matrix": {"trainer.config.depth": [4, 4]}}, "two runs would be called ragcun-"),
        ({"parallelism": 0}, "spec.parallelism: 0 is out of range"),
        ({"placement": "Together"}, "write 'Pack' or 'Spread'"),
        ({"limits": {"deadline": "0h"}}, "spec.limits.deadline: '0h' is no time at all"),
        ({"limits": {"budget": {"usd": "250"}}}, "spec.template.spec.capacity.maxPricePerHour: missing"),
        ({"limits": {"budget": {"usd": "0"}}}, "spec.limits.budget.usd: '0' buys nothing"),
        ({"baseline": "nobody"}, "spec.baseline: there is no variant nobody; known here: baseline, isotropy, frozen"),
        ({"template": COMMAND, "folds": 2}, "spec.folds: a program of your own has no config to set"),
        ({"template": COMMAND, "seeds": [1]}, "spec.seeds: a program of your own has no config to set"),
    ],
)  # fmt: skip
def test_a_bad_sweep_gets_a_sentence_with_path_and_fix(parts: dict[str, Any], problem: str) -> None:
    found = problems_of(**parts)

    assert any(problem in sentence for sentence in found), found
    assert all("\n" not in sentence for sentence in found)


@pytest.mark.parametrize(
    ("patch", "problem"),
    [
        ({"workers": {"nodes": 0}}, "variant b: spec.workers.nodes: 0 is out of range; write at least 1"),
        ({"wokers": {}}, "variant b: spec.wokers: unknown field; did you mean workers?"),
        ({"trainer": {"command": ["x"]}}, "variant b: spec.trainer: exactly one of recipe and command is needed"),
        (
            {"trainer": {"image": None}},
            "variant b: spec.trainer.image is null, which kubectl apply leaves out; write remove: [",
        ),
        ({"suspend": True}, "variant b: spec.suspend: runs of a sweep hold when spec.suspend of the sweep says so"),
        (
            {"ttlAfterFinished": "1h"},
            "variant b: spec.ttlAfterFinished: a sweep would start a run anew that is deleted",
        ),
    ],
)
def test_a_bad_variant_is_named(patch: dict[str, Any], problem: str) -> None:
    found = problems_of(variants=variants({}, patch))

    assert [sentence for sentence in found if sentence.startswith(problem)], found
    assert not [sentence for sentence in found if sentence.startswith("variant a")]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("trainer", "variant a: spec.trainer: missing; it is required"),
        ("trainer.images", "variant a: remove: the template's spec has no trainer.images; is it misspelt?"),
        ("trainer.image.x", "variant a: remove: the template's spec has no trainer.image.x; is it misspelt?"),
    ],
)
def test_what_cannot_go_is_named(path: str, problem: str) -> None:
    assert problem in problems_of(variants=[{"name": "a", "remove": [path]}])


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"labels": {"team": "a b"}}, "spec.template.metadata.labels.team: 'a b' is no value of a label"),
        ({"labels": {"a b": "x"}}, "spec.template.metadata.labels: 'a b' is no name of a label"),
        ({"annotations": {"a b": "x"}}, "spec.template.metadata.annotations: 'a b' is no name of an annotation"),
    ],
)
def test_metadata_that_the_api_server_takes_of_no_run_is_refused(metadata: dict[str, Any], problem: str) -> None:
    sweep = a_sweep()
    sweep["spec"]["template"]["metadata"] = metadata
    with pytest.raises(SpecError) as refused:
        parse_file(sweep, now=NOW)

    assert [sentence for sentence in refused.value.problems if sentence.startswith(problem)] == [
        *refused.value.problems
    ]


def test_a_bad_variant_is_told_once_and_not_fold_by_fold() -> None:
    assert len(problems_of(variants=variants({}, {"workers": {"nodes": 0}}), folds=10)) == 1


def test_a_bad_template_is_told_once_and_not_for_each_variant() -> None:
    found = problems_of(template={"workers": {"nodes": 2}, "limits": {"deadline": "0h"}})

    assert [sentence.partition(":")[0] for sentence in found] == [
        "spec.template.spec.checkpoint.volume.accessModes",
        "spec.template.spec.limits.deadline",
    ]


def test_what_the_template_leaves_to_the_variants_is_no_problem() -> None:
    recipes = variants({"trainer": {"recipe": "charlm"}}, {"trainer": {"command": ["python", "x.py"]}})

    assert problems_of(template={"trainer": {"image": "i"}}, variants=recipes) == ()


def test_runs_that_are_judged_by_different_metrics_are_refused() -> None:
    assert problems_of(variants=variants({}, {"objective": {"metric": "loss"}})) == (
        "spec.variants: the runs have different objectives; give all of them one metric and goal",
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [("Upper", "is no DNS label"), ("x" * 40, "would have 49 characters"), ("1st", "is no DNS label")],
)
def test_a_name_that_does_not_fit_its_runs_is_refused(name: str, problem: str) -> None:
    assert any("metadata.name" in sentence and problem in sentence for sentence in problems_of(name))


def test_a_file_of_a_run_is_no_sweep() -> None:
    with pytest.raises(SpecError, match="kind: 'TrainingRun' is not known; write 'TrainingSweep'"):
        parse_file(a_manifest(), now=NOW)
