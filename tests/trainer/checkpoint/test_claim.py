"""Whose bucket it is, case by case."""

import pytest

from piton_trainer.mirror.keys import BucketPrefix, Latest, Pointer, folder_of, parse_folder
from piton_trainer.mirror.ownership import NotOurs, claim

PLACE = BucketPrefix.parse("s3://bucket/prefix", "run")
FOUND = Latest(attempt=3, owner="other", lineage="ours", newest=Pointer(step=8, folder="f"))


def test_an_empty_bucket_is_whose_comes_first() -> None:
    taken = claim(None, attempt=2, owner="me", lineage=None, is_empty=False, place=PLACE)

    assert (taken.attempt, taken.owner, taken.newest) == (2, "me", None)
    assert len(taken.lineage) == 32
    assert claim(None, attempt=2, owner="me", lineage="mine", is_empty=True, place=PLACE).lineage == "mine"


@pytest.mark.parametrize(
    ("attempt", "lineage", "is_empty"),
    [
        pytest.param(4, "ours", False, id="the next attempt"),
        pytest.param(3, "ours", False, id="the same attempt started again"),
        pytest.param(4, None, True, id="the next attempt on an empty volume"),
        pytest.param(None, None, True, id="without Piton on an empty volume"),
        pytest.param(None, "ours", False, id="without Piton"),
    ],
)
def test_a_bucket_of_this_run_is_taken_with_what_is_in_it(
    attempt: int | None, lineage: str | None, is_empty: bool
) -> None:
    taken = claim(FOUND, attempt=attempt, owner="me", lineage=lineage, is_empty=is_empty, place=PLACE)

    assert (taken.attempt, taken.owner) == (attempt or 4, "me")
    assert (taken.lineage, taken.newest) == (FOUND.lineage, FOUND.newest)


@pytest.mark.parametrize(
    ("attempt", "lineage", "is_empty", "words"),
    [
        pytest.param(2, "ours", False, "attempt 3 has claimed", id="a lower attempt"),
        pytest.param(4, "another", False, "another run", id="another lineage"),
        pytest.param(4, None, False, "another run", id="checkpoints that were never mirrored there"),
        pytest.param(1, None, True, "another run", id="a new run of the same name"),
        pytest.param(3, None, True, "another run", id="a new run that came as far"),
    ],
)
def test_a_bucket_of_somebody_else_is_left_alone(attempt: int, lineage: str | None, is_empty: bool, words: str) -> None:
    with pytest.raises(NotOurs, match=words):
        claim(FOUND, attempt=attempt, owner="me", lineage=lineage, is_empty=is_empty, place=PLACE)


def test_who_holds_the_bucket_goes_on_holding_it() -> None:
    assert claim(FOUND, attempt=3, owner="other", lineage=None, is_empty=False, place=PLACE) == FOUND


def test_the_record_survives_the_trip() -> None:
    assert Latest.from_json(FOUND.to_json()) == FOUND
    for text in ("", "[]", "{}", FOUND.to_json().replace('"format": 1', '"format": 2')):
        with pytest.raises(ValueError, match="is not one of ours"):
            Latest.from_json(text)


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
