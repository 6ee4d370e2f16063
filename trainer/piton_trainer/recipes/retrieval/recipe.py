"""The recipe `retrieval` from top to bottom: data, model, optimizer, rates, loss, metrics."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import AutoConfig

from piton_trainer.recipes.protocol import DataContext, Stateful
from piton_trainer.recipes.retrieval import isotropy
from piton_trainer.recipes.retrieval.batches import Pass, ShuffledExamples
from piton_trainer.recipes.retrieval.config import RetrievalConfig
from piton_trainer.recipes.retrieval.contrast import contrastive
from piton_trainer.recipes.retrieval.data import Data
from piton_trainer.recipes.retrieval.evaluation import Encode, ZeroShot, measure
from piton_trainer.recipes.retrieval.inputs import Readable
from piton_trainer.recipes.retrieval.model import Retriever, layers_of, load_base, new_base
from piton_trainer.recipes.retrieval.schedule import rate_at
from piton_trainer.runtime.collectives import gathered

_SAMPLE = 256
"""Examples whose lengths stand for all."""


class Retrieval:
    """The implementation of `retrieval` for the loop; see `piton_trainer.recipes.protocol.Recipe`."""

    def __init__(self, config: RetrievalConfig, place: DataContext, data: Data) -> None:
        self.config = _resolved(config, len(data.examples))
        self.place = place
        self.data = data
        self.width: int = AutoConfig.from_pretrained(data.folder).hidden_size
        self.loader = ShuffledExamples(
            data.examples,
            data.texts,
            batch=config.batch_size,
            accumulation=config.accumulation,
            negatives=config.negatives,
            seed=config.seed,
            place=place,
            identity=data.identity,
        )
        self.tokens_per_step = config.batch_size
        self.skipped_data = data.skipped_data
        self.zero_shot = ZeroShot()
        self.extras: Mapping[str, Stateful] = {"zero_shot": self.zero_shot}
        self._peaks: list[float] = []
        self._step = 0

    def describe(self) -> str:
        """One line for the log."""
        examples = self.data.examples
        sizes = [f"{name} ({found.documents:,})" for name, found in self.data.collections.items()]
        base = "frozen" if self.config.freeze_base else "trained"
        return (
            f"retrieval: {len(examples):,} examples of {len(examples.texts):,} texts; the base model is {base}, "
            f"{self.width} -> {self.config.output_dim}; measured on the documents of {', '.join(sizes)}"
        )

    def build(self) -> nn.Module:
        """The model, on the default device, with whatever numbers its memory holds."""
        config = self.config
        base = None if config.freeze_base else new_base(self.data.folder, checkpointing=config.gradient_checkpointing)
        return Retriever(base, width=self.width, output_dim=config.output_dim)

    def draw_weights(self, model: nn.Module) -> None:
        """The base model's own weights, and a projection that turns its vectors and no more."""
        retriever = _retriever(model)
        if retriever.base is not None:
            load_base(retriever.base, self.data.folder, self.data.encoding)
        retriever.draw_weights(self.config.seed)

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        """The modules that are compiled as units: the layers."""
        base = _retriever(model).base
        return [] if base is None else layers_of(base)

    def flops_per_token(self, model: nn.Module) -> float:
        """Of training, per example: all weights but the embeddings, for each token of its query and its passages."""
        retriever = _retriever(model)
        embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        weights = sum(weight.numel() for weight in retriever.parameters() if id(weight) not in embedded)
        passages = 1 + self.loader.negatives
        rows = 1.0 + passages if retriever.base is None else self.data.tokens_per_example(_SAMPLE, passages)
        return 6.0 * weights * rows

    def optimizers(self, model: nn.Module) -> list[Optimizer]:
        """AdamW, with decay for matrices only. `tune` sets its rates."""
        retriever, decay = _retriever(model), self.config.weight_decay
        groups = [] if retriever.base is None else _groups(retriever.base, self.config.base_learning_rate, decay)
        groups += _groups(retriever.projection, self.config.projection_learning_rate, decay)
        self._peaks = [group["lr"] for group in groups]
        return [AdamW(groups)]

    def tune(self, optimizers: Sequence[Optimizer], *, fraction: float, step: int) -> None:
        """Set the rates: up over the warm-up's steps, and down over the whole training."""
        self._step = step
        share = rate_at(self.config, fraction=fraction, step=step)
        for group, peak in zip(optimizers[0].param_groups, self._peaks, strict=True):
            group["lr"] = peak * share

    def loss(self, model: nn.Module, batch: Pass) -> Tensor:
        """Contrast of a pass, and what is wrong with the shape of its vectors, over all ranks."""
        config = self.config
        vectors = model(batch.queries, batch.passages)
        queries, passages = vectors.tensor_split([len(batch.hidden)])
        with torch.autocast(vectors.device.type, enabled=False):
            loss = contrastive(queries, gathered(passages), batch.hidden, first=batch.first, scale=config.scale)
            for cloud in (queries, passages):
                loss = loss + self._shape(cloud) / 2
        return loss

    def _shape(self, vectors: Tensor) -> Tensor:
        """Return the isotropy loss of a set of vectors.

        Queries and passages have one each: together they can be around the origin, and neither of them be so.
        """
        config = self.config
        found = vectors.new_zeros(())
        if config.lambda_reg:
            found = found + config.lambda_reg * isotropy.spread(vectors)
        if config.isotropy == "covariance" and config.lambda_isotropy:
            found = found + config.lambda_isotropy * isotropy.covariance(vectors)
        if config.isotropy == "sigreg" and config.lambda_isotropy:
            along = isotropy.directions(
                vectors.shape[1], config.slices, seed=config.seed, step=self._step, device=vectors.device
            )
            found = found + config.lambda_isotropy * isotropy.sigreg(vectors, along)
        return found

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Tensor], int]:
        """The model's figures and, beside them, those of the base model as it came; the same on every rank."""
        if self.config.zero_shot and not self.zero_shot.figures:
            as_it_came = {name: partial(_turned, texts, self.width) for name, texts in self.data.base.items()}
            figures = self._measure(as_it_came, self.width)
            self.zero_shot.figures = {f"zero_shot_{name}": value for name, value in figures.items()}
        trained = {name: partial(_encoded, model, texts) for name, texts in self.data.documents.items()}
        found = self._measure(trained, self.config.output_dim) | self.zero_shot.figures
        device = self.place.device
        return {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in found.items()}, 1

    def _measure(self, encode: Mapping[str, Encode], dim: int) -> dict[str, float]:
        return measure(self.data.collections, encode, dim=dim, batch=self.config.encoder_batch, place=self.place)


