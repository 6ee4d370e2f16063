"""A mirror that is off, or a volume that is nearly full, is a condition, and not only in the log of a pod that goes."""

from dataclasses import replace

import pytest

from piton.api.conditions import EXAMPLES_SKIPPED, MIRRORED, RESUME_INEXACT, VOLUME_NEARLY_FULL
from piton.api.reasons import Reason
from piton.api.status import RunStatus
from piton.api.status_base import ConditionStatus, Phase
from piton.contract.progress import CHECKPOINTS_THAT_FIT, MIRROR_LAG_STEPS, MIRROR_STEP, Progress
from piton.contract.progress import EXAMPLES_SKIPPED as EXAMPLES_SKIPPED_METRIC
from piton.contract.termination import Outcome
from piton.core.decide import decide
from piton.core.effects import Decision
from support.builders import (
    NOW,
    a_failed_attempt,
    a_progress,
    a_record,
    a_replica,
    a_status,
    an_attempt,
    an_observed,
    failed,
    later,
    said,
)

WITH_A_MIRROR = {"checkpoint": {"volume": {"size": "1Gi"}, "mirror": {"uri": "s3://bucket/prefix"}}}
LOSS = {"metric": "eval_loss", "goal": "Minimize"}
TAKEN = "s3://bucket/prefix/team/ragcun holds the checkpoints of another run"


def reported(progress: Progress, status: RunStatus | None = None, *, mirror: bool = True) -> Decision:
    known = status or a_status(a_record(running_time=NOW, formed_time=NOW))
    parts = WITH_A_MIRROR if mirror else {}
    return decide(an_observed(an_attempt(a_replica()), status=known, progress=progress, spec_parts=parts), now=later(1))


def test_a_bucket_of_another_run_is_said_once_and_the_training_goes_on() -> None:
    first = reported(replace(a_progress(10), mirror_refusal=TAKEN))
    condition = first.status.condition(MIRRORED)
    assert condition is not None
    assert (condition.status, condition.reason, condition.message) == (
        ConditionStatus.FALSE,
        Reason.MIRROR_OFF,
        TAKEN,
    )
    assert [(news.severity, news.reason) for news in first.announcements] == [("Warning", Reason.MIRROR_OFF)]
    assert first.status.phase is Phase.TRAINING

    again = reported(replace(a_progress(11), mirror_refusal=TAKEN), first.status)
    assert again.announcements == ()


def test_the_condition_ends_with_an_attempt_that_mirrors() -> None:
    off = reported(replace(a_progress(10), mirror_refusal=TAKEN)).status
    saved_nothing_yet = reported(a_progress(11), off).status
    assert not saved_nothing_yet.is_true(MIRRORED)

    mirrors = reported(replace(a_progress(12), metrics={MIRROR_LAG_STEPS: 0.0}), saved_nothing_yet).status

    assert mirrors.is_true(MIRRORED)


def test_that_it_mirrors_again_is_said_once() -> None:
    off = reported(replace(a_progress(10), mirror_refusal=TAKEN)).status
    metrics = {MIRROR_LAG_STEPS: 4.0, MIRROR_STEP: 8.0}

    again = reported(replace(a_progress(12), metrics=metrics), off)

    assert again.status.is_true(MIRRORED)
    told = [(news.severity, news.reason, news.message) for news in again.announcements]
    assert told == [("Normal", Reason.MIRRORED, "checkpoints are mirrored again: s3://bucket/prefix has step 8")]
    assert reported(replace(a_progress(13), metrics=metrics), again.status).announcements == ()


def test_an_attempt_that_has_not_mirrored_yet_proves_nothing() -> None:
    """It lags, as every attempt does before its first upload, and nobody knows whether the bucket takes it."""
    off = reported(replace(a_progress(10), mirror_refusal=TAKEN)).status

    unproven = reported(replace(a_progress(12), metrics={MIRROR_LAG_STEPS: 4.0}), off)

    assert not unproven.status.is_true(MIRRORED)
    assert unproven.announcements == ()


def test_an_attempt_that_only_its_last_report_says_has_not_mirrored() -> None:
    """Of a training that takes seconds, no report comes while it runs."""
    known = a_status(a_record(running_time=NOW, formed_time=NOW))
    observed = an_observed(
        a_failed_attempt(failed(84, termination=said(Outcome.NOT_MIRRORED))),
        status=known,
        progress=replace(a_progress(10), mirror_refusal=TAKEN),
        spec_parts=WITH_A_MIRROR,
    )

    status, told = observed.status, []
    for _ in range(5):
        decision = decide(replace(observed, status=status), now=later(1))
        told += [news.reason for news in decision.announcements]
        status = decision.status

    condition = status.condition(MIRRORED)
    assert condition is not None
    assert condition.message == TAKEN
    assert told.count(Reason.MIRROR_OFF) == 1


def test_a_run_without_a_mirror_has_no_such_condition() -> None:
    assert reported(a_progress(10), mirror=False).status.condition(MIRRORED) is None


