"""Statistics of the vectors of an evaluation: isotropic or not. Sums only, so that no number is too large.

IsoScore has a closed form: with the participation ratio P = (sum of eigenvalues)^2 / (sum of their squares) of the
covariance it is (P - 1) / (dimensions - 1), from 0 (a line) to 1 (a sphere). It does not see where the middle lies;
the mean cosine, which is 0 for a cloud around the origin, sees little else.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows

from piton_trainer.recipes.retrieval import isotropy

_SLICES = 128
"""Directions along which the vectors are compared with a Gaussian."""


class IsotropyStats:
    """Takes vectors, on every rank its own."""

    def __init__(self, dim: int, device: torch.device) -> None:
        self._along = isotropy.directions(dim, _SLICES, seed=0, step=0, device=device)
        self._sums = {
            "count": torch.zeros(1, dtype=torch.float64, device=device),
            "mean": torch.zeros(dim, dtype=torch.float64, device=device),
            "squares": torch.zeros(dim, dim, dtype=torch.float64, device=device),
            "units": torch.zeros(dim, dtype=torch.float64, device=device),
            "waves": torch.zeros(2, _SLICES, isotropy.KNOTS, dtype=torch.float64, device=device),
        }

    def add(self, vectors: Tensor) -> None:
        """Take some."""
        found = {
            "count": torch.ones_like(vectors[:, :1]),
            "mean": vectors,
            "units": F.normalize(vectors, dim=1),
            "waves": isotropy.waves(vectors, self._along),
        }
        for name, values in found.items():
            self._sums[name] += values.sum(0)
        self._sums["squares"] += vectors.T @ vectors

    def figures(self) -> dict[str, float]:
        """Of the vectors of all ranks; called by all of them."""
        whole = torch.cat([part.flatten() for part in self._sums.values()])
        if dist.is_initialized():
            dist.all_reduce(whole)
        parts = dict(zip(self._sums, torch.split(whole, [part.numel() for part in self._sums.values()]), strict=True))
        count = parts["count"].item()
        mean = parts["mean"] / count
        covariance = parts["squares"].view(len(mean), -1) / count - torch.outer(mean, mean)
        waves = (parts["waves"] / count).view_as(self._sums["waves"])
        return {
            **of_covariance(covariance),
            "mean_cosine": (parts["units"].square().sum().item() - count) / max(1.0, count * (count - 1)),
            "sigreg": isotropy.statistic(waves, 1).item(),
            "std": covariance.diagonal().mean().clamp(min=0).sqrt().item(),
        }


def of_covariance(covariance: Tensor) -> dict[str, float]:
    """IsoScore, and the effective rank as a share of the dimensions."""
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    total = values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    shares = values / total
    participation = (1 / shares.square().sum()).item() if values.sum() > 0 else 1.0
    return {
        "iso_score": (participation - 1) / (len(values) - 1),
        "effective_rank": torch.special.entr(shares).sum().exp().item() / len(values),
    }
