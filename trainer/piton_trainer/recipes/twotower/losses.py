"""Losses over (…, queries, ids): each returns one number per query, to be divided by what a query weighs on average.

They are sums and not means, so that ranks that share a batch add up to what one alone would compute.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows


def pointwise(scores: Tensor, gains: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of each pair against its gain, taken for a probability; weight 0 is no pair."""
    return F.binary_cross_entropy_with_logits(scores, gains, weight=weights, reduction="none").sum(-1)


def softmax(scores: Tensor, gains: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of the softmax over the ids against their gains; a score of -inf does not compete.

    A pair weighs its gain times its weight, so a query with nothing relevant weighs nothing.
    """
    mass = gains * weights
    likelihood = torch.log_softmax(scores, dim=-1).masked_fill(mass == 0, 0.0)
    return -(mass * likelihood).sum(-1)


def sampling_correction(relevant: Tensor, counts: Tensor, probabilities: Tensor) -> Tensor:
    """Return the correction of the scores of some ids, so that their softmax approximates that over all ids.

    The relevant ids of a query are there for certain, and are not corrected. For every other one, `counts[i]` of
    `counts.sum()` draws stand for it, of which `counts.sum() * probabilities[i]` were to be expected; its weight in the
    sum is the ratio of the two, the logQ correction being its logarithm. A draw that hits an id that is relevant for
    the query is an accident, and left out; an id that is here for the sake of another query was not drawn, and is too.

    Args:
        relevant: (…, queries, columns), whether an id is relevant for the query.
        counts: (…, columns), how often it was drawn.
        probabilities: (…, columns), of being drawn once.
    """
    draws = counts.sum(-1, keepdim=True)
    weights = (counts / (draws * probabilities)).log()  # -inf where nothing was drawn
    return weights.unsqueeze(-2).expand_as(relevant).masked_fill(relevant, 0.0)
