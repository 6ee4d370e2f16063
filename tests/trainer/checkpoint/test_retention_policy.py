"""Which checkpoints may go, as a table."""

from pathlib import Path

import pytest

from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.retention import Deletions, steps_to_delete, what_goes
from support import tiny

LOW = Objective(metric="val", goal="Minimize")
HIGH = Objective(metric="val", goal="Maximize")


def checkpoints(**values: float | None) -> list[tuple[int, dict[str, float]]]:
    return [(int(name[1:]), {} if value is None else {"val": value}) for name, value in values.items()]


TABLE: dict[str, tuple[dict[str, float | None], int, int, Objective | None, list[int]]] = {
    "nothing there, nothing goes": ({}, 2, 1, LOW, []),
    "the last two stay": ({"s1": None, "s2": None, "s3": None}, 2, 1, None, [1]),
    "the newest stays even when the policy keeps none": ({"s1": None, "s2": None}, 0, 0, None, [1]),
    "the best stays however old": ({"s1": 0.1, "s2": 0.9, "s3": 0.8, "s4": 0.7}, 2, 1, LOW, [2]),
    "the two best stay": ({"s1": 0.1, "s2": 0.2, "s3": 0.8, "s4": 0.7}, 1, 2, LOW, [3]),
    "the best may be the highest": ({"s1": 0.1, "s2": 0.9, "s3": 0.8, "s4": 0.7}, 1, 1, HIGH, [1, 3]),
    "of equals the older stays": ({"s1": 0.5, "s2": 0.5, "s3": 0.5, "s4": 0.9}, 1, 1, LOW, [2, 3]),
    "what was not measured is not the best": ({"s1": None, "s2": 0.5, "s3": None, "s4": None}, 1, 1, LOW, [1, 3]),
    "what is not a number is not the best": ({"s1": float("nan"), "s2": 0.5, "s3": None}, 1, 2, LOW, [1]),
    "without an objective there is no best": ({"s1": 0.1, "s2": 0.2}, 1, 1, None, [1]),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_goes(name: str) -> None:
    values, last, best, objective, expected = TABLE[name]
    policy = SavePolicy(keep_last=last, keep_best=best)
    assert steps_to_delete(checkpoints(**values), policy=policy, objective=objective) == expected


# Of five whole checkpoints the last two stay: which of the others, and of the thin ones, keep their weights?
THIN: dict[str, tuple[int, list[int], list[int], list[int], Deletions]] = {
    "without the rule they are deleted": (0, [], [3, 4, 5], [], Deletions(whole=[3, 4, 5])),
    "without the rule thin ones are, too": (0, [1, 2], [], [], Deletions(whole=[3, 4, 5], weights=[1, 2])),
    "the newest keep theirs": (2, [], [3, 4, 5], [], Deletions(thin=[4, 5], whole=[3])),
    "thin ones count": (4, [1, 2], [3, 4, 5], [], Deletions(thin=[3, 4, 5], weights=[1])),
    "a thin one may be newer": (1, [9], [3, 4, 5], [], Deletions(whole=[3, 4, 5])),
    "what cannot be thin is deleted": (2, [1], [4], [], Deletions(thin=[4], whole=[3, 5])),
    "what is spared stays whole": (2, [], [3, 4, 5], [5], Deletions(thin=[3, 4])),
}


@pytest.mark.parametrize("name", THIN)
def test_what_keeps_its_weights(name: str) -> None:
    number, thin, can_be_thin, spared, expected = THIN[name]
    going = what_goes(
        [(step, {}) for step in (3, 4, 5, 6, 7)],
        thin=thin,
        can_be_thin=can_be_thin,
        spared=spared,
        policy=SavePolicy(keep_last=2, keep_weights_only=number),
        objective=None,
    )
    assert going == expected


def test_a_run_keeps_the_last_two_on_disk(tmp_path: Path) -> None:
    tiny.train(tmp_path, assignment=tiny.every(3))
    assert [step for step, _ in layout.step_folders(tmp_path)] == [15, 12]


def test_a_run_keeps_the_best_on_disk(tmp_path: Path) -> None:
    values = {2: 0.5, 4: 0.1, 6: 0.3, 8: 0.2}
    assignment = Assignment(save=SavePolicy(every_steps=4), objective=LOW)
    ran = tiny.train(
        tmp_path,
        assignment=assignment,
        at={step: lambda session, v=value: session.report(val=v) for step, value in values.items()},  # type: ignore[misc]
    )
    assert [step for step, _ in layout.step_folders(tmp_path)] == [15, 12, 4]
    assert ran.complete is not None
    assert (ran.complete.best_step, ran.complete.best_metric) == (4, 0.1)
