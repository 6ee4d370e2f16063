"""State survives the way through JSON as it was, or is refused."""

import json
import math
from collections import Counter
from typing import Any

import pytest
import torch

from piton_trainer.checkpoint.format import codec

STATES: dict[str, Any] = {
    "numbers": {"int": 1, "float": 0.1, "tiny": 5e-324, "infinite": math.inf, "true": True, "none": None, "text": "a"},
    "lists and tuples": {"list": [1, (2, [3, ()])], "betas": (0.9, 0.999)},
    "keys that are numbers": {0: {"step": 1}, 10: {"step": 2}, (1, 2): 3},
    "keys that look like marks": {"$tensor": "not one", "$tuple": [1]},
    "milestones": {"milestones": Counter({30: 1, 80: 2})},
    "nothing": {},
}


@pytest.mark.parametrize("name", STATES)
def test_state_comes_back_as_it_was(name: str) -> None:
    document, tensors = codec.split(STATES[name], "state")
    back = codec.join(json.loads(json.dumps(document)), tensors.__getitem__)
    assert repr(back) == repr(STATES[name])
    assert tensors == {}


def test_tensors_are_taken_out_and_put_back() -> None:
    state = {"a": torch.ones(2), "nested": [{"b": (torch.zeros(1), 3)}]}
    document, tensors = codec.split(state, "state")
    assert set(tensors) == {"state/a", "state/nested/0/b/0"}
    assert sorted(codec.keys(document)) == sorted(tensors)
    back = codec.join(json.loads(json.dumps(document)), tensors.__getitem__)
    assert back["a"] is tensors["state/a"]
    assert back["nested"][0]["b"][1] == 3


def test_a_parameter_is_saved_without_its_history() -> None:
    _, tensors = codec.split({"w": torch.nn.Parameter(torch.ones(1))}, "state")
    assert not tensors["state/w"].requires_grad


@pytest.mark.parametrize("thing", [object(), {1, 2}, b"bytes", lambda: None])
def test_what_only_pickle_could_save_is_refused_with_its_place(thing: object) -> None:
    with pytest.raises(ValueError, match=r"state/deep/0 is a builtins\.\w+; a checkpoint holds"):
        codec.split({"deep": [thing]}, "state")


def test_what_is_encoded_by_parts_is_the_json_of_the_whole() -> None:
    fixed = codec.Fixed(a=[1, {"b": None}], ü="ü")
    keys = {1: [[1]], None: {"y": fixed}, False: fixed, 0.5: [[]]}
    document = {
        "k": keys,
        "x": [fixed, [1, 2.5, "s", True], []],
        "y": {"z": fixed, "e": {}},
        "n": 1e300,
        "t": [[1], {}],
    }
    for _ in range(2):
        assert codec.encode(document) == json.dumps(document)
