"""State survives the way through JSON as it was, in its types too, or it is told that it does not."""

import enum
import io
import json
import math
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from piton_trainer.checkpoint.format import codec
from support.subclasses import EightBit, Named, eight_bits, in_rows, ragged


class Point(NamedTuple):
    """At the top level of a module, where a later attempt finds it."""

    x: float
    y: Any


class Moments:
    """A name for what is in it."""

    class Inner(NamedTuple):
        """One level deeper."""

        mean: float


class Mode(enum.IntEnum):
    """A number with a name."""

    TRAIN = 1


class Kind(enum.StrEnum):
    """A word with a name."""

    A = "a"


class Attributes(dict[str, Any]):
    """A dict of somebody's own."""


STATES: dict[str, Any] = {
    "numbers": {"int": 1, "float": 0.1, "tiny": 5e-324, "infinite": math.inf, "true": True, "none": None, "text": "a"},
    "lists and tuples": {"list": [1, (2, [3, ()])], "betas": (0.9, 0.999)},
    "keys that are numbers": {0: {"step": 1}, 10: {"step": 2}, (1, 2): 3},
    "keys that look like marks": {"$tensor": "not one", "$tuple": [1], "$type": "deque", "$number": 1},
    "milestones": {"milestones": Counter({30: 1, 80: 2})},
    "nothing": {},
    "ordered": {"seen": OrderedDict(b=1, a=(2,)), "empty": OrderedDict()},
    "defaults": [defaultdict(int, {"a": 1}), defaultdict(list, {1: [2]}), defaultdict(None, a=1), defaultdict(Counter)],
    "rows": {"last": deque([1, (2,), {"a": 3}], maxlen=3), "all": deque(), "of rows": deque([deque([1])])},
    "named tuples": {"at": Point(0.5, Point(1.0, [2])), "inner": Moments.Inner(0.25), "keys": {Point(1, 2): 3}},
    "numbers of numpy": {
        "double": np.float64(0.1),
        "single": np.float32(0.1),
        "half": np.float16(0.1),
        "ints": [np.int64(-(2**62)), np.uint8(200), np.int32(3)],
        "bool": np.bool_(True),
        "infinite": np.float64(math.inf),
        "keys": {np.int64(3): np.float32(1.5)},
        "counted": Counter({np.int64(1): np.int64(2)}),
    },
    "a size": {"shape": torch.Size([2, 3])},
}


@pytest.mark.parametrize("name", STATES)
def test_state_comes_back_as_it_was(name: str) -> None:
    flaws: dict[str, str] = {}
    document, tensors = codec.split(STATES[name], "state", flaws=flaws)
    back = codec.join(json.loads(codec.encode(document)), tensors.__getitem__)
    assert repr(back) == repr(STATES[name])
    assert typed(back) == typed(STATES[name])
    assert (tensors, flaws) == ({}, {})


def typed(value: Any) -> Any:
    """Return a value with all of its types, and what a container does with what is missing or too much."""
    kind = type(value)
    own = getattr(value, "default_factory", None), getattr(value, "maxlen", None)
    if isinstance(value, dict):
        return kind, own, [(typed(k), typed(v)) for k, v in value.items()]
    if isinstance(value, list | tuple | deque):
        return kind, own, [typed(item) for item in value]
    return kind, value


def older_join(document: Any) -> Any:
    """What a Piton made of a document that knew four marks."""
    if isinstance(document, list):
        return [older_join(item) for item in document]
    if not isinstance(document, dict):
        return document
    if "$tuple" in document:
        return tuple(older_join(item) for item in document["$tuple"])
    if "$items" in document:
        return {older_join(k): older_join(v) for k, v in document["$items"]}
    if "$counter" in document:
        return Counter({older_join(k): v for k, v in document["$counter"]})
    return {name: older_join(item) for name, item in document.items()}


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(int, a=1), {"a": 1}),
        (deque([1, 2], maxlen=2), (1, 2)),
        (Point(1.0, 2), (1.0, 2)),
        (torch.Size([2]), (2,)),
        (Counter(a=1), Counter(a=1)),
    ],
)
def test_an_older_piton_reads_containers_as_the_plain_ones(state: Any, seen: Any) -> None:
    back = older_join(codec.split(state, "state")[0])
    assert (type(back), back) == (type(seen), seen)


