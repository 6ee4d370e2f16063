"""The recipe `charlm` from top to bottom: text, windows, model, optimizers, rates, loss, metric."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from piton_trainer.data.skipped import MANIFEST, SkippedData, Skips
from piton_trainer.data.text.sources import as_documents, read_text
from piton_trainer.data.text.vocabulary import Vocabulary
from piton_trainer.data.text.windows import Batch, ShuffledWindows, Windows, in_order
from piton_trainer.errors import BadConfig
from piton_trainer.recipes.charlm import size
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.recipes.charlm.model import CharGPT
from piton_trainer.recipes.charlm.muon import BatchedMuon
from piton_trainer.recipes.protocol import DataContext, Stateful

REFERENCE_WIDTH = 768
MOMENTUM_FIRST, MOMENTUM, MOMENTUM_STEPS = 0.85, 0.95, 300
"""Muon's momentum grows from the first to the second in so many steps."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The learning rates of one moment."""

    matrix: float
    embedding: float
    head: float


class Charlm:
    """The implementation of `charlm` for the loop; see `piton_trainer.training.loop.Recipe`."""

    def __init__(self, config: CharlmConfig, place: DataContext) -> None:
        self.config = config
        self.place = place
        skips = Skips(config.max_skipped)
        text = read_text(config.data, skips)
        text = as_documents(text) if config.documents else text
        self.skipped_data = _list_skipped(skips, place)
        self.vocabulary = Vocabulary.of(text, rare_below=config.rare_below)
        training, self.validation = split(self.vocabulary.encode(text), config)
        self.loader = ShuffledWindows(
            training,
            device_batch=config.device_batch_size,
            total_batch=config.total_batch_tokens // config.sequence_length,
            seed=config.seed,
            rank=place.rank,
            world_size=place.world_size,
            device=place.device,
        )
        self.tokens_per_step = config.total_batch_tokens
        self.extras: Mapping[str, Stateful] = {"vocabulary": self.vocabulary}

    def describe(self) -> str:
        """One line for the log."""
        weights = size.parameters(self.config, len(self.vocabulary))
        return (
            f"charlm: {weights / 1e6:,.1f} million weights, "
            f"{len(self.loader.windows):,} training windows of {self.config.sequence_length} characters, "
            f"{len(self.vocabulary)} symbols ({self.vocabulary.uniform_bits:.2f} bits each if all were equally likely)"
        )

    def build(self) -> nn.Module:
        """The model, on the default device, with whatever numbers its memory holds."""
        return CharGPT(self.config, symbols=len(self.vocabulary))

    def draw_weights(self, model: nn.Module) -> None:
        """Draw the initial weights."""
        _charlm(model).draw_weights(self.config.seed)

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        """The modules that are sharded and compiled as units."""
        return _charlm(model).blocks

    def flops_per_token(self, model: nn.Module) -> float:  # noqa: ARG002 - they follow from the config
        """Of training."""
        return size.flops_per_token(self.config, len(self.vocabulary))

    def optimizers(self, model: nn.Module) -> list[Optimizer]:
        """Muon for the matrices, AdamW for embedding and head. `tune` sets their rates."""
        gpt = _charlm(model)
        matrices = gpt.matrices()
        muon = Muon if any(isinstance(matrix, DTensor) for matrix in matrices) else BatchedMuon
        ends = [{"params": [gpt.wte.weight]}, {"params": [gpt.lm_head.weight]}]
        return [
            AdamW(ends, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0),
            muon(matrices, momentum=MOMENTUM, nesterov=True, weight_decay=0.0),
        ]

    def tune(self, optimizers: Sequence[Optimizer], *, fraction: float, step: int) -> None:
        """Set rates and momentum. They follow from the config and the moment alone, so a resume has nothing to load."""
        adamw, muon = optimizers
        rates = rates_at(self.config, fraction)
        adamw.param_groups[0]["lr"], adamw.param_groups[1]["lr"] = rates.embedding, rates.head
        muon.param_groups[0]["lr"], muon.param_groups[0]["momentum"] = rates.matrix, momentum_at(step)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss in nats per character."""
        loss: Tensor = model(*batch)
        return loss

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Tensor], int]:
        """Sums over this rank's share of the validation windows, and the number of windows in them."""
        nats = torch.zeros((), dtype=torch.float64, device=self.place.device)
        total = 0
        for batch, count in in_order(
            self.validation,
            limit=self.config.eval_tokens // self.config.sequence_length,
            batch=self.config.device_batch_size,
            rank=self.place.rank,
            world_size=self.place.world_size,
            device=self.place.device,
        ):
            loss = self.loss(model, batch).double()
            if count:  # a batch of filler only has no mean
                nats, total = nats + loss * count, total + count
        return {"val_loss": nats, "bits_per_char": nats / math.log(2)}, total


def build(config: CharlmConfig, place: DataContext) -> Charlm:
    """The recipe, with its data read.

    Raises:
        BadConfig: the text is missing or too short.
    """
    return Charlm(config, place)


def split(tokens: Tensor, config: CharlmConfig) -> tuple[Windows, Windows]:
    """Head and tail of the text, for training and validation.

    Raises:
        BadConfig: one of them is shorter than one window.
    """
    cut = len(tokens) - int(len(tokens) * config.validation_fraction)
    parts = Windows(tokens[:cut], config.sequence_length), Windows(tokens[cut:], config.sequence_length)
    if not all(len(part) for part in parts):
        raise BadConfig(
            f"trainer.config.sequenceLength: {config.sequence_length} is too long for {cut:,} characters of training "
            f"and {len(tokens) - cut:,} of validation text; take a shorter one or more text"
        )
    return parts


def _list_skipped(skips: Skips, place: DataContext) -> SkippedData:
    """List on the volume what is left out of the text, and return it. All ranks call it together."""
    skipped_data = SkippedData(skips.most)
    if skips.most:
        content = hashlib.sha256(json.dumps(skips.to_wire()["skipped"]).encode()).hexdigest()
        folder = place.run_cache.folder(f"texts-{content[:16]}", skips.save)
        skipped_data.add(folder / MANIFEST, skips.skipped)
    return skipped_data


def rates_at(config: CharlmConfig, fraction: float) -> Rates:
    """The rates after this fraction of the training."""
    reference = config.reference_batch_tokens or config.total_batch_tokens
    scale = warmdown(fraction, config.warmdown_fraction) * (config.total_batch_tokens / reference) ** 0.5
    ends_scale = scale * (config.width / REFERENCE_WIDTH) ** -0.5
    return Rates(
        matrix=config.matrix_learning_rate * scale,
        embedding=config.embedding_learning_rate * ends_scale,
        head=config.head_learning_rate * ends_scale,
    )


def warmdown(fraction: float, length: float) -> float:
    """1, and over the last `length` of the training linearly down to 0."""
    rest = min(max(1.0 - fraction, 0.0), 1.0)
    return 1.0 if rest >= length else rest / length


def momentum_at(step: int) -> float:
    """Muon's momentum after so many steps."""
    return MOMENTUM_FIRST + (MOMENTUM - MOMENTUM_FIRST) * min(step / MOMENTUM_STEPS, 1.0)


def _charlm(model: nn.Module) -> CharGPT:
    assert isinstance(model, CharGPT)
    return model
