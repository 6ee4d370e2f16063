"""The recipe `twotower` from top to bottom: judgments, folds, vectors, model, optimizer, rates, loss, metric."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from piton_trainer.checkpoint import layout
from piton_trainer.data.judgment_sources import judgments_of
from piton_trainer.data.judgments import Judgments
from piton_trainer.ranking import ndcg
from piton_trainer.recipes.protocol import Stateful, Workplace
from piton_trainer.recipes.twotower import losses
from piton_trainer.recipes.twotower.config import TwoTowerConfig
from piton_trainer.recipes.twotower.folds import Fold, split
from piton_trainer.recipes.twotower.model import Stacked, TwoTower
from piton_trainer.recipes.twotower.queries import FoldedQueries
from piton_trainer.recipes.twotower.results import Results
from piton_trainer.recipes.twotower.table import Cells, Priors, Table, priors
from piton_trainer.text_encoder import Embedded, Encoding, embed

RANKS = 10
"""nDCG@10."""
RESULTS_FILE = "results.json"
"""Beside the checkpoints."""
_EVAL_QUERIES = 256
"""Of each fold, scored at once."""


class TwoTowers:
    """What the loop needs of `twotower`; see `piton_trainer.recipes.protocol.Recipe`."""

    def __init__(self, config: TwoTowerConfig, place: Workplace, judgments: Judgments, embedded: Embedded) -> None:
        self.config = config
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
        self.priors = [priors(judgments, fold.train) for fold in self.folds]
        self.results = Results(self.folds, self._baselines())
        self.loader = FoldedQueries(
            self.folds,
            batch=config.batch_queries,
            accumulation=config.accumulation,
            seed=config.seed,
            place=place,
            digest=self._digest(),
        )
        self.tokens_per_step = config.batch_queries * len(self.folds)
        self.extras: Mapping[str, Stateful] = {"results": self.results}
        self._weights = torch.tensor([self._weight(fold) for fold in self.folds], device=place.device)
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
        prior = torch.from_numpy(np.stack([self._bias(known) for known in self.priors]))
        _two_tower(model).draw_weights(self.config.seed, prior)

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        """What is compiled as one."""
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
        columns = None if self.config.loss != "sampled" else self._columns(cells)
        scores, alike = model(self.embedded.of(batch), None if columns is None else columns[0])
        of_folds = self._per_query(scores, cells, columns).mean(1) / self._weights
        of_folds = of_folds + self.config.diversity * alike.mean(1)
        total = of_folds.sum()
        loss: Tensor = total + (of_folds.mean() - total).detach()
        return loss

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Tensor], int]:
        """nDCG@10 of the inner queries now, and of those held out when the inner ones were best.

        Each rank scores everything, which takes less than telling each other would; all come to the same figures.
        """
        inner, held_out = (
            self._ndcg_by_fold(model, [getattr(fold, role) for fold in self.folds]) for role in ("inner", "held_out")
        )
        self.results.consider(self._step + 1, inner, held_out)
        if self.place.rank == 0:
            with layout.full_disk_is_an_end(self.place.directory):
                layout.Disk().write(self.place.directory / RESULTS_FILE, self.results.to_json())
        metrics = {"inner_ndcg_10": sum(inner) / len(inner), **self.results.metrics()}
        device = self.place.device
        return {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in metrics.items()}, 1

    def _per_query(self, scores: Tensor, cells: Cells, columns: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.config.loss == "pointwise":
            weights = cells.weights
            if self.config.candidates == "all":
                weights = weights.masked_fill(weights == 0, 1.0)
            return losses.pointwise(scores, cells.gains, weights)
        if columns is None:
            absent = torch.zeros_like(scores) if self.config.candidates == "all" else _outside(cells.weights > 0)
            return losses.softmax(scores + absent, cells.gains, cells.weights)
        return losses.softmax(scores + columns[1], cells.gains[:, :, columns[0]], cells.weights[:, :, columns[0]])

    def _columns(self, cells: Cells) -> tuple[Tensor, Tensor]:
        """The ids that stand for all in the sampled softmax, and the correction of their scores."""
        relevant = cells.gains * cells.weights > 0
        popularity = torch.from_numpy(np.stack([known.popularity for known in self.priors])).to(relevant.device)
        drawn = torch.multinomial(popularity, self.config.negatives, replacement=True)
        counts = torch.zeros_like(popularity).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=popularity.dtype))
        columns = torch.nonzero(relevant.any(0).any(0) | counts.any(0)).squeeze(1)
        correction = losses.sampling_correction(relevant[:, :, columns], counts[:, columns], popularity[:, columns])
        return columns, correction.float()

    @torch.no_grad()
    def _ndcg_by_fold(self, model: nn.Module, queries: Sequence[Tensor]) -> list[float]:
        sums = torch.zeros(len(queries), dtype=torch.float64, device=self.place.device)
        for first in range(0, max(len(numbers) for numbers in queries), _EVAL_QUERIES):
            batch, counts = _stacked([numbers[first : first + _EVAL_QUERIES] for numbers in queries])
            scores, _ = model(self.embedded.of(batch))
            sums += (self._ndcg(scores, batch) * counts.to(sums.device)).sum(1)
        return [total / len(numbers) for total, numbers in zip(sums.tolist(), queries, strict=True)]

    def _ndcg(self, scores: Tensor, queries: Tensor) -> Tensor:
        """Of judged pairs; guesses neither count nor compete as if they were judged."""
        cells = self.table.cells(queries)
        gains = cells.gains * cells.originals
        if self.config.candidates == "judged":
            scores = scores + _outside(cells.originals)
        return ndcg(scores, gains, k=RANKS)

    def _baselines(self) -> list[float]:
        """nDCG@10 of the means of all queries that are not held out, for each fold."""
        found = []
        for fold in self.folds:
            means = priors(self.judgments, torch.cat([fold.train, fold.inner])).means
            scores = torch.from_numpy(means).to(self.place.device).expand(len(fold.held_out), -1)
            found.append(float(self._ndcg(scores, fold.held_out).mean()))
        return found

    def _bias(self, known: Priors) -> NDArray[np.float64]:
        """What a score of 0 from the towers should mean for each id."""
        mean = known.smoothed.clip(1e-4, 1 - 1e-4)
        bias: NDArray[np.float64] = np.log(mean / (1 - mean)) if self.config.loss == "pointwise" else np.log(mean)
        return bias

    def _weight(self, fold: Fold) -> float:
        """What a training query weighs on average: it makes a mean of the sums that the losses are."""
        judgments = self.judgments
        starts, weights = judgments.starts, np.asarray(judgments.weights, dtype=np.float64)
        if self.config.loss != "pointwise":
            weights = weights * judgments.gains
        sums = np.concatenate([[0.0], np.cumsum(weights)])
        numbers = fold.train.numpy()
        total = float((sums[starts[numbers + 1]] - sums[starts[numbers]]).sum()) / len(numbers)
        if self.config.loss == "pointwise" and self.config.candidates == "all":
            rows = float((starts[numbers + 1] - starts[numbers]).mean())
            total += len(judgments.names) - rows
        return total or 1.0

    def _digest(self) -> str:
        """Says which data and folds these are, and whose vectors."""
        folds = [
            [fold.number, *(part.tolist() for part in (fold.train, fold.inner, fold.held_out))] for fold in self.folds
        ]
        return hashlib.sha256(json.dumps([self.judgments.digest, self.embedded.key, folds]).encode()).hexdigest()


def build(config: TwoTowerConfig, place: Workplace) -> TwoTowers:
    """The recipe, with its data read and its queries encoded.

    Raises:
        BadConfig: the data or the encoder cannot be read, or there is too little of it.
    """
    judgments = judgments_of(config.sources, place.shelf)
    encoding = Encoding(
        encoder=config.encoder,
        max_tokens=config.encoder_max_tokens,
        batch_texts=config.encoder_batch,
        stored=config.embeddings,
    )
    return TwoTowers(config, place, judgments, embed(judgments.texts, encoding, place.shelf, place.device))


def _stacked(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Parts of different lengths as one tensor, and 1 where it has no filler."""
    width = max(len(part) for part in parts)
    numbers, counts = torch.zeros(len(parts), width, dtype=torch.long), torch.zeros(len(parts), width)
    for row, part in enumerate(parts):
        numbers[row, : len(part)], counts[row, : len(part)] = part, 1.0
    return numbers, counts


def _outside(inside: Tensor) -> Tensor:
    """What to add to scores so that others do not compete."""
    return torch.zeros(inside.shape, device=inside.device).masked_fill(~inside, -math.inf)


def _two_tower(model: nn.Module) -> TwoTower:
    assert isinstance(model, TwoTower)
    return model
