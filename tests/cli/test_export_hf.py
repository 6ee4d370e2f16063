"""`piton checkpoint export --format hf`: what comes out is loaded by the real transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig

import piton_trainer
from cli.conftest import Piton
from cli.test_bad_input import assert_one_sentence
from piton.contract import names
from piton.contract.assignment import Assignment, SavePolicy
from support import tiny
from support import tiny_transformers as hf


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The checkpoints of a Trainer with the callback, and its model."""
    directory = tmp_path_factory.mktemp("trained")
    return directory / "checkpoints", hf.train(directory, max_steps=2).trainer.model


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The checkpoints of somebody's own loop over a model of transformers, with an average of its weights."""
    directory = tmp_path_factory.mktemp("by-hand")
    model = hf.build()
    average = AveragedModel(model)
    with piton_trainer.session(tiny.config(directory)) as session:
        session.restore(model=model, ema=average)
        for _ in session.steps([1]):
            average.update_parameters(model)
            with torch.no_grad():
                model.transformer.wte.weight.add_(1.0)
    return directory, model


def assert_same(loaded: torch.nn.Module, model: torch.nn.Module) -> None:
    saved = model.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())


def test_what_the_callback_saved_becomes_a_model_of_transformers(
    trained: tuple[Path, Any], tmp_path: Path, piton: Piton
) -> None:
    checkpoints, model = trained
    out = tmp_path / "out"
    assert piton("checkpoint", "export", checkpoints, out, "--format", "hf").code == 0
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert_same(loaded, model)
    assert_same(AutoModel.from_pretrained(out), model.transformer)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    assert GenerationConfig.from_pretrained(out).eos_token_id == 0


def test_tied_weights_are_written_once_and_tied_again(trained: tuple[Path, Any], tmp_path: Path, piton: Piton) -> None:
    out = tmp_path / "out"
    piton("checkpoint", "export", trained[0], out, "--format", "hf")
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_a_thin_checkpoint_still_says_what_its_weights_are_of(tmp_path: Path, piton: Piton) -> None:
    orders = Assignment(save=SavePolicy(every_steps=1, keep_last=1, keep_weights_only=9))
    config = tiny.config(tmp_path / "checkpoints", orders)
    hf.train(tmp_path, config=config, max_steps=3)
    out = tmp_path / "model"
    assert not (tmp_path / "checkpoints" / names.step_folder(1)).exists()
    assert piton("checkpoint", "export", tmp_path / "checkpoints", out, "--format", "hf", "--step", 1).code == 0
    assert AutoModelForCausalLM.from_pretrained(out).config.n_embd == 16


def test_a_session_names_the_config_and_the_files_beside_it(
    by_hand: tuple[Path, Any], tmp_path: Path, piton: Piton
) -> None:
    directory, model = by_hand
    config = tmp_path / "config"
    model.save_pretrained(config)
    (config / "tokenizer.json").write_text("{}")
    out, average = tmp_path / "out", tmp_path / "average"
    assert piton("checkpoint", "export", directory, out, "--format", "hf", "--config", config).code == 0
    assert_same(AutoModelForCausalLM.from_pretrained(out), model)
    assert (out / "tokenizer.json").read_text() == "{}"
    alone = ("--format", "hf", "--config", config / "config.json", "--weights", "ema")
    assert piton("checkpoint", "export", directory, average, *alone).code == 0
    mean = AutoModelForCausalLM.from_pretrained(average).transformer.wte.weight
    assert torch.equal(mean + 1.0, model.transformer.wte.weight)


def test_a_model_that_nobody_describes_is_refused(by_hand: tuple[Path, Any], tmp_path: Path, piton: Piton) -> None:
    out = tmp_path / "out"
    missing = piton("checkpoint", "export", by_hand[0], out, "--format", "hf")
    assert_one_sentence(missing, "name its config.json with --config")
    wrong = piton("checkpoint", "export", by_hand[0], out, "--format", "hf", "--config", tmp_path)
    assert_one_sentence(wrong, "is no config.json, nor a folder with one")
    other = piton("checkpoint", "export", by_hand[0], out, "--format", "dcp", "--config", tmp_path)
    assert_one_sentence(other, "--config goes with --format hf")
    assert list(tmp_path.iterdir()) == []