@pytest.mark.parametrize(
    ("document", "state"),
    [
        ({"$items": [["a", {"$tuple": [1]}], [2, 3]]}, {"a": (1,), 2: 3}),
        ({"$counter": [[30, 1]]}, Counter({30: 1})),
        ({"$items": [[{"$tuple": [1, 2]}, 3]]}, {(1, 2): 3}),
        ({"lr": 0.5, "betas": {"$tuple": [0.9, 0.99]}}, {"lr": 0.5, "betas": (0.9, 0.99)}),
    ],
)
def test_what_an_older_piton_wrote_is_read(document: Any, state: Any) -> None:
    back = codec.join(document, dict[str, Tensor]().__getitem__)
    assert typed(back) == typed(state)


@pytest.mark.parametrize("name", STATES)
def test_programs_that_know_nothing_else_get_plain_values(name: str) -> None:
    document, tensors = codec.split(STATES[name], "state")
    back = codec.join(json.loads(codec.encode(document)), tensors.__getitem__, is_exact=False)
    assert types_in(back) <= {dict, list, tuple, Counter, int, float, str, bool, type(None)}


def types_in(value: Any) -> set[type]:
    parts = (
        [*value.keys(), *value.values()]
        if isinstance(value, dict)
        else value
        if isinstance(value, list | tuple)
        else []
    )
    return {type(value)}.union(*map(types_in, parts))


def test_a_named_tuple_whose_class_is_gone_comes_back_as_a_tuple() -> None:
    document = codec.split(Point(1.0, 2), "state")[0]
    back = codec.join({**document, "$class": "a_module_that_is_gone:Point"}, dict[str, Tensor]().__getitem__)
    assert typed(back) == typed((1.0, 2))


def test_tensors_are_taken_out_and_put_back() -> None:
    state = {"a": torch.ones(2), "nested": [{"b": (torch.zeros(1), 3)}]}
    document, tensors = codec.split(state, "state")
    assert set(tensors) == {"state/a", "state/nested/0/b/0"}
    assert sorted(codec.keys(document)) == sorted(tensors)
    back = codec.join(json.loads(json.dumps(document)), tensors.__getitem__)
    assert back["a"] is tensors["state/a"]
    assert back["nested"][0]["b"][1] == 3


def test_a_parameter_is_saved_without_its_history() -> None:
    flaws: dict[str, str] = {}
    _, tensors = codec.split({"w": nn.Parameter(torch.ones(1))}, "state", flaws=flaws)
    assert not tensors["state/w"].requires_grad
    assert flaws == {}


@pytest.mark.parametrize(
    "names",
    [
        ({"a": {"b": 0}, "a/b": 1}),
        ({1: 0, "1": 1}),
        ({"a": [0], "a/0": 1, "a/0'": 2}),
        ({"a/b": {"c": 0}, "a": {"b/c": 1, "b": {"c": 2}}}),
    ],
)
def test_names_that_collide_are_told_apart(names: Any) -> None:
    def with_tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: with_tensors(part) for name, part in value.items()}
        return [with_tensors(part) for part in value] if isinstance(value, list) else torch.tensor(float(value))

    document, tensors = codec.split(with_tensors(names), "state")
    back = codec.join(json.loads(json.dumps(document)), tensors.__getitem__)
    assert repr(back) == repr(with_tensors(names))


