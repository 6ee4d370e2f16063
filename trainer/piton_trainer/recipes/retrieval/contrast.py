"""The contrastive loss: each query against all passages of its pass, on all ranks, by Euclidean distance."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows


def distances(queries: Tensor, passages: Tensor) -> Tensor:
    """(queries, passages): squared, in the form of one product. It cancels, so it wants fp32."""
    lengths = queries.square().sum(1, keepdim=True) + passages.square().sum(1)
    return lengths - 2 * queries @ passages.T


def contrastive(queries: Tensor, passages: Tensor, hidden: Tensor, *, first: int, scale: float) -> Tensor:
    """Mean cross-entropy of each query's own passage among all.

    Args:
        queries: (queries, dim).
        passages: (passages, dim), of all ranks; query i's own is number `first` + i.
        hidden: (queries, passages), those that may not count against a query: other answers to it, its own once more.
        first: see above.
        scale: of minus the squared distance over twice the dimensions.
    """
    scores = -distances(queries, passages) * (scale / (2 * queries.shape[1]))
    own = first + torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(scores.masked_fill(hidden, -torch.inf), own)
