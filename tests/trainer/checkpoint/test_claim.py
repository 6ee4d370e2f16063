"""Whose bucket it is, case by case."""

from dataclasses import replace
from typing import Any

import pytest

from piton_trainer.mirror.keys import BucketPrefix, Latest, Pointer, folder_of, parse_folder
from piton_trainer.mirror.ownership import Claimant, Lineage, NotOurs, claim

PLACE = BucketPrefix.parse("s3://bucket/prefix", "run")
NEWEST = Pointer(step=8, folder="f")
FOUND = Latest(attempt=3, owner="other", lineage="ours", run="uid", newest=NEWEST)
OLDER = replace(FOUND, run=None)
"""A record of a version that knew no uids."""


def by(attempt: int | None = 4, run: str | None = "uid", durable_step: int | None = None, **more: Any) -> Claimant:
    return Claimant(
        **{"owner": "me", "is_empty": True, "attempt": attempt, "run": run, "durable_step": durable_step, **more}
    )


def test_an_empty_bucket_is_whose_comes_first() -> None:
    taken = claim(None, by(2), None, PLACE)

    assert (taken.attempt, taken.owner, taken.lineage, taken.run, taken.newest) == (2, "me", "uid", "uid", None)
    assert len(claim(None, by(2, None), None, PLACE).lineage) == 32
    assert claim(None, by(2), Lineage(id="mine"), PLACE).lineage == "mine"


@pytest.mark.parametrize(
    ("found", "claimant", "volume"),
    [
        pytest.param(FOUND, by(4), Lineage(id="ours"), id="the next attempt"),
        pytest.param(FOUND, by(3), Lineage(id="ours"), id="the same attempt started again"),
        pytest.param(FOUND, by(4), None, id="the next attempt on an empty volume"),
        pytest.param(FOUND, by(4, is_empty=False), None, id="the next attempt on a volume whose file is lost"),
        pytest.param(FOUND, by(None, None), Lineage(id="ours"), id="without Piton"),
        pytest.param(OLDER, by(4), Lineage(id="ours"), id="after an upgrade"),
        pytest.param(OLDER, by(4, durable_step=8), None, id="after an upgrade, and the volume is lost"),
        pytest.param(FOUND, by(4, None, durable_step=9), None, id="of an older operator, and the volume is lost"),
    ],
)
def test_a_bucket_of_this_run_is_taken_with_what_is_in_it(
    found: Latest, claimant: Claimant, volume: Lineage | None
) -> None:
    taken = claim(found, claimant, volume, PLACE)

    assert (taken.attempt, taken.owner) == (claimant.attempt or 4, "me")
    assert (taken.lineage, taken.newest, taken.run) == (FOUND.lineage, NEWEST, "uid" if found.run else claimant.run)


@pytest.mark.parametrize(
    ("found", "claimant", "volume", "words"),
    [
        pytest.param(FOUND, by(2), Lineage(id="ours"), "attempt 3 has claimed", id="a lower attempt"),
        pytest.param(FOUND, by(4, "new"), Lineage(id="x"), "another run", id="another lineage"),
        pytest.param(FOUND, by(4, "new", is_empty=False), None, "another run", id="checkpoints never mirrored there"),
        pytest.param(FOUND, by(1, "new"), None, "another run", id="a new run of the same name"),
        pytest.param(FOUND, by(4, "new"), None, "another run", id="a new run that came further, and saved nothing"),
        pytest.param(
            FOUND, by(9, "new", durable_step=99), None, "another run", id="a new run that has lost its volume"
        ),
        pytest.param(OLDER, by(4), None, "another run", id="an older version's, and nothing was ever saved"),
        pytest.param(OLDER, by(4, durable_step=7), None, "another run", id="an older version's, beyond what was saved"),
        pytest.param(OLDER, by(3, durable_step=9), None, "another run", id="an older version's, not of an earlier one"),
        pytest.param(OLDER, by(4, durable_step=9, is_empty=False), None, "another run", id="a mirror that is new"),
        pytest.param(FOUND, by(None, None), None, "another run", id="without Piton on an empty volume"),
    ],
)
def test_a_bucket_of_somebody_else_is_left_alone_and_nobody_is_told_to_delete_it(
    found: Latest, claimant: Claimant, volume: Lineage | None, words: str
) -> None:
    with pytest.raises(NotOurs, match=words) as refusal:
        claim(found, claimant, volume, PLACE)

    assert "delete" not in str(refusal.value)


def test_a_run_that_goes_on_from_what_was_restored_by_hand_owns_the_bucket_from_then_on() -> None:
    """Also when its volume is lost again: its attempts count from where it began."""
    first = claim(FOUND, by(1, "new", is_empty=False), Lineage(id="ours", base=3), PLACE)
    second = claim(first, by(2, "new", owner="later"), None, PLACE)

    assert (first.attempt, first.run, first.lineage) == (4, "new", "ours")
    assert (second.attempt, second.run, second.owner) == (5, "new", "later")
    with pytest.raises(NotOurs, match="has claimed"):
        claim(second, by(4, owner="before"), Lineage(id="ours"), PLACE)


@pytest.mark.parametrize("lineage", [Lineage(id="ours"), Lineage(id="ours", base=3)])
def test_the_lineage_survives_the_trip(lineage: Lineage) -> None:
    assert Lineage.parse(lineage.text()) == lineage
    assert Lineage.parse("ours\nnonsense") == Lineage(id="ours")
    assert Lineage.parse(" \n") is None


def test_who_holds_the_bucket_goes_on_holding_it() -> None:
    assert claim(FOUND, by(3, None, owner="other"), None, PLACE) == FOUND


def test_the_record_survives_the_trip() -> None:
    for record in (FOUND, OLDER, replace(FOUND, base=7), replace(FOUND, newest=None)):
        assert Latest.from_json(record.to_json()) == record
    for text in ("", "[]", "{}"):
        with pytest.raises(ValueError, match="is not one of ours"):
            Latest.from_json(text)
    with pytest.raises(ValueError, match="has format 2, which a newer Piton writes"):
        Latest.from_json(FOUND.to_json().replace('"format": 1', '"format": 2'))


def test_a_place_is_a_bucket_and_a_prefix() -> None:
    assert PLACE.key("latest") == "prefix/run/latest"
    assert str(PLACE) == "s3://bucket/prefix/run"
    assert BucketPrefix.parse("s3://bucket", None, "run").key("a", "b") == "run/a/b"
    assert BucketPrefix.parse("s3://bucket//deep/er/").prefix == "deep/er/"
    for uri in ("s3://", "gs://bucket", "bucket/prefix", "s3://UPPER/x"):
        with pytest.raises(ValueError, match="is no place in a bucket"):
            BucketPrefix.parse(uri)


def test_folders_of_other_content_have_other_names() -> None:
    assert folder_of(12, "a") != folder_of(12, "b")
    assert parse_folder(folder_of(1200, "a")) == 1200
    assert parse_folder("step-000000012") is None
