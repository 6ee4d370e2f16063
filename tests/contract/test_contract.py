import contextlib
import json
import math
from datetime import UTC, datetime

import pytest

from piton.contract import names
from piton.contract.assignment import Assignment, Encryption, MirrorPolicy, Objective, SavePolicy
from piton.contract.duration import format_duration, parse_duration
from piton.contract.manifest import Complete, FileEntry, Manifest, sealed
from piton.contract.progress import Progress, StopAt, TrainerRequests
from piton.contract.termination import (
    TERMINATION_MESSAGE_BYTES_MAX,
    Limit,
    Outcome,
    PreviousEnd,
    Termination,
    outcome_of,
)

ENTRY = FileEntry(size=5, digest="blake3:00")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86_400), ("1h30m", 5_400), ("2d", 172_800)]
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "5 hours", "-3m", "1.5h", "30m1h"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 90s"):
        parse_duration(text)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59.6, "1m"), (5_400, "1h30m"), (90_061, "1d1h")])
def test_durations_are_shown_with_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_step_folder_sorts_like_its_step() -> None:
    assert names.step_folder(1200) == "step-000001200"
    assert names.parse_step_folder("step-000001200") == 1200
    assert [names.parse_step_folder(name) for name in ("step-", "step-x", ".saving-step-1", "1200")] == [None] * 4


def test_the_longest_run_name_fits_into_a_pods_name() -> None:
    longest = names.attempt_name("x" * names.MAX_RUN_NAME, 99_999)

    assert len(f"{longest}-worker-512") <= 63


def test_last_words_survive_the_trip() -> None:
    words = Termination(
        outcome=Outcome.STOPPED, step=7, checkpoint_step=7, best_metric=0.5, fence=3, detail="told to stop"
    )

    assert Termination.from_json(words.to_json()) == words


def test_what_was_measured_is_bounded_and_finite() -> None:
    metrics = {
        "nan": math.nan,
        "x" * 65: 1.0,
        "\U0001f600" * 9: 1.0,
        **{f"{number:02d}" + "m" * 62: number / 3 for number in range(40)},
    }
    text = Termination(outcome=Outcome.FINISHED, metrics=metrics, detail="d" * 5000).to_json()
    found = Termination.from_json(text)

    assert len(text) <= TERMINATION_MESSAGE_BYTES_MAX
    assert found is not None
    assert list(found.metrics.items()) == [(f"{number:02d}" + "m" * 62, number / 3) for number in range(32)]
    assert Termination.from_json('{"outcome": "finished", "metrics": {"a": "b", "c": 1e999, "d": true, "e": 2}}') == (
        Termination(outcome=Outcome.FINISHED, metrics={"e": 2.0})
    )
    odd = Termination.from_json('{"outcome": "finished", "metrics": [1]}')
    assert odd == Termination(outcome=Outcome.FINISHED), "what is no metric costs only the metrics"


def test_long_last_words_are_cut_to_what_the_kubelet_keeps() -> None:
    words = Termination(outcome=Outcome.FAILED, step=7, detail='ü"' * 5_000)

    text = words.to_json()

    assert len(text.encode()) <= TERMINATION_MESSAGE_BYTES_MAX
    read = Termination.from_json(text)
    assert read is not None
    assert len(read.detail) > 300


@pytest.mark.parametrize("text", [None, "", "Killed", "[]", '{"outcome": "great"}', '{"step": 3}', "3"])
def test_other_peoples_last_words_are_no_termination_message(text: str | None) -> None:
    assert Termination.from_json(text) is None


def test_the_last_words_of_a_newer_trainer_are_understood_as_far_as_they_are_known() -> None:
    newer = {**json.loads(Termination(outcome=Outcome.STOPPED, step=7, detail="saved").to_json()), "colour": ["red"]}

    assert Termination.from_json(json.dumps(newer)) == Termination(outcome=Outcome.STOPPED, step=7, detail="saved")
    words = Termination.from_json(json.dumps(newer | {"outcome": "paused"}))
    assert words is not None
    assert (words.outcome, words.outcome.is_known, words.step) == ("paused", False, 7)
    assert Termination.from_json(words.to_json()) == words


