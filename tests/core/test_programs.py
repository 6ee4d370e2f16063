"""What counts as the program that has run: the parts of the spec that shape its pods, and nothing else."""

import json
from typing import Any

import pytest

from piton.api.spec import Stage
from piton.api.status import AttemptState, RunStatus
from piton.core import answers, programs
from piton.observed import ReplicaState
from support.builders import NOW, a_record, a_replica, a_spec, a_status, an_attempt, an_ended, failed

SPEC = a_spec()
HERE = programs.identify(SPEC, Stage.TRAIN, RunStatus())
TRAINER = {"image": "trainer:1", "recipe": "charlm"}


def identity(**parts: Any) -> tuple[bool, bool]:
    """True if the image, and the program, are still the same with these parts of the spec."""
    other = programs.identify(a_spec(**parts), Stage.TRAIN, RunStatus())
    return other.partition("-")[0] == HERE.partition("-")[0], other == HERE


@pytest.mark.parametrize(
    ("parts", "same_image", "same_program"),
    [
        ({"suspend": True}, True, True),
        ({"limits": {"failures": 9, "startTimeout": "1h"}}, True, True),
        ({"trainer": {**TRAINER, "config": {"steps": 9}}}, True, True),
        ({"workers": {"nodes": 2, "zones": ["a"]}}, True, True),
        ({"trainer": {**TRAINER, "env": [{"name": "A", "value": "b"}]}}, True, False),
        ({"trainer": {"image": "trainer:1", "command": ["python", "t.py"]}}, True, False),
        ({"workers": {"template": {"resources": {"limits": {"memory": "1Gi"}}}}}, True, False),
        ({"trainer": {**TRAINER, "image": "trainer:2"}}, False, False),
        ({"workers": {"template": {"serviceAccountName": "other"}}}, False, False),
    ],
)
def test_only_what_shapes_a_pod_is_part_of_it(parts: dict[str, Any], same_image: bool, same_program: bool) -> None:
    assert identity(**parts) == (same_image, same_program)


def test_a_program_that_has_run_under_an_older_operator_keeps_its_identity() -> None:
    """Older operators identified the text of the spec."""
    resources = {"limits": {"memory": "1024Mi", "cpu": "1000m"}}
    spec, older = a_spec(workers={"template": {"resources": resources}}), "8ce30b90cb56-e5a540b4e311"
    ran = a_status(a_record(program=older))
    ran = programs.remember(ran, an_attempt(a_replica()))
    assert programs.identify(spec, Stage.TRAIN, ran) == older
    assert programs.identify(spec, Stage.TRAIN, RunStatus()) != older


RICH: dict[str, Any] = {
    "trainer": {**TRAINER, "env": [{"name": "A", "value": "b"}]},
    "workers": {"template": {"tolerations": [{"key": "a", "operator": "Exists"}]}},
    "checkpoint": {"volume": {"size": "1Gi"}, "mirror": {"uri": "s3://bucket/runs"}, "every": {"steps": 5}},
    "objective": {"metric": "val_loss", "patience": 2},
}


def test_what_the_statuses_of_runs_hold_stays_valid() -> None:
    """If a new field of the spec fails this, add the field to `programs.YOUNGER_FIELDS`."""
    spec = a_spec(**RICH)
    assert programs.identify(spec, Stage.TRAIN, RunStatus()) == "8ce30b90cb56-cff4400489c9"
    assert answers.digests(spec, Stage.TRAIN) == {
        "trainer": "df20618e",
        "workers": "c7ce0344",
        "capacity": "75d12019",
        "checkpoint": "ca63cf88",
        "objective": "8fec1915",
        "limits.trainingTime": "74234e98",
        "limits.hangTimeout": "634635a2",
    }


