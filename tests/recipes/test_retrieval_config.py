"""The settings of `retrieval` are judged in one sentence, and its manifests are what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from piton.api import validation
from piton.api.spec import Spec
from piton_trainer.recipes import catalog
from piton_trainer.recipes.retrieval.config import RetrievalConfig

SEEDS = Path(__file__).parents[2] / "manifests" / "seeds"
GOOD: dict[str, Any] = {"data": "s3://bucket/x.tsv", "datasets": ["s3://bucket/scifact"]}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"data": ""}, "trainer.config.data: has to be a text with at least one character, not ''"),
        ({"datasets": []}, "trainer.config.datasets: "),
        ({"datasets": ["a", "a"]}, "trainer.config.datasets: one of them stands there twice; remove it"),
        ({"isotropy": "lejepa"}, "isotropy: has to be one of 'sigreg', 'covariance' or 'none', not 'lejepa'"),
        ({"lambdaIsotropy": -1.0}, "trainer.config.lambdaIsotropy: has to be at least 0, not -1.0"),
        ({"epochs": 3.0, "steps": 5}, "trainer.config.epochs: steps says the same; remove one of them"),
        ({"batchSize": 10, "accumulation": 4}, "batchSize: 10 is not a multiple of accumulation = 4; take 8"),
        ({"freezeBase": True, "gradientCheckpointing": True}, "gradientCheckpointing: a frozen base model has no"),
        ({"parallelism": "fsdp"}, "trainer.config.parallelism: these encoders fit onto every GPU"),
        ({"data": "foldoc:", "datasets": ["foldoc:"], "dataSplit": "test"}, "dataSplit: test is evaluated as well"),
        ({"basemodel": "x"}, "trainer.config.basemodel: retrieval has no such setting; did you mean baseModel?"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_a_fix(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^trainer\.config\.") as caught:
        catalog.check("retrieval", GOOD | config)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_has_epochs_or_steps_or_a_time() -> None:
    RetrievalConfig(**GOOD, epochs=3).check_length(None)
    RetrievalConfig(**GOOD).check_length(60.0)
    with pytest.raises(ValueError, match=r"trainer\.config\.steps: missing"):
        RetrievalConfig(**GOOD).check_length(None)


def test_a_batch_that_the_ranks_cannot_share_is_refused() -> None:
    RetrievalConfig(**GOOD, batch_size=32, accumulation=2).check_world(4)
    with pytest.raises(ValueError, match="batchSize: 32 is not a multiple of 3 ranks x accumulation = 6; take 30"):
        RetrievalConfig(**GOOD, batch_size=32, accumulation=2).check_world(3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "/nowhere.tsv"}, r"trainer\.config\.data: there is no file /nowhere\.tsv"),
        ({"data": "/nowhere"}, r"trainer\.config\.data: /nowhere is no collection: there is no file /nowhere/corpus"),
        ({"datasets": ["/nowhere"]}, r"trainer\.config\.datasets: /nowhere is no collection"),
        ({"base_model": "package:no-model"}, r"trainer\.config\.baseModel: no-model is not installed here; say pip"),
    ],
)
def test_what_is_missing_is_noticed_before_it_is_read(changes: dict[str, Any], sentence: str) -> None:
    good = GOOD | {"base_model": "some/model"}
    RetrievalConfig(**good).check_data()
    with pytest.raises(ValueError, match=sentence):
        RetrievalConfig(**{**good, **changes}).check_data()


def manifest(name: str) -> tuple[Spec, RetrievalConfig]:
    document = yaml.safe_load((SEEDS / f"{name}.yaml").read_text())
    spec = Spec.model_validate_json(json.dumps(document["spec"]), strict=True)
    config = catalog.check("retrieval", document["spec"]["trainer"]["config"])
    assert isinstance(config, RetrievalConfig)
    return spec, config


@pytest.mark.parametrize("name", ["ragcun", "ragcun-small"])
def test_the_manifests_are_what_piton_understands_and_their_ranks_can_share_the_batch(name: str) -> None:
    spec, config = manifest(name)
    assert set(validation.check(spec)) <= set(validation.not_yet(spec))
    config.check_world(spec.workers.nodes * max(1, spec.workers.gpus_per_node))
    config.check_length(None)
    assert spec.objective is not None
    assert (spec.objective.metric, spec.objective.goal) == ("ndcg_10", "Maximize")


def test_the_full_manifest_has_the_seeds_settings() -> None:
    spec, config = manifest("ragcun")
    assert (config.epochs, config.batch_size, config.output_dim, config.accumulation) == (3, 64, 512, 1)
    assert (config.base_learning_rate, config.projection_learning_rate) == (1e-5, 5e-4)
    assert (config.lambda_isotropy, config.lambda_reg, config.warmup_steps) == (1.0, 0.1, 1000)
    assert (config.weight_decay, config.precision, config.compile) == (0.01, "bf16", True)
    assert config.base_model == "sentence-transformers/all-mpnet-base-v2"
    assert (spec.workers.instance_types, spec.workers.gpus_per_node) == (("p4d.24xlarge",), 1)
    assert spec.limits.deadline == "24h"


@pytest.mark.parametrize(
    "experiment", [{"lambdaIsotropy": 0.0, "lambdaReg": 0.0}, {"freezeBase": True}, {"isotropy": "covariance"}]
)
@pytest.mark.parametrize("name", ["ragcun", "ragcun-small"])
def test_the_seeds_experiments_are_changes_of_the_config(name: str, experiment: dict[str, Any]) -> None:
    trainer = yaml.safe_load((SEEDS / f"{name}.yaml").read_text())["spec"]["trainer"]
    catalog.check("retrieval", trainer["config"] | experiment)
