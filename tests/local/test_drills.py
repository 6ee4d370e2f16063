import pytest

from piton.api.spec import Stage
from piton.contract.progress import Progress
from piton.local.drills import Drill, first_due, parse, pending


def at(step: int | None = None, total: int | None = None, percentage: int | None = None) -> Progress:
    return Progress(updated="", step=step, total_steps=total, percentage=percentage)


@pytest.mark.parametrize(
    ("text", "kind", "unit", "position"),
    [
        ("preempt@50%", "preempt", "percent", 50.0),
        ("kill@0.5%", "kill", "percent", 0.5),
        ("preempt@90s", "preempt", "seconds", 90.0),
        ("kill@2m", "kill", "seconds", 120.0),
        ("kill@1h30m", "kill", "seconds", 5400.0),
        ("kill@step120", "kill", "step", 120.0),
    ],
)
def test_a_drill_is_parsed(text: str, kind: str, unit: str, position: float) -> None:
    drill = parse(text)

    assert (drill.kind, drill.unit, drill.position, drill.text) == (kind, unit, position, text)
    assert drill.stage is Stage.TRAIN


def test_a_drill_may_name_a_stage_that_has_no_steps_but_seconds() -> None:
    drill = parse("prepare:kill@5s")

    assert (drill.stage, drill.kind, drill.unit, drill.position) == (Stage.PREPARE, "kill", "seconds", 5.0)
    assert parse("evaluate:preempt@1m").stage is Stage.EVALUATE
    with pytest.raises(ValueError, match="only training has steps; write one like prepare:preempt@5s"):
        parse("prepare:preempt@50%")


@pytest.mark.parametrize(
    "text",
    ["", "50%", "preempt", "preempt@", "kill@50", "kill@-5%", "kill@0%", "kill@100%", "kill@step0", "kill@stepx",
     "stop@50%", "train:kill@5s", ":kill@5s", "kill@2x", "kill@m", "kill@30m2h", "preempt@50% ",
     "PREEMPT@50%", "kill@step1.5"],
)  # fmt: skip
def test_what_is_no_drill_is_refused_with_a_sentence_that_shows_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"write one like|write a percentage|first step|not a duration") as error:
        parse(text)

    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("drill", "progress", "seconds", "due"),
    [
        ("kill@50%", at(step=10, total=20), 0.0, True),
        ("kill@50%", at(step=9, total=20), 0.0, False),
        ("kill@50%", at(percentage=50), 0.0, True),
        ("kill@50%", at(percentage=49), 0.0, False),
        ("kill@50%", at(step=10), 0.0, False),
        ("kill@50%", None, 1e9, False),
        ("kill@step120", at(step=120), 0.0, True),
        ("kill@step120", at(step=119), 0.0, False),
        ("kill@step120", at(percentage=99), 0.0, False),
        ("kill@90s", None, 90.0, True),
        ("kill@90s", at(step=1), 89.9, False),
    ],
)
def test_a_drill_is_due_when_its_position_is_reached(
    drill: str, progress: Progress | None, seconds: float, due: bool
) -> None:
    found = first_due([parse(drill)], progress=progress, seconds=seconds)

    assert (found is not None) == due


def test_drills_come_in_order_of_position_and_each_as_often_as_it_was_given() -> None:
    drills = [parse(text) for text in ("kill@60%", "preempt@30%", "kill@60%")]

    def texts(left: tuple[Drill, ...]) -> list[str]:
        return [drill.text for drill in left]

    assert texts(pending(drills, [])) == ["preempt@30%", "kill@60%", "kill@60%"]
    assert texts(pending(drills, ["preempt@30%", "kill@60%"])) == ["kill@60%"]
    assert texts(pending(drills, ["kill@60%", "kill@60%", "preempt@30%"])) == []