@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        ("workers.template.placement", {"placement": {"group": "a", "policy": "Pack"}}),
        ("workers.template.tolerations.effect", {"tolerations": [{"key": "a", "effect": "NoSchedule"}]}),
        ("workers.template.resources.limits", {"resources": {"limits": {"cpu": "4"}}}),
        ("workers.template.node_selector", {"nodeSelector": {"a": "b"}}),
    ],
)
def test_a_field_that_is_younger_than_a_status_changes_nothing_until_it_is_chosen(
    path: str, chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, other = a_spec(**RICH), a_spec(workers={"template": chosen})
    today = programs.identify(other, Stage.TRAIN, RunStatus()), answers.digests(other, Stage.TRAIN)
    monkeypatch.setattr(programs, "YOUNGER_FIELDS", frozenset({path}))
    assert (programs.identify(other, Stage.TRAIN, RunStatus()), answers.digests(other, Stage.TRAIN)) == today
    last = path.rpartition(".")[2]
    assert last not in json.dumps(programs.document(spec, {path})["workers"])
    assert last in json.dumps(programs.document(spec, ())["workers"])


def test_an_image_that_has_run_at_another_stage_is_known_and_its_program_is_not() -> None:
    spec = a_spec(stages={"prepare": {"command": ["fetch"]}})
    prepare, train = (programs.identify(spec, stage, RunStatus()) for stage in (Stage.PREPARE, Stage.TRAIN))
    ran = a_status(a_record(stage=Stage.PREPARE, program=prepare))
    ran = programs.remember(ran, an_attempt(a_replica()))
    records = (an_ended(1, stage=Stage.PREPARE, program=prepare), a_record(2, program=train))
    status = a_status(*records).model_copy(update={"stages": (*ran.stages, a_status(*records).stage(Stage.TRAIN))})

    assert (programs.image_has_run(status), programs.program_has_run(status)) == (True, False)


@pytest.mark.parametrize("replica", [a_replica(ReplicaState.WAITING), failed(128, cannot_start=True)])
def test_what_has_not_begun_proves_nothing(replica: Any) -> None:
    status = a_status(a_record(program=HERE))
    assert programs.remember(status, an_attempt(replica)) == status
    assert not programs.program_has_run(status)


def test_what_ran_under_an_operator_that_did_not_note_it_counts() -> None:
    status = a_status(an_ended(1, running_time=NOW), a_record(2, state=AttemptState.STARTING, program=HERE))
    assert (programs.image_has_run(status), programs.program_has_run(status)) == (True, True)


def at(image: str, status: RunStatus | None = None, *, runs: bool = True) -> RunStatus:
    """The status of a run whose current attempt has this image, and runs."""
    program = programs.identify(a_spec(trainer={**TRAINER, "image": image}), Stage.TRAIN, RunStatus())
    found = a_status(a_record(program=program))
    found = found if status is None else found.model_copy(update={"stages": status.stages})
    return programs.remember(found, an_attempt(a_replica() if runs else a_replica(ReplicaState.WAITING)))


def test_an_image_that_comes_back_after_others_has_run() -> None:
    status = at("trainer:3", at("trainer:2", at("trainer:1")))
    for image in ("trainer:1", "trainer:2", "trainer:3"):
        back = RunStatus.read(at(image, status, runs=False).to_wire())
        assert (programs.image_has_run(back), programs.program_has_run(back)) == (True, True)
    other = at("trainer:4", status, runs=False)
    assert (programs.image_has_run(other), programs.program_has_run(other)) == (False, False)


def test_what_is_used_again_is_remembered_for_longest_and_the_memory_is_bounded() -> None:
    status = at("first", at("trainer:0"))
    for number in range(100):
        status = at("first", at(f"trainer:{number}", status))
    assert programs.program_has_run(at("first", status, runs=False))
    assert programs.program_has_run(at("trainer:90", status, runs=False))
    assert not programs.program_has_run(at("trainer:1", status, runs=False))
    assert len(str(status.stages[0].had_run).split()) == 15


def test_a_status_of_before_has_one_program_and_the_next_joins_it() -> None:
    old = a_status(a_record(program=HERE))
    noted = old.stages[0].model_copy(update={"has_run": HERE})
    old = old.model_copy(update={"stages": (noted,)})
    status = at("trainer:1", at("trainer:2", old), runs=False)
    assert status.stages[0].had_run == HERE
    assert programs.program_has_run(status)
