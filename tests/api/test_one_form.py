"""What means the same is the same wherever specs are compared, however it is written."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel, PlainSerializer, StringConstraints

from piton.api.one_form import dollars_form, duration_form, in_one_form, quantity_form
from piton.api.spec import Spec, Stage
from piton.api.status import RunStatus
from piton.contract import duration, quantity
from piton.core import programs
from piton.core.answers import digests
from piton.rendering.workload import asked, asks_alike
from piton.sweep.model import SweepSpec
from support.builders import a_spec
from support.builders import meta as a_meta

EQUAL: list[tuple[Callable[[str], str], str, list[str], list[str]]] = [
    (duration_form, "1h", ["60m", "3600s", "0d1h"], ["61m", "1d"]),
    (duration_form, "90m", ["1h30m", "5400s"], ["1h", "30m"]),
    (duration_form, "24h", ["1d", "23h60m"], ["25h"]),
    (duration_form, "87600h", ["3650d", "5000d"], ["3649d"]),
    (duration_form, "0s", ["0h", "0d0h"], ["1s"]),
    (quantity_form, "1Gi", ["1024Mi", "1073741824", "1048576Ki"], ["1G", "1025Mi"]),
    (quantity_form, "1", ["1000m", "1.0", "+1", "1e0"], ["1001m", "1k"]),
    (quantity_form, "1500m", ["1.5", "1.500"], ["1.5Gi"]),
    (quantity_form, "16G", ["16000M", "16e9"], ["16Gi"]),
    (quantity_form, "0", ["0Gi", "0.0"], ["1n"]),
    (quantity_form, "1e99", [], ["1e98"]),
    (dollars_form, "5", ["5.00", "05", "5.0"], ["5.01", "50"]),
    (dollars_form, "250", ["250.00"], ["25"]),
    (dollars_form, "0.5", ["0.50"], ["0.05"]),
]


@pytest.mark.parametrize(("form", "usual", "equal", "others"), EQUAL)
def test_a_value_has_one_form(form: Callable[[str], str], usual: str, equal: list[str], others: list[str]) -> None:
    assert [form(text) for text in (usual, *equal)] == [usual] * (len(equal) + 1)
    assert usual not in [form(text) for text in others]


def written(model: type[BaseModel]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the path of each field of the model and of all models in it, with what its types are annotated with."""
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", [*field.metadata, *_annotations(field.annotation)]
        for inner in _models(field.annotation):
            yield from written(inner)


def _annotations(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    for part in get_args(annotation):
        yield from _annotations(part)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


@pytest.mark.parametrize("model", [Spec, SweepSpec])
def test_each_field_of_an_amount_has_a_form(model: type[BaseModel]) -> None:
    amounts = (duration.PATTERN, quantity.PATTERN, r"^[0-9]+(\.[0-9]{1,2})?$")
    of_amounts = {
        path: any(isinstance(mark, PlainSerializer) for mark in marks)
        for path, marks in written(model)
        if any(isinstance(mark, StringConstraints) and mark.pattern in amounts for mark in marks)
    }
    assert len(of_amounts) > 1
    assert [path for path, has_form in of_amounts.items() if not has_form] == []


def resources(**amounts: Any) -> dict[str, Any]:
    return {"workers": {"template": {"resources": {"requests": amounts}}}}


def spec_of(patience: str = "1h", memory: str = "1Gi", cpu: str | int = 1, usd: str = "5", **more: Any) -> Spec:
    return a_spec(
        **{
            "checkpoint": {"volume": {"size": memory, "accessModes": ["ReadWriteMany"]}, "patience": patience},
            "capacity": {"maxPricePerHour": usd},
            "limits": {"trainingTime": patience, "hangTimeout": patience, "budget": {"usd": usd}},
            "stages": {"prepare": {"resources": {"limits": {"cpu": cpu}}, "deadline": patience}},
            **resources(memory=memory, cpu=cpu),
            **more,
        }
    )


ONE = spec_of()
ALIKE = {
    "durations": spec_of(patience="60m"),
    "sizes": spec_of(memory="1024Mi"),
    "text of a number": spec_of(cpu="1"),
    "thousandths": spec_of(cpu="1000m"),
    "dollars": spec_of(usd="5.00"),
}
OTHER = {
    "duration": spec_of(patience="61m"),
    "size": spec_of(memory="1G"),
    "cpu": spec_of(cpu="1001m"),
    "text that is no amount": spec_of(trainer={"image": "trainer:1", "recipe": "charlm", "config": {"a": "60m"}}),
}
QUEUED = a_meta().model_copy(update={"queue": "gpus"})


@pytest.mark.parametrize("how", ALIKE)
@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.PREPARE])
def test_what_is_written_in_another_way_is_the_same(how: str, stage: Stage) -> None:
    other = ALIKE[how]
    assert in_one_form(other) == in_one_form(ONE)
    assert digests(other, stage) == digests(ONE, stage)
    assert programs.identify(other, stage, RunStatus()) == programs.identify(ONE, stage, RunStatus())
    assert asked(QUEUED, other, stage) == asked(QUEUED, ONE, stage)
    assert asks_alike(asked(QUEUED, other, stage), QUEUED, ONE, stage)


@pytest.mark.parametrize("what", OTHER)
def test_another_value_is_another(what: str) -> None:
    assert in_one_form(OTHER[what]) != in_one_form(ONE)
    assert digests(OTHER[what], Stage.TRAIN) != digests(ONE, Stage.TRAIN)


def test_a_spec_in_one_form_is_not_what_a_spec_is_written_as() -> None:
    texts = ALIKE["sizes"].model_dump(mode="json", by_alias=True)
    assert texts["checkpoint"]["volume"]["size"] == "1024Mi"


def test_a_default_that_is_written_out_is_the_default() -> None:
    written_out = a_spec(limits={"startTimeout": "1800s", "stalled": "1d", "hangTimeout": "auto"})
    assert in_one_form(written_out).limits == in_one_form(a_spec()).limits


def test_a_workload_of_an_older_operator_with_another_text_of_the_same_amount_asks_for_the_same() -> None:
    spec = a_spec(workers={"template": {"resources": {"limits": {"memory": "1024Mi", "cpu": "1000m"}}}})
    assert asks_alike("310f215043f66341", QUEUED, spec, Stage.TRAIN)
