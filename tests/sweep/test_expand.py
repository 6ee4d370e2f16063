"""From a sweep to its runs."""

from datetime import timedelta
from typing import Any

import pytest

from piton.contract import names
from piton.sweep.expand import digest, limited, merge
from piton.sweep.parse import parse
from support.builders import NOW
from support.sweeps import a_sweep, parsed, planned


@pytest.mark.parametrize(
    ("old", "patch", "merged"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": 1}, {"a": {"b": None, "c": 1}}, {"a": {"c": 1}}),
        ({}, {"a": {"b": {"c": None}}}, {"a": {"b": {}}}),
        ({"a": {"b": 1}}, {"a": "x"}, {"a": "x"}),
        ([1], {"a": 1}, {"a": 1}),
    ],
)
def test_a_patch_is_merged_as_the_rfc_says(old: Any, patch: Any, merged: Any) -> None:
    assert merge(old, patch) == merged


def test_merging_changes_neither_of_the_two() -> None:
    old, patch = {"a": {"b": 1}}, {"a": {"c": 2}}
    merge(old, patch)["a"]["d"] = 3

    assert (old, patch) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_a_variant_changes_what_it_names_and_nothing_else() -> None:
    variants = [
        {"name": "plain"},
        {"name": "deep", "remove": ["trainer.config.data"], "patch": {"trainer": {"config": {"depth": 8}}}},
    ]
    plain, deep = planned(variants=variants)

    assert (plain.name, deep.name) == ("ragcun-plain", "ragcun-deep")
    assert plain.spec["trainer"]["config"] == {"depth": 4, "data": {"text": "a"}}
    assert deep.spec["trainer"] == {"image": "trainer:1", "recipe": "charlm", "config": {"depth": 8}}


def test_without_variants_the_template_is_the_only_one() -> None:
    (run,) = planned(variants=[])

    assert (run.name, run.variant) == ("ragcun-template", "template")


def test_labels_say_whose_a_run_is_and_the_templates_come_along() -> None:
    manifest = a_sweep()
    labels = {"team": "search", names.LABEL_SWEEP: "forged"}
    manifest["spec"]["template"]["metadata"] = {"labels": labels, "annotations": {"note": "x"}}
    run = parse(manifest).plan[0]

    assert run.labels == {"team": "search", names.LABEL_SWEEP: "ragcun", names.LABEL_VARIANT: "baseline"}
    assert run.annotations == {"note": "x"}


def test_folds_and_seeds_are_set_and_named_and_begin_with_every_variant() -> None:
    runs = planned(variants=[{"name": "o"}, {"name": "p"}], folds=2, seeds=[7, 8])

    assert [run.name for run in runs] == [
        "ragcun-o-f0-s7", "ragcun-p-f0-s7", "ragcun-o-f0-s8", "ragcun-p-f0-s8",
        "ragcun-o-f1-s7", "ragcun-p-f1-s7", "ragcun-o-f1-s8", "ragcun-p-f1-s8",
    ]  # fmt: skip
    config = runs[-1].spec["trainer"]["config"]
    assert (config["folds"], config["fold"], config["seed"]) == (2, 1, 8)
    assert (runs[-1].variant, runs[-1].fold, runs[-1].seed) == ("p", 1, 8)


def test_a_matrix_is_every_combination_with_names_that_a_pod_can_have() -> None:
    matrix = {"trainer.config.learningRate": [0.001, 0.01], "trainer.config.depth": [4]}
    runs = planned(variants=[{"name": "o"}], matrix=matrix)

    assert [run.variant for run in runs] == ["o-depth-4-learningrate-0-001", "o-depth-4-learningrate-0-01"]
    assert [run.spec["trainer"]["config"]["learningRate"] for run in runs] == [0.001, 0.01]
    assert runs[0].spec["trainer"]["config"]["depth"] == 4


def test_a_null_in_the_matrix_removes() -> None:
    without, given = planned(variants=[], matrix={"trainer.config.data": [None, "pydoc"]})

    assert "data" not in without.spec["trainer"]["config"]
    assert given.spec["trainer"]["config"]["data"] == "pydoc"


def test_long_and_equal_names_of_the_matrix_get_a_digest_and_keep_it() -> None:
    long = [f"s3://bucket/{'x' * 60}/{number}" for number in range(2)]
    signs = [-1, 1]
    names_of_long = [run.name for run in planned(variants=[], matrix={"trainer.config.data": long})]
    names_of_signs = [run.variant for run in planned(variants=[], matrix={"trainer.config.bias": signs})]
    turned = [run.variant for run in planned(variants=[], matrix={"trainer.config.bias": signs[::-1]})]

    assert len(set(names_of_long)) == 2
    assert all(len(name) <= names.MAX_RUN_NAME and name.startswith("ragcun-data-s3-bucket-x") for name in names_of_long)
    assert len(set(names_of_signs)) == 2
    assert turned == names_of_signs[::-1]


def test_a_placement_groups_the_runs_by_the_sweeps_name() -> None:
    for run in planned(placement="Pack"):
        assert run.spec["workers"]["template"]["placement"] == {"group": "ragcun", "policy": "Pack"}
    assert all("workers" not in run.spec for run in planned())


@pytest.mark.parametrize(
    ("own", "left_seconds", "deadline"),
    [
        (None, 90.9, "90s"),
        ("1h", 90, "90s"),
        ("1m", 90, "60s"),
        ("1m", None, "60s"),
        (None, -5, "1s"),
        (None, None, None),
    ],
)
def test_a_run_gets_what_is_left_of_the_sweeps_time(own: str | None, left_seconds: float | None, deadline: str) -> None:
    run = planned(template={"limits": {"failures": 2, **({"deadline": own} if own else {})}})[0]
    until = None if left_seconds is None else NOW + timedelta(seconds=left_seconds)

    limits = limited(run, until, NOW)["limits"]

    assert limits.get("deadline") == deadline
    assert limits["failures"] == 2


def test_the_digest_is_of_what_may_not_change() -> None:
    same: list[dict[str, Any]] = [
        {}, {"suspend": True}, {"parallelism": 3}, {"limits": {"deadline": "1h"}}, {"onFailure": "Stop"}
    ]  # fmt: skip
    other: list[dict[str, Any]] = [
        {"folds": 3}, {"placement": "Pack"}, {"variants": [{"name": "a"}]}, {"template": {"limits": {"failures": 9}}}
    ]  # fmt: skip

    def of(parts: dict[str, Any]) -> str:
        spec = parsed(**parts).spec
        assert spec is not None
        return digest(spec)

    assert len({of(parts) for parts in same}) == 1
    assert len({of(parts) for parts in [{}, *other]}) == 1 + len(other)
