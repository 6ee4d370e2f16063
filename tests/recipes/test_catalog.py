"""A config is judged in one sentence, before anything is spent, and without torch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from piton_trainer.recipes import catalog
from piton_trainer.recipes.charlm.config import CharlmConfig


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"deph": 4}, "trainer.config.deph: charlm has no such setting; did you mean depth?"),
        ({"sequencelength": 4}, "did you mean sequenceLength?"),
        ({"learning": 1, "depth": "x"}, "trainer.config.learning: charlm has no such setting"),
        ({7: 1}, "trainer.config.7: charlm has no such setting; there is activationCheckpointing,"),
        ({"depth": "4"}, "trainer.config.depth: has to be a whole number, not '4'; write 4"),
        ({"depth": "1e3"}, "trainer.config.depth: has to be a whole number, not '1e3'; write 1000"),
        ({"depth": "1234567"}, "trainer.config.depth: has to be a whole number, not '1234567'; write 1234567"),
        ({"depth": "deep"}, "trainer.config.depth: has to be a whole number, not 'deep'"),
        ({"depth": 4.5}, "trainer.config.depth: has to be a whole number, not 4.5"),
        ({"depth": None}, "trainer.config.depth: has to be a whole number, not null"),
        ({"depth": 0}, "trainer.config.depth: has to be at least 1, not 0"),
        ({"depth": True}, "trainer.config.depth: has to be a whole number, not True"),
        ({"matrixLearningRate": "1e-3"}, "has to be a number, not '1e-3'; write 0.001"),
        ({"dropout": 1.0}, "trainer.config.dropout: has to be less than 1, not 1.0"),
        ({"dropout": float("nan")}, "trainer.config.dropout: has to be a finite number, not nan"),
        ({"ema": 0}, "trainer.config.ema: has to be more than 0, not 0"),
        ({"validationFraction": 0.6}, "has to be at most 0.5, not 0.6"),
        ({"compile": "yes"}, "trainer.config.compile: has to be true or false, not 'yes'"),
        ({"precision": "fp8"}, "trainer.config.precision: has to be one of 'fp32' or 'bf16', not 'fp8'"),
        ({"data": ""}, "trainer.config.data: has to be a text with at least one character, not ''"),
        ({"data": ["a"]}, "trainer.config.data: has to be a text, not ['a']"),
        ({"headDim": 3}, "trainer.config.headDim: 3 is odd and rotary embeddings turn pairs; take 4"),
        ({"totalBatchTokens": 20_000}, "trainer.config.totalBatchTokens: 20000 is not a multiple of deviceBatchSize x"),
        ({"evalTokens": 100}, "trainer.config.evalTokens: 100 is less than one sequence; take at least 2048"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_a_fix(config: dict[Any, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^trainer\.") as caught:
        catalog.check("charlm", config)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["1e999", "-inf", "nan", "1e-3", "deep"])
def test_no_number_is_proposed_that_does_not_fit(text: str) -> None:
    with pytest.raises(ValueError, match="has to be a whole number") as caught:
        catalog.check("charlm", {"depth": text})
    assert str(caught.value).endswith(f"not {text!r}")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("charml", "trainer.recipe: there is no recipe charml; did you mean charlm?"),
        ("yolo", f"trainer.recipe: there is no recipe yolo; there is {', '.join(sorted(catalog.RECIPES))}"),
    ],
)
def test_an_unknown_recipe_is_told_the_known_ones(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^trainer\.") as caught:
        catalog.check(name, {})
    assert str(caught.value) == sentence


def test_a_good_config_is_parsed_in_either_spelling() -> None:
    camel = catalog.check("charlm", {"sequenceLength": 512, "ema": 0.99})
    assert camel == catalog.check("charlm", {"sequence_length": 512, "ema": 0.99})


def test_every_setting_says_what_it_means() -> None:
    for name in catalog.RECIPES:
        silent = [key for key, field in catalog.config_model(name).model_fields.items() if not field.description]
        assert not silent


def test_a_run_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.config\.steps: missing, and so is limits\.trainingTime"):
        CharlmConfig().check_length(None)
    CharlmConfig().check_length(3600.0)
    CharlmConfig(steps=10).check_length(None)


def test_missing_data_is_noticed_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.config\.data: there is no file or directory /nowhere/x\.txt; give"):
        CharlmConfig(data="/nowhere/x.txt").check_data()
    for there in ("pydoc", str(tmp_path), "s3://bucket/prefix"):
        CharlmConfig(data=there).check_data()


def test_a_batch_that_the_ranks_cannot_share_is_refused() -> None:
    config = CharlmConfig(sequence_length=64, device_batch_size=2, total_batch_tokens=1024)
    config.check_world(8)
    with pytest.raises(ValueError, match=r"totalBatchTokens: 1024 is not a multiple of 3 ranks x .* = 384; take 1152"):
        config.check_world(3)


def test_checking_a_config_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "from piton_trainer.recipes import catalog\n"
        "catalog.check('charlm', {'depth': 4, 'steps': 10}).check_data()\n"
        "catalog.check('resnet50', {'data': '.', 'epochs': 16}).check_data()\n"
        "config = {'data': 's3://b/x.tsv', 'datasets': ['s3://b/x'], 'baseModel': 'a/b', 'steps': 10}\n"
        "catalog.check('retrieval', config).check_data()\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
