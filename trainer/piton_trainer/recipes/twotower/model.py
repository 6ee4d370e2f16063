"""Two towers per fold, all folds in one model: each weight has the folds as its first dimension.

    text -> frozen encoder -> vector -> views -> layers -> unit vector --+
                                                                         +-- similarity / temperature + bias of the id
                              id -> embedding -> layers -> unit vector --+

Ten small models side by side cost little more than one, as a step of one is mostly the starting of its operations. The
folds share nothing but the time: no sum runs over the first dimension.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows

from piton_trainer.recipes.twotower.config import TwoTowerConfig

_EMBEDDING_SPREAD = 0.1


class Stacked(nn.Module):
    """A linear layer per fold: (folds, rows, inputs) -> (folds, rows, outputs)."""

    def __init__(self, folds: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(folds, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(folds, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """All folds at once."""
        return torch.baddbmm(self.bias, x, self.weight)


class Tower(nn.Module):
    """Layers with GELU and dropout between them."""

    def __init__(self, folds: int, widths: list[int], dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Stacked(folds, inputs, outputs) for inputs, outputs in pairwise(widths))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(folds, rows, first width) -> (folds, rows, last width)."""
        for number, layer in enumerate(self.layers):
            x = layer(F.dropout(F.gelu(x), self.dropout, self.training) if number else x)
        return x


class TwoTower(nn.Module):
    """Scores of ids for queries, and how alike the views of the queries are."""

    def __init__(self, config: TwoTowerConfig, *, width: int, ids: int) -> None:
        """For vectors of this width, and so many ids."""
        super().__init__()
        self.config = config
        folds = len(config.fold_numbers)
        views = config.heads * config.head_width
        self.heads = Stacked(folds, width, views) if views else None
        self.query_tower = Tower(folds, [views or width, *config.query_layers, config.output_dim], config.dropout)
        self.embedding = nn.Parameter(torch.empty(folds, ids, config.id_width))
        self.id_tower = Tower(folds, [config.id_width, *config.id_layers, config.output_dim], config.dropout)
        self.prior = nn.Parameter(torch.empty(folds, 1, ids))
        """The bias of each id."""

    def forward(self, vectors: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores (folds, queries, ids) in fp32, and how alike the views of each query are (folds, queries).

        With `columns`, the scores of these ids only.
        """
        alike = vectors.new_zeros(vectors.shape[:2])
        if self.heads is not None:
            vectors = self.heads(vectors)
            alike = _alike(vectors.view(*vectors.shape[:2], self.config.heads, -1))
        embedding = self.embedding if columns is None else self.embedding[:, columns]
        prior = self.prior if columns is None else self.prior[:, :, columns]
        queries, ids = self.query_tower(vectors).float(), self.id_tower(embedding).float()
        with torch.autocast(vectors.device.type, enabled=False):  # halves of bits would make scores equal
            if self.config.similarity == "cosine":
                queries, ids = F.normalize(queries, dim=-1), F.normalize(ids, dim=-1)
            return torch.baddbmm(prior.float(), queries, ids.transpose(1, 2), alpha=1 / self.config.temperature), alike

    @torch.no_grad()
    def draw_weights(self, seed: int, prior: Tensor) -> None:
        """Draw the initial weights of each fold from its own dice, and begin with what is known of the ids."""
        for place, fold in enumerate(self.config.fold_numbers):
            generator = torch.Generator(device=self.prior.device).manual_seed(seed * 65_536 + fold)
            for name, weight in self.named_parameters():
                _draw(name, weight[place], generator)
        self.prior.copy_(prior.unsqueeze(1))


def _draw(name: str, weight: Tensor, generator: torch.Generator) -> None:
    """As `nn.Linear` does, but for biases, which begin at zero."""
    if name == "embedding":
        weight.normal_(0.0, _EMBEDDING_SPREAD, generator=generator)
    elif name.endswith("bias"):
        weight.zero_()
    elif name != "prior":
        bound = 1 / math.sqrt(weight.shape[0])
        weight.uniform_(-bound, bound, generator=generator)


def _alike(views: Tensor) -> Tensor:
    """Mean squared cosine between different views of a query: (folds, queries, views, width) -> (folds, queries)."""
    count = views.shape[-2]
    if count == 1:
        return views.new_zeros(views.shape[:2])
    unit = F.normalize(views, dim=-1)
    cosines = unit @ unit.transpose(-1, -2)
    apart = cosines.square().sum((-1, -2)) - cosines.diagonal(dim1=-2, dim2=-1).square().sum(-1)
    return apart / (count * (count - 1))