def test_the_words_of_a_refusal_come_over_the_wire_and_are_bounded() -> None:
    report = replace(a_progress(10), mirror_refusal=TAKEN)
    assert Progress.from_wire(report.to_wire()) == report
    long = Progress.from_wire(replace(report, mirror_refusal="x" * 100_000).to_wire())
    assert long.mirror_refusal is not None
    assert len(long.mirror_refusal) < 1000


@pytest.mark.parametrize(("fit", "room"), [(0.0, "no other"), (1.0, "only 1 more")])
def test_a_volume_that_is_nearly_full_is_said_once_before_a_save_fails_and_ends_when_there_is_room(
    fit: float, room: str
) -> None:
    tight = replace(a_progress(10, checkpoint=10), metrics={CHECKPOINTS_THAT_FIT: fit})
    first = reported(tight)
    condition = first.status.condition(VOLUME_NEARLY_FULL)
    assert condition is not None
    assert condition.status is ConditionStatus.TRUE
    assert f"room for {room}" in condition.message
    assert [(news.severity, news.reason) for news in first.announcements] == [("Warning", Reason.VOLUME_NEARLY_FULL)]
    assert first.status.phase is Phase.TRAINING
    assert reported(tight, first.status).announcements == ()

    restarted = reported(a_progress(3), first.status).status
    assert restarted.is_true(VOLUME_NEARLY_FULL), "nothing was saved since"

    assert not reported(a_progress(20, checkpoint=20), restarted).status.is_true(VOLUME_NEARLY_FULL)
    assert reported(a_progress(20, checkpoint=20)).status.condition(VOLUME_NEARLY_FULL) is None


@pytest.mark.parametrize(
    ("keep", "objective", "is_advised"),
    [
        ({}, LOSS, True),
        ({}, None, False),
        ({"best": 5}, None, False),
        ({"best": 0}, LOSS, False),
        ({"best": 0, "weightsOnly": 3}, None, True),
        ({"last": 9}, None, True),
    ],
)
def test_to_keep_fewer_checkpoints_is_advised_only_where_that_can_be_done(
    keep: dict[str, int], objective: dict[str, str] | None, is_advised: bool
) -> None:
    tight = replace(a_progress(10, checkpoint=10), metrics={CHECKPOINTS_THAT_FIT: 0.0})
    volume = {"size": "1Gi"}
    observed = an_observed(
        an_attempt(a_replica()),
        status=a_status(a_record()),
        progress=tight,
        spec_parts={"checkpoint": {"volume": volume, "keep": keep}, "objective": objective},
    )
    condition = decide(observed, now=NOW).status.condition(VOLUME_NEARLY_FULL)
    assert condition is not None
    assert ("keep fewer" in condition.message) is is_advised


def test_a_state_that_would_not_come_back_is_said_once_and_the_training_goes_on() -> None:
    lossy = replace(a_progress(10, checkpoint=10), resume_warning="mine/value is a Mode and would come back as a int")
    first = reported(lossy)
    condition = first.status.condition(RESUME_INEXACT)
    assert condition is not None
    assert (condition.status, condition.message) == (ConditionStatus.TRUE, lossy.resume_warning)
    assert [(news.severity, news.reason) for news in first.announcements] == [("Warning", Reason.RESUME_INEXACT)]
    assert first.status.phase is Phase.TRAINING
    assert reported(lossy, first.status).announcements == ()

    mended = reported(a_progress(20, checkpoint=20), first.status).status
    assert not mended.is_true(RESUME_INEXACT)
    assert reported(a_progress(20)).status.condition(RESUME_INEXACT) is None


def test_examples_that_are_left_out_are_said_once_and_until_the_data_is_mended() -> None:
    less = replace(a_progress(10, checkpoint=10), metrics={EXAMPLES_SKIPPED_METRIC: 12.0})
    first = reported(less)
    condition = first.status.condition(EXAMPLES_SKIPPED)
    assert condition is not None
    assert condition.status is ConditionStatus.TRUE
    assert condition.message.startswith(
        "12 damaged examples of the data are left out, as spec.trainer.config.maxSkipped"
    )
    assert [(news.severity, news.reason) for news in first.announcements] == [("Warning", Reason.EXAMPLES_SKIPPED)]
    assert first.status.phase is Phase.TRAINING
    assert reported(less, first.status).announcements == ()

    resumed = reported(replace(a_progress(10), resumed_from=10), first.status).status
    assert resumed.is_true(EXAMPLES_SKIPPED), "no step of the new attempt has said anything yet"

    for mended in (
        replace(a_progress(20), resumed_from=10),
        replace(a_progress(20), metrics={EXAMPLES_SKIPPED_METRIC: 0.0}),
    ):
        assert not reported(mended, resumed).status.is_true(EXAMPLES_SKIPPED)
        assert reported(mended).status.condition(EXAMPLES_SKIPPED) is None


def test_the_words_of_a_warning_come_over_the_wire_and_are_bounded() -> None:
    report = replace(a_progress(10), resume_warning="x" * 100_000)
    assert len(Progress.from_wire(report.to_wire()).resume_warning or "") < 1000
