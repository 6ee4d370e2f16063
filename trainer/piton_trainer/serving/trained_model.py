"""A recipe's trained model: out of a checkpoint, into a folder that is ready for use, and back.

A checkpoint's state says which recipe it is of, and with which config; so wherever a checkpoint is copied to, the model
can be made of it. Nothing here knows one recipe from another: where one has a format of its own, its module `export`
writes it.

    config.json         recipe, settings, step, metrics, and what the recipe keeps beside its weights: a vocabulary, ids
    model.safetensors   the weights, by the names that the model's own state dict has
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from piton.contract import InputError
from piton_trainer.checkpoint.export import check_place, place, save_tensors, weights_of
from piton_trainer.checkpoint.format import codec, layout
from piton_trainer.checkpoint.format.layout import CommittedCheckpoint
from piton_trainer.errors import BadConfig
from piton_trainer.recipes import catalog
from piton_trainer.recipes.config import RecipeConfig
from piton_trainer.state.tracked_objects import EMA, MODEL

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_RESUMING = frozenset({MODEL, EMA, "optimizer"})
"""Objects that the loop saves for every recipe; all others are the recipe's own."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model that is known to be good, in memory."""

    recipe: str
    config: Mapping[str, Any]
    """As the run's manifest has it."""
    settings: RecipeConfig
    """The same, checked."""
    weights: Mapping[str, Tensor]
    which: str
    """model, or ema: their average."""
    extras: Mapping[str, Any]
    """Objects of the recipe beside its weights, by name."""
    step: int
    metrics: Mapping[str, float]


def from_checkpoint(checkpoint: CommittedCheckpoint, which: str | None = None) -> TrainedModel:
    """Read a checkpoint that has been verified. Without `which`, the weights that were evaluated: an average, if any.

    Raises:
        ValueError: it is not one of a recipe, or of one that this version does not understand.
    """
    document = layout.read_document(checkpoint.folder)
    origin, objects = document.get(layout.RECIPE), document["objects"]
    if not isinstance(origin, dict):
        raise InputError(
            f"{checkpoint.folder.name} does not say which recipe it is of: it is of your own program, or of an older "
            "Piton; say piton checkpoint export"
        )
    which = which or (EMA if EMA in objects else MODEL)
    return TrainedModel(
        recipe=origin["name"],
        config=origin["config"],
        settings=catalog.check(origin["name"], origin["config"]),
        weights=weights_of(checkpoint, which),
        which=which,
        extras={name: _plain(part) for name, part in objects.items() if name not in _RESUMING and not codec.keys(part)},
        step=checkpoint.manifest.step,
        metrics={name: value for name, value in checkpoint.manifest.metrics.items() if math.isfinite(value)},
    )


def _plain(document: Any) -> Any:
    return codec.join(document, dict[str, Tensor]().__getitem__, is_exact=False)


def write(trained: TrainedModel, out: Path) -> None:
    """Write it to a folder that is not there yet.

    Raises:
        ValueError: it cannot be written.
    """
    check_place(out)
    module = catalog.part(trained.recipe, "export")

    def fill(folder: Path) -> None:
        folder.mkdir()
        if module is None:
            _write_plainly(trained, folder)
            return
        try:
            module.export(trained.settings, trained.weights, folder)
        except BadConfig as error:
            raise InputError(error.detail) from error

    place(out, fill)


def _write_plainly(trained: TrainedModel, folder: Path) -> None:
    document = {
        "recipe": trained.recipe,
        "settings": trained.config,
        "step": trained.step,
        "weights": trained.which,
        "metrics": trained.metrics,
        "extras": trained.extras,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_tensors(dict(trained.weights), folder / WEIGHTS_FILE)


def is_written(folder: Path) -> bool:
    """True if a folder looks like one that `write` has left."""
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def from_folder(folder: Path) -> TrainedModel:
    """Read what `write` has left.

    Raises:
        ValueError: it is something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        document = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return TrainedModel(
            recipe=document["recipe"],
            config=document["settings"],
            settings=catalog.check(document["recipe"], document["settings"]),
            weights=load_file(folder / WEIGHTS_FILE),
            which=document["weights"],
            extras=document["extras"],
            step=document["step"],
            metrics=document["metrics"],
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise InputError(f"{folder} is no model that piton export has written: {error!r}") from error
