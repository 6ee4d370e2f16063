"""The recipe `twotower` from top to bottom: judgments, folds, vectors, model, optimizer, rates, loss, metric."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from piton_trainer.checkpoint.format import layout
from piton_trainer.data.ranking.judgments import Judgments
from piton_trainer.data.ranking.sources import judgments_of
from piton_trainer.data.skipped import SkippedData
from piton_trainer.recipes.common.text_encoder import Embedded, Encoding, embed
from piton_trainer.recipes.protocol import DataContext, Stateful
from piton_trainer.recipes.twotower.config import TwoTowerConfig
from piton_trainer.recipes.twotower.criterion import Criterion
from piton_trainer.recipes.twotower.evaluation import BaselineEvaluator
from piton_trainer.recipes.twotower.folds import split
from piton_trainer.recipes.twotower.model import Stacked, TwoTower
from piton_trainer.recipes.twotower.queries import FoldedQueries
from piton_trainer.recipes.twotower.results import Results
from piton_trainer.recipes.twotower.table import Ids, Table

RESULTS_FILE = "results.json"
"""Beside the checkpoints."""


class TwoTowers:
    """The implementation of `twotower` for the loop; see `piton_trainer.recipes.protocol.Recipe`."""

    def __init__(
        self,
        config: TwoTowerConfig,
        place: DataContext,
        judgments: Judgments,
        embedded: Embedded,
        skipped_data: SkippedData | None = None,
    ) -> None:
        self.config = config
        self.skipped_data = skipped_data or SkippedData()
        self.place = place
        self.judgments = judgments
        self.embedded = embedded.to(place.device)
        self.table = Table(judgments, place.device)
        self.folds = split(
            judgments,
            folds=config.folds,
            wanted=config.fold_numbers,
            seed=config.fold_seed,
            inner_fraction=config.inner_fraction,
        )
        self.criterion = Criterion(config, judgments, self.folds, place.device)
        self.evaluator = BaselineEvaluator(judgments, self.table, self.embedded, config.candidates)
        self.results = Results(self.folds, self.evaluator.baselines(self.folds))
        self.loader = FoldedQueries(
            self.folds,
            batch=config.batch_queries,
            accumulation=config.accumulation,
            seed=config.seed,
            place=place,
            digest=self._digest(),
        )
        self.tokens_per_step = config.batch_queries * len(self.folds)
        self.extras: Mapping[str, Stateful] = {"ids": Ids(judgments.names), "results": self.results}
        self._step = 0

    def describe(self) -> str:
        """One line for the log."""
        judgments = self.judgments
        guesses = len(judgments.ids) - int(judgments.originals.sum())
        return (
            f"twotower: {len(judgments.queries):,} queries x {len(judgments.names):,} ids, {len(judgments.ids):,} rows "
            f"of which {guesses:,} are guesses; {len(self.folds)} of {self.config.folds} folds"
        )

    def build(self) -> nn.Module:
        """The model, on the default device, with whatever numbers its memory holds."""
        return TwoTower(self.config, width=self.embedded.width, ids=self.table.ids)

    def draw_weights(self, model: nn.Module) -> None:
        """Draw the initial weights; the biases of the ids are what the training queries say of them."""
        _two_tower(model).draw_weights(self.config.seed, self.criterion.biases())

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        """The module that is compiled."""
        towers = _two_tower(model)
        return [towers.query_tower, towers.id_tower]

    def flops_per_token(self, model: nn.Module) -> float:
        """Of training, per query and fold; the ids go through their tower once for all queries of a pass."""
        towers = _two_tower(model)
        per_query = sum(weight[0].numel() for weight in towers.query_tower.parameters())
        per_query += 0 if towers.heads is None else towers.heads.weight[0].numel()
        per_id = sum(weight[0].numel() for weight in towers.id_tower.parameters())
        queries = self.config.batch_queries / (self.config.accumulation * self.place.world_size)
        return 6.0 * (per_query + self.table.ids * (self.config.output_dim + per_id / queries))

    def optimizers(self, model: nn.Module) -> list[Optimizer]:
        """AdamW, with decay for the layers only. `tune` sets its rate."""
        layers = [module.weight for module in model.modules() if isinstance(module, Stacked)]
        decaying = {id(weight) for weight in layers}
        others = [weight for weight in model.parameters() if id(weight) not in decaying]
        groups = [{"params": layers, "weight_decay": self.config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return [AdamW(groups, lr=self.config.learning_rate)]

    def tune(self, optimizers: Sequence[Optimizer], *, fraction: float, step: int) -> None:
        """Set the rate: a half cosine down to 0."""
        self._step = step
        for group in optimizers[0].param_groups:
            group["lr"] = self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))

    def clip(self, model: nn.Module, largest: float) -> None:
        """Limit the gradients of each fold by themselves, as if it were alone."""
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
        factors = (largest / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The mean over the folds; its gradient is that of each fold's own loss, not a tenth of it."""
        cells = self.table.cells(batch)
        sample = self.criterion.sample(cells)
        scores, alike = model(self.embedded.of(batch), None if sample is None else sample[0])
        of_folds = self.criterion.of_folds(scores, cells, sample) + self.config.diversity * alike.mean(1)
        total = of_folds.sum()
        loss: Tensor = total + (of_folds.mean() - total).detach()
        return loss

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Tensor], int]:
        """nDCG@10 of the inner queries now, and of those held out when the inner ones were best.

        Each rank scores everything, which takes less than telling each other would; all come to the same figures.
        """
        inner = self.evaluator.by_fold(model, [fold.inner for fold in self.folds])
        held_out = self.evaluator.by_fold(model, [fold.held_out for fold in self.folds])
        has_news = self.results.consider(self._step + 1, inner, held_out)
        if has_news and self.place.rank == 0:
            with layout.raise_out_of_space(self.place.directory):
                layout.Disk().write(self.place.directory / RESULTS_FILE, self.results.to_json())
        metrics = {"inner_ndcg_10": sum(inner) / len(inner), **self.results.metrics()}
        device = self.place.device
        return {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in metrics.items()}, 1

    def _digest(self) -> str:
        """Says which data and folds these are, and whose vectors."""
        folds = [
            [fold.number, *(part.tolist() for part in (fold.train, fold.inner, fold.held_out))] for fold in self.folds
        ]
        return hashlib.sha256(json.dumps([self.judgments.digest, self.embedded.key, folds]).encode()).hexdigest()


def build(config: TwoTowerConfig, place: DataContext) -> TwoTowers:
    """The recipe, with its data read and its queries encoded.

    Raises:
        BadConfig: the data or the encoder cannot be read, or there is too little of it.
    """
    skipped_data = SkippedData(config.max_skipped)
    judgments = judgments_of(config.sources, place.run_cache, skipped_data)
    encoding = Encoding(
        encoder=config.encoder,
        max_tokens=config.encoder_max_tokens,
        batch_texts=config.encoder_batch,
        stored=config.embeddings,
    )
    embedded = embed(judgments.texts, encoding, place.run_cache, place.device)
    return TwoTowers(config, place, judgments, embedded, skipped_data)


def _two_tower(model: nn.Module) -> TwoTower:
    assert isinstance(model, TwoTower)
    return model
