"""A trained model as a folder that `sentence_transformers` and `transformers` load.

config.json model.safetensors tokenizer.json …     the base model, for `AutoModel.from_pretrained(folder)`
modules.json 1_Pooling 2_Normalize 3_Dense         the rest, for `SentenceTransformer(folder)`
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from piton.contract import InputError
from piton_trainer.recipes.common.encoder_source import folder_of
from piton_trainer.recipes.common.text_encoder import pretrained
from piton_trainer.recipes.retrieval.config import RetrievalConfig
from piton_trainer.recipes.retrieval.data import encoding_of

_BASE, _PROJECTION = "base.", "projection."
_NO_ACTIVATION = "torch.nn.modules.linear.Identity"
_MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"), ("3_Dense", "Dense"))


def export(settings: RetrievalConfig, weights: Mapping[str, Tensor], out: Path) -> None:
    """Write the folder; of a frozen base model, which no checkpoint holds, the weights that it came with.

    Raises:
        BadConfig: the base model cannot be found.
        ValueError: these are not the weights of such a model.
    """
    if f"{_PROJECTION}weight" not in weights:
        raise InputError(f"these weights have no {_PROJECTION}weight: they are not those of the recipe retrieval")
    base = pretrained(folder_of(settings.base_model, "baseModel"), encoding_of(settings))
    if trained := _below(weights, _BASE):
        base.load_state_dict(trained)
    out.mkdir(parents=True, exist_ok=True)
    _write_base(base, settings, out)
    projection = {name: value.float().contiguous() for name, value in _below(weights, _PROJECTION).items()}
    _write_modules(projection, settings, out)


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _write_base(base: nn.Module, settings: RetrievalConfig, out: Path) -> None:
    from transformers import AutoTokenizer

    model: Any = base
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder_of(settings.base_model, "baseModel")).save_pretrained(out)


def _write_modules(projection: dict[str, Tensor], settings: RetrievalConfig, out: Path) -> None:
    width, dim = projection["weight"].shape[1], projection["weight"].shape[0]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    dense = {"in_features": width, "out_features": dim, "bias": True, "activation_function": _NO_ACTIVATION}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(_MODULES)
    ]
    documents: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": settings.max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "euclidean"},
        "1_Pooling/config.json": pooling,
        "3_Dense/config.json": dense,
    }
    for path, _ in _MODULES:
        (out / path).mkdir(exist_ok=True)
    for name, document in documents.items():
        (out / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    named = {f"linear.{name}": value for name, value in projection.items()}
    save_file(named, out / "3_Dense" / "model.safetensors", metadata={"format": "pt"})