def test_exit_codes_that_are_kept_for_later_are_no_crashes() -> None:
    known = {code: outcome_of(code) for code in range(256)}

    assert known[79] is Outcome.DIVERGED
    assert [code for code, outcome in known.items() if outcome and not outcome.is_known] == [*range(86, 96)]
    assert outcome_of(None) is known[1] is known[137] is None


def test_an_assignment_survives_the_trip() -> None:
    assignment = Assignment(
        recipe="charlm",
        config={"depth": 4},
        save=SavePolicy(every_steps=10),
        objective=Objective(metric="val_loss", target=0.2),
        mirror=MirrorPolicy(
            uri="s3://bucket/prefix",
            megabytes_per_second=200,
            encryption=Encryption(type="SSE-KMS", key_id="alias/checkpoints"),
        ),
        training_seconds=60.0,
    )

    assert Assignment.from_json(assignment.to_json()) == assignment


def test_an_assignment_of_an_operator_that_knew_no_mirror_is_read() -> None:
    older = json.loads(Assignment().to_json())
    del older["mirror"]

    assert Assignment.from_json(json.dumps(older)) == Assignment()


def test_an_assignment_of_an_operator_that_knew_no_encryption_is_read() -> None:
    assignment = Assignment(mirror=MirrorPolicy(uri="s3://bucket/prefix"))
    older = json.loads(assignment.to_json())
    del older["mirror"]["encryption"]

    assert Assignment.from_json(json.dumps(older)) == assignment


def test_an_encryption_that_a_newer_operator_asks_for_is_not_passed_over() -> None:
    """Who reads it decides: the trainer refuses a type that it does not know."""
    assignment = Assignment(mirror=MirrorPolicy(uri="s3://bucket/prefix", encryption=Encryption(type="DSSE-KMS")))
    newer = json.loads(assignment.to_json())
    newer["mirror"]["encryption"]["context"] = {"team": "a"}

    assert Assignment.from_json(json.dumps(newer)) == assignment


def test_what_a_newer_operator_adds_to_an_assignment_is_passed_over() -> None:
    assignment = Assignment(
        save=SavePolicy(every_steps=10),
        objective=Objective(metric="val_loss"),
        mirror=MirrorPolicy(uri="s3://bucket/prefix"),
    )
    newer = json.loads(assignment.to_json()) | {"colour": 1}
    for part in ("save", "objective", "mirror"):
        newer[part]["colour"] = {"red": 1}

    assert Assignment.from_json(json.dumps(newer)) == assignment


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"save": {"keep_last": 2}}', '{"save": 3, "objective": null}'])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not an assignment|Expecting"):
        Assignment.from_json(text)


@pytest.mark.parametrize(
    ("goal", "value", "than", "better"),
    [
        ("Minimize", 1.0, None, True),
        ("Minimize", 1.0, 2.0, True),
        ("Minimize", 2.0, 2.0, False),
        ("Maximize", 3.0, 2.0, True),
        ("Maximize", float("nan"), None, False),
    ],
)
def test_an_objective_knows_what_is_better(goal: str, value: float, than: float | None, better: bool) -> None:
    objective = Objective(metric="m", goal="Minimize" if goal == "Minimize" else "Maximize")

    assert objective.better(value, than) is better


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_manifest_says_when_the_weights_are_all_that_is_left(weights_only: bool) -> None:
    files = {"a": ENTRY}
    text = Manifest(step=3, attempt=2, world_size=1, files=files, weights_only=weights_only).to_json()

    assert ("weightsOnly" in text) is weights_only
    assert Manifest.from_json(text).weights_only is weights_only


@pytest.mark.parametrize("name", ["step-000000012", "weights-000000012"])
def test_a_folder_is_a_whole_checkpoint_or_a_thin_one(name: str) -> None:
    steps = (names.parse_step_folder(name), names.parse_weights_folder(name))

    assert steps == ((12, None) if name == names.step_folder(12) else (None, 12))
    assert name in (names.step_folder(12), names.weights_folder(12))


