"""TrainedModel models that leave their checkpoints: complete, by the names that others know, and back again."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from piton.contract.assignment import Assignment, SavePolicy
from piton.contract.names import parse_weights_folder
from piton_trainer.checkpoint import inspect
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
from piton_trainer.errors import BadConfig
from piton_trainer.recipes import catalog
from piton_trainer.serving import trained_model
from support import charlm, resnet, retrieval, tiny, twotower
from support.pictures import quadrants


def newest(directory: Path) -> CommittedCheckpoint:
    return next(layout.committed(directory))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a charlm, the older ones thin."""
    found = tmp_path_factory.mktemp("charlm")
    # With two to let go, reading back the newest is not put off because the run is over; so each save has to be made.
    policy = SavePolicy(every_steps=2, keep_last=1, keep_best=0, keep_weights_only=9)
    charlm.attempt(found, charlm.changed(steps=6), save=policy, background_saves=False)
    return found


def test_a_model_leaves_with_its_average_its_settings_and_its_vocabulary(directory: Path, tmp_path: Path) -> None:
    model = trained_model.from_checkpoint(newest(directory))
    trained_model.write(model, tmp_path / "out")

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["recipe"], config["step"], config["weights"]) == ("charlm", 6, "ema")
    assert catalog.check("charlm", config["settings"]) == charlm.changed(steps=6)
    assert {"a", "e", "\n"} <= set(config["extras"]["vocabulary"]["symbols"])
    weights = load_file(tmp_path / "out" / "model.safetensors")
    rows = -(-len(config["extras"]["vocabulary"]["symbols"]) // 8) * 8
    assert weights["wte.weight"].shape == (rows, charlm.TINY.width)
    assert not any(name.startswith("module.") or name == "n_averaged" for name in weights)


def test_what_was_written_is_read_back(directory: Path, tmp_path: Path) -> None:
    model = trained_model.from_checkpoint(newest(directory), "model")
    trained_model.write(model, tmp_path / "out")
    assert trained_model.is_written(tmp_path / "out")
    again = trained_model.from_folder(tmp_path / "out")

    assert replace(again, weights={}) == replace(model, weights={})
    assert again.weights.keys() == model.weights.keys()
    assert all(torch.equal(tensor, model.weights[name]) for name, tensor in again.weights.items())


def test_the_average_is_not_the_newest_weights(directory: Path) -> None:
    average, live = (trained_model.from_checkpoint(newest(directory), which) for which in ("ema", "model"))
    assert not torch.equal(average.weights["wte.weight"], live.weights["wte.weight"])


def test_a_thin_checkpoint_still_knows_its_recipe_and_its_vocabulary(directory: Path) -> None:
    thin = next(item for item in inspect.survey(directory) if parse_weights_folder(item.folder.name) == 2)
    assert thin.manifest is not None
    model = trained_model.from_checkpoint(CommittedCheckpoint(folder=thin.folder, manifest=thin.manifest))

    assert (model.step, model.which) == (2, "ema")
    assert model.extras.keys() == {"vocabulary"}


def test_a_program_of_ones_own_is_told_what_to_say_instead(tmp_path: Path) -> None:
    tiny.train(tmp_path)
    with pytest.raises(ValueError, match=r"does not say which recipe it is of.*piton checkpoint export"):
        trained_model.from_checkpoint(newest(tmp_path))


def test_resnet50_leaves_with_torchvisions_names_and_its_classes(tmp_path: Path) -> None:
    config = resnet.a_config(quadrants(tmp_path / "data.npz"), epochs=0.5, warmupEpochs=0.1)
    resnet.attempt(tmp_path / "run", config)
    model = trained_model.from_checkpoint(newest(tmp_path / "run"))

    assert model.extras["classes"]["count"] == 4
    bottleneck = [f"{part}{number}" for number in (1, 2, 3) for part in ("conv", "bn")] + ["downsample"]
    assert {name.split(".")[0] for name in model.weights} == {"conv1", "bn1", "layer1", "layer2", "fc"}
    assert {name.split(".")[2] for name in model.weights if name.startswith("layer1.")} == set(bottleneck)


def test_twotower_leaves_with_the_ids_that_its_columns_stand_for(tmp_path: Path) -> None:
    twotower.attempt(tmp_path, twotower.changed(steps=1))
    model = trained_model.from_checkpoint(newest(tmp_path))

    names = model.extras["ids"]["names"]
    assert names == [f"id{number:02d}" for number in range(12)]
    assert model.weights["prior"].shape[-1] == len(names)


@pytest.mark.filterwarnings("ignore")  # of libraries, about each other
def test_retrieval_leaves_as_a_folder_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoModel

    retrieval.attempt(tmp_path / "run", retrieval.world(tmp_path).config(steps=1))
    model = trained_model.from_checkpoint(newest(tmp_path / "run"))
    trained_model.write(model, tmp_path / "out")

    assert AutoModel.from_pretrained(tmp_path / "out").config.hidden_size == retrieval.WIDTH
    assert (tmp_path / "out" / "3_Dense" / "model.safetensors").is_file()


def test_a_recipe_with_a_format_of_its_own_writes_it(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(settings: Any, weights: Mapping[str, Any], out: Path) -> None:
        (out / "mine").write_text(f"{settings.depth} {len(weights)}")

    monkeypatch.setattr(catalog, "part", lambda name, module: SimpleNamespace(export=export))
    model = trained_model.from_checkpoint(newest(directory))
    trained_model.write(model, tmp_path / "out")

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert (tmp_path / "out" / "mine").read_text() == f"2 {len(model.weights)}"


def test_what_a_recipe_misses_for_its_own_format_is_a_sentence_and_leaves_nothing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(settings: Any, weights: Mapping[str, Any], out: Path) -> None:
        raise BadConfig("trainer.config.baseModel: there is no model in /nowhere")

    monkeypatch.setattr(catalog, "part", lambda name, module: SimpleNamespace(export=export))
    with pytest.raises(ValueError, match="there is no model in /nowhere"):
        trained_model.write(trained_model.from_checkpoint(newest(directory)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{}", '{"recipe": "charlm"}', "[]"])
def test_a_folder_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="is no model that piton export has written"):
        trained_model.from_folder(tmp_path)


def test_orders_without_a_recipe_leave_no_word_of_one(tmp_path: Path) -> None:
    tiny.train(tmp_path, assignment=Assignment(save=SavePolicy(every_steps=4)))
    assert layout.RECIPE not in layout.read_document(newest(tmp_path).folder)