def build(config: RetrievalConfig, place: DataContext) -> Retrieval:
    """The recipe, with its data read.

    Raises:
        BadConfig: the data or the base model cannot be read.
    """
    return Retrieval(config, place, Data(config, place))


def _encoded(model: nn.Module, texts: Readable, numbers: NDArray[np.int64]) -> Tensor:
    vectors: Tensor = model(texts.of(numbers))
    return vectors


def _turned(texts: Readable, width: int, numbers: NDArray[np.int64]) -> Tensor:
    """As the first projection would have them, but for the turn, which no figure depends on."""
    vectors = texts.of(numbers)
    assert isinstance(vectors, Tensor)
    return vectors * math.sqrt(width)


def _resolved(config: RetrievalConfig, count: int) -> RetrievalConfig:
    """The config with epochs told in steps, now that the number of examples is known."""
    if config.epochs is None:
        return config
    return config.model_copy(update={"steps": math.ceil(config.epochs * count / config.batch_size)})


def _groups(part: nn.Module, rate: float, decay: float) -> list[dict[str, Any]]:
    weights = [weight for weight in part.parameters() if weight.requires_grad]
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "lr": rate, "weight_decay": decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "lr": rate, "weight_decay": 0.0},
    ]


def _retriever(model: nn.Module) -> Retriever:
    assert isinstance(model, Retriever)
    return model