def test_a_manifest_survives_the_trip() -> None:
    manifest = Manifest(
        step=3,
        attempt=2,
        world_size=1,
        files={"a": ENTRY},
        metrics={"val_loss": 0.5},
        created="now",
    )

    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.size == 5


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"step": -1},
        {"step": "3"},
        {"files": {}},
        {"files": {"../x": {"size": 1, "digest": "blake3:0"}}},
        {"files": {"a": {"size": True, "digest": "blake3:0"}}},
        {"files": {"a": {"size": 1, "digest": "md5:0"}}},
        {"files": {"a": {"size": 1}}},
        {"metrics": None},
    ],
)
def test_a_bad_manifest_is_refused(change: dict[str, object]) -> None:
    good = json.loads(Manifest(step=3, attempt=2, world_size=1, files={"a": ENTRY}).to_json())

    good.pop("sha256")
    assert Manifest.from_json(sealed(good)).step == 3
    with pytest.raises(ValueError, match="manifest"):
        Manifest.from_json(sealed(good | change))


def test_of_one_of_several_trainings_nothing_is_the_run_s_but_what_it_says_of_itself() -> None:
    fold = Progress(
        updated="2026-11-21T10:30:45+00:00",
        percentage=100,
        remaining_seconds=0,
        step=450,
        total_steps=450,
        checkpoint_step=450,
        resumed_from=200,
        previous=PreviousEnd(attempt=2, outcome=Outcome.STOPPED),
        complete=Complete(attempt=3, step=450, reason="done"),
        session="fold-0 step 450/450",
        metrics={"loss": 0.2347},
    )
    arrived = Progress.from_wire(json.loads(json.dumps(fold.to_wire())))
    assert arrived == Progress(
        updated=fold.updated, previous=fold.previous, session="fold-0 step 450/450", metrics={"loss": 0.2347}
    )


def test_what_a_newer_trainer_adds_to_the_same_format_is_passed_over() -> None:
    manifest = Manifest(step=3, attempt=2, world_size=1, files={"a": ENTRY})
    newer = json.loads(manifest.to_json()) | {"colour": 1}
    newer.pop("sha256")
    newer["files"]["a"]["colour"] = "red"
    complete = Complete(attempt=3, step=100, weights_digest="sha256:1")

    assert Manifest.from_json(sealed(newer)) == manifest
    assert Complete.from_json(json.dumps(json.loads(complete.to_json()) | {"colour": 1})) == complete


def test_a_manifest_of_the_version_before_is_read() -> None:
    fields = json.loads(Manifest(step=3, attempt=2, world_size=1, files={"a": ENTRY}).to_json())
    fields.pop("sha256")
    before = fields | {"format": 2, "files": {"a": {"size": 5, "sha256": "00"}}}

    assert Manifest.from_json(sealed(before)).files == {"a": FileEntry(size=5, digest="sha256:00")}


def test_every_changed_byte_of_a_manifest_is_found() -> None:
    manifest = Manifest(step=3, attempt=2, world_size=1, files={"a": ENTRY}, metrics={"loss": 0.25})
    text = manifest.to_json()

    for place, letter in enumerate(text):
        for bit in range(7):
            changed = text[:place] + chr(ord(letter) ^ 1 << bit) + text[place + 1 :]
            with pytest.raises(ValueError, match="manifest"):
                Manifest.from_json(changed)


def test_a_torn_manifest_is_refused() -> None:
    text = Manifest(step=3, attempt=2, world_size=1, files={"a": ENTRY}).to_json()

    for length in range(len(text) - 1):
        with pytest.raises(ValueError, match="manifest"):
            Manifest.from_json(text[:length])


def test_a_final_manifest_survives_the_trip() -> None:
    complete = Complete(attempt=3, step=100, weights_digest="sha256:1", best_step=90, best_metric=0.2, reason="done")

    assert Complete.from_json(complete.to_json()) == complete
    without_digest = Complete(attempt=3, step=100)
    assert Complete.from_json(without_digest.to_json()) == without_digest
    with pytest.raises(ValueError, match="torn"):
        Complete.from_json(complete.to_json()[:-2])


@pytest.mark.parametrize(
    "value", [pytest.param("9" * 400, id="huge"), "-1e999", "NaN", "null", '"x"', "[1]", '{"a": 1}', "1.5", "true"]
)
@pytest.mark.parametrize("field", ["attempt", "step", "bestStep", "bestMetric", "weightsDigest", "reason", "format"])
def test_any_value_of_a_final_manifest_is_read_or_refused(field: str, value: str) -> None:
    fields = json.loads(Complete(attempt=3, step=100).to_json())
    text = json.dumps(fields | {field: "HERE"}).replace('"HERE"', value)

    with contextlib.suppress(ValueError):
        Complete.from_json(text)


