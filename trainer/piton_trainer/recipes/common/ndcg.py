"""nDCG@k as trec_eval computes it, for many rankings at once.

Gains are linear, the discount of rank r is log2(r + 1), and the ideal ranking is made from all judgments. What was not
judged gains nothing, a query without anything relevant counts as 0, and of equal scores (as 32-bit floats) the document
whose name is last in the alphabet comes first. sklearn's `ndcg_score` takes the mean over all orders of equal scores
instead, so the two differ where there are any.
"""

import torch
from torch import Tensor


def ndcg(scores: Tensor, gains: Tensor, *, k: int, ideal: Tensor | None = None) -> Tensor:
    """nDCG@k of each row.

    Args:
        scores: (..., documents). The columns of a row are its documents in the order of their names; a document that
            does not compete has -inf.
        gains: of the same documents, 0 or more; 0 for those that do not compete or were not judged.
        k: ranks that count.
        ideal: (...), see `ideal_dcg`, for rows that do not have all judged documents; None: they have.
    """
    # A stable sort keeps the order of equal scores; from the last name to the first, that is trec_eval's.
    backwards = scores.float().flip(-1)
    order = torch.sort(backwards, dim=-1, descending=True, stable=True).indices[..., :k]
    best = ideal_dcg(gains, k) if ideal is None else ideal
    found = dcg(gains.double().flip(-1).gather(-1, order))
    return torch.where(best > 0, found / best.clamp(min=torch.finfo(best.dtype).tiny), 0.0)


def ideal_dcg(gains: Tensor, k: int) -> Tensor:
    """DCG@k of the best ranking of each row's documents."""
    return dcg(torch.sort(gains.double(), dim=-1, descending=True).values[..., :k])


def dcg(ranked: Tensor) -> Tensor:
    """DCG of gains in the order of their ranks."""
    ranks = torch.arange(1, ranked.shape[-1] + 1, dtype=ranked.dtype, device=ranked.device)
    return (ranked / torch.log2(ranks + 1)).sum(-1)
