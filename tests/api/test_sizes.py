"""A spec whose run, jobs or pods would be too large for the API server is refused; no other is."""

import json
from typing import Any

import pytest
from pydantic_core import to_json

from piton.api.parse import parse
from piton.api.spec import Spec
from piton.api.stages import wanted
from piton.api.validation_sizes import good_size
from piton.rendering.pytorchjob import pytorchjob
from support.builders import a_manifest, a_spec, meta, problems_of

ANNOTATIONS_MAX, OBJECT_MAX = 256 * 1024, 1536 * 1024
"""Bytes that the API server takes of annotations, and etcd of an object."""


def recipe(**config: Any) -> dict[str, Any]:
    return {"trainer": {"image": "trainer:1", "recipe": "charlm", "config": config}}


def script(*words: str) -> dict[str, Any]:
    return {"trainer": {"image": "trainer:1", "command": list(words)}}


def largest_annotations(spec: Spec) -> int:
    jobs = [pytorchjob(meta(), spec, 1, stage=stage) for stage in wanted(spec.stages)]
    templates = [job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["metadata"] for job in jobs]
    return max(sum(len(f"{key}{text}".encode()) for key, text in one["annotations"].items()) for one in templates)


def largest_object(manifest: dict[str, Any], spec: Spec) -> int:
    run = {**manifest, "status": {"accepted": {"spec": manifest["spec"]}}}
    stages = wanted(spec.stages)
    return max(as_go_writes_it(one) for one in (run, *(pytorchjob(meta(), spec, 1, stage=stage) for stage in stages)))


def as_go_writes_it(part: Any) -> int:
    text = json.dumps(part, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode()) + 5 * sum(text.count(letter) for letter in "<>&")


LARGE: dict[str, dict[str, Any]] = {
    "evaluation": {**recipe(a="x" * 150_000), "stages": {"evaluate": {"config": {"b": "y" * 150_000}}}},
    "other evaluation": {**recipe(), "stages": {"evaluate": {"recipe": "resnet50", "config": {"b": "y" * 210_000}}}},
    "letters": recipe(a="é" * 95_000),
    "emoji": recipe(a="🐍" * 40_000),
    "numbers": recipe(a=[1] * 75_000),
    "quotes": {**recipe(a='"' * 99_000), "workers": {"nodes": 2, "template": {"nodeSelector": {"a": "b" * 420_000}}}},
    "HTML": script(*["if a < b && c > d; then e; fi; " * 1000] * 15),
    "words": script(*["x" * 32_000] * 20),
}


@pytest.mark.parametrize("parts", LARGE.values(), ids=LARGE)
def test_what_would_be_too_large_is_refused(parts: dict[str, Any]) -> None:
    asked = parse(a_manifest(**parts)).asked
    assert asked is not None
    (said,) = good_size(asked)
    assert " KiB are more than a " in said
    assert said in problems_of(**parts)


FITTING: dict[str, dict[str, Any]] = {
    "evaluation": {**recipe(a="x" * 90_000), "stages": {"evaluate": {"config": {"b": "y" * 90_000}}}},
    "the same twice": {**recipe(a="x" * 150_000), "stages": {"evaluate": {"config": {"a": "y" * 150_000}}}},
    "other evaluation": {
        **recipe(a="x" * 150_000),
        "stages": {"evaluate": {"recipe": "resnet50", "config": {"b": "y" * 150_000}}},
    },
    "letters": recipe(a="é" * 33_000),
    "numbers": recipe(a=[1] * 65_000),
    "quotes": recipe(a='"' * 100_000),
    "HTML in a config": recipe(a="<" * 90_000),
    "words": script(*["x" * 32_000] * 18),
}


@pytest.mark.parametrize("parts", FITTING.values(), ids=FITTING)
def test_what_is_accepted_fits(parts: dict[str, Any]) -> None:
    spec = a_spec(**parts)
    assert largest_annotations(spec) < ANNOTATIONS_MAX
    assert largest_object(a_manifest(**parts), spec) < OBJECT_MAX


@pytest.mark.parametrize("text", ["<", "é", "\x01", "🐍", '"', "\\", "x"])
def test_a_spec_that_is_not_measured_could_not_grow_beyond_the_bound(text: str) -> None:
    """Small specs are most specs, and measuring each in all forms would cost the operator time in every pass."""
    config = {"a": [text] * 1000}
    written = len(to_json(config))
    assert max(len(json.dumps(config)), as_go_writes_it(config)) <= 6 * written


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (LARGE["letters"], "spec.trainer.config: its 556 KiB are more than a pod can be told, 200 KiB; put large"),
        (LARGE["evaluation"], "spec.stages.evaluate.config: with spec.trainer.config its 292 KiB are more than a pod"),
        (LARGE["other evaluation"], "spec.stages.evaluate.config: its 205 KiB are more than a pod can be told, 200"),
    ],
)
def test_the_config_that_is_too_large_is_named(parts: dict[str, Any], words: str) -> None:
    (said,) = problems_of(**parts)
    assert said.startswith(words)