@pytest.mark.parametrize(
    ("thing", "cure"),
    [
        (object(), "save what it is made of"),
        ({1, 2}, r"save sorted\(…\)"),
        (b"bytes", "save torch.frombuffer"),
        (io.BytesIO(b"extra"), r"save torch.frombuffer\(bytearray\(….getvalue"),
        (np.ones(2), r"save torch.from_numpy\(…\)"),
        (np.datetime64(1, "s"), "save what it is made of"),
        (1j, "save what it is made of"),
        (lambda: None, "save what it is made of"),
    ],
)
def test_what_only_pickle_could_save_is_refused_with_its_place_and_what_to_write(thing: object, cure: str) -> None:
    with pytest.raises(ValueError, match=rf"state/deep/0 is a \S+, which only its own code could make again; {cure}"):
        codec.split({"deep": [thing]}, "state")


def test_what_holds_itself_is_refused() -> None:
    own: list[Any] = []
    own.append(own)
    with pytest.raises(ValueError, match="state is nested too deeply, or holds itself"):
        codec.split({"own": own}, "state")


def local_tuple() -> Any:
    class Local(NamedTuple):
        x: int

    return Local(1)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Mode.TRAIN, "Mode and would come back as a int; save int(…)"),
        (Kind.A, "Kind and would come back as a str; save str(…)"),
        (Attributes(a=1), "Attributes and would come back as a dict; save dict(…)"),
        (UserDict(a=1), "UserDict and would come back as a dict; save dict(…)"),
        (defaultdict(lambda: 1), "defaultdict and would come back as a dict; save dict(…)"),
        (local_tuple(), "Local and would come back as a tuple; save tuple(…)"),
        (torch.ones(2).max(0), "max and would come back as a tuple; save tuple(…)"),
        ({Kind.A: 1}, "Kind and would come back as a str; save str(…)"),
        (EightBit(torch.ones(8)), "EightBit, which holds its numbers in other tensors"),
        (torch.eye(3).to_sparse(), "sparse_coo; save ….to_dense(), or leave it out"),
        (in_rows(), "sparse_csr; save ….to_dense(), or leave it out"),
        (ragged(), "a nested tensor; save torch.nested.to_padded"),
        (eight_bits(), "quantized; save ….int_repr(), or leave"),
        (torch.ones(2, device="meta"), "on the device meta and has no numbers"),
        (Named(torch.ones(2)), "Named and would come back as a Tensor; save ….as_subclass(torch.Tensor)"),
    ],
)
def test_what_would_come_back_as_something_else_is_told_with_its_place(value: Any, told: str) -> None:
    flaws: dict[str, str] = {}
    codec.split({"deep": [value]}, "state", flaws=flaws)
    assert [(key.startswith("state/deep/0"), told in flaw) for key, flaw in flaws.items()] == [(True, True)], flaws


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(6.0).reshape(2, 3).T,
        lambda: torch.ones(1, 3).expand(1, 3),
        lambda: torch.ones(0, 3),
        lambda: torch.ones(2, dtype=torch.complex64).conj(),
        lambda: torch.ones(2).to(torch.float8_e4m3fn),
        lambda: torch.arange(9.0).unfold(0, 3, 3),
        lambda: Named(torch.ones(2)),
        lambda: nn.Parameter(Named(torch.ones(2))),
    ],
)
def test_arrays_of_numbers_in_a_module_are_no_flaw(make: Callable[[], Tensor]) -> None:
    flaws: dict[str, str] = {}
    codec.split({"buffer": make()}, "model", flaws=flaws, in_place=True)
    assert flaws == {}


def test_a_tensor_that_overlaps_itself_cannot_be_filled_in_place_but_saved() -> None:
    in_place: dict[str, str] = {}
    beside: dict[str, str] = {}
    codec.split({"mask": torch.ones(3).expand(4, 3)}, "model", flaws=in_place, in_place=True)
    codec.split({"mask": torch.ones(3).expand(4, 3)}, "state", flaws=beside)
    assert "model/mask overlaps itself, as after expand(); give register_buffer(…) its .contiguous()" in str(in_place)
    assert beside == {}


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