def test_progress_survives_the_trip() -> None:
    progress = Progress(
        updated="2026-11-21T10:30:45+00:00",
        percentage=45,
        remaining_seconds=7956,
        step=450,
        total_steps=1000,
        checkpoint_step=440,
        resumed_from=200,
        previous=PreviousEnd(attempt=2, outcome=Outcome.STOPPED),
        resume_warning="mine/value is a Mode",
        metrics={"loss": 0.2347},
    )

    assert Progress.from_wire(json.loads(json.dumps(progress.to_wire()))) == progress


def test_what_a_newer_trainer_adds_to_a_report_is_passed_over() -> None:
    progress = Progress(updated="2026-11-21T10:30:45+00:00", step=450, metrics={"loss": 0.25})
    body = progress.to_wire()
    body["colour"] = 1
    body["trainerStatus"]["colour"] = {"red": 1}
    for metric in body["trainerStatus"]["metrics"]:
        metric["unit"] = "nats"

    assert Progress.from_wire(body) == progress


def test_an_unmodified_transformers_trainer_is_understood() -> None:
    """The example of KEP-2779; the callback sends current_step where we send step."""
    body = {
        "trainerStatus": {
            "lastUpdatedTime": "2026-11-21T10:30:45+00:00",
            "progressPercentage": 45,
            "estimatedRemainingSeconds": 7956,
            "metrics": [
                {"name": "loss", "value": "0.2347"},
                {"name": "current_step", "value": "450"},
                {"name": "total_steps", "value": "1000"},
                {"name": "text", "value": "not a number"},
                {"name": "worse", "value": "nan"},
            ],
        }
    }

    progress = Progress.from_wire(body)

    assert (progress.step, progress.total_steps, progress.metrics) == (450, 1000, {"loss": 0.2347})


@pytest.mark.parametrize("body", [None, [], {}, {"trainerStatus": {}}, {"trainerStatus": {"lastUpdatedTime": 3}}])
def test_what_is_no_report_is_refused(body: object) -> None:
    with pytest.raises(ValueError, match="KEP-2779"):
        Progress.from_wire(body)


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 100_000, json.dumps({"trainerStatus": {}})])
def test_what_is_no_report_at_all_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"KEP-2779|Expecting|decode"):
        Progress.from_json(text)


def test_a_report_cannot_grow_beyond_what_a_status_can_hold() -> None:
    many = [{"name": f"metric {number}", "value": 1} for number in range(1000)]
    odd = [
        {"name": "x" * 1000, "value": 1},
        {"name": "huge", "value": 10**400},
        {"name": "step", "value": "1e300"},
        {"name": "checkpoint_step", "value": "7"},
    ]
    body = {"trainerStatus": {"lastUpdatedTime": "now", "metrics": [*many, *odd]}}

    progress = Progress.from_wire(body)

    assert len(progress.metrics) == 64
    assert (progress.step, progress.checkpoint_step) == (None, 7)
    with pytest.raises(ValueError, match="KEP-2779"):
        Progress.from_wire({"trainerStatus": {"lastUpdatedTime": "x" * 1000}})


def test_an_answer_asks_only_for_what_it_says() -> None:
    assert TrainerRequests.from_json(TrainerRequests(stop=True).to_json()) == TrainerRequests(stop=True)
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    for stop_at in (
        StopAt(),
        StopAt(time=noon, limit=Limit.BUDGET),
        StopAt(time=noon, limit=Limit.DEADLINE, seconds=-2.5),
    ):
        assert TrainerRequests.from_json(TrainerRequests(stop_at=stop_at).to_json()) == TrainerRequests(stop_at=stop_at)
    assert TrainerRequests.from_json('{"stopAt": {"time": "soon"}}') == TrainerRequests(), (
        "what is not understood moves nothing"
    )
    assert [TrainerRequests.from_json(text) for text in ("", "ok", "[]", '{"stop": 1}')] == [TrainerRequests()] * 4
