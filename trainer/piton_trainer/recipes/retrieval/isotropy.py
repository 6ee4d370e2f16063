"""Distances of vectors from a standard Gaussian, or from a sphere, as losses over all ranks.

SIGReg (arXiv 2511.08544, formula 5): along a unit direction a, with N vectors z,

    T(a) = N * integral of |mean(exp(i t a.z)) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt

which is the Epps-Pulley statistic; SIGReg is its mean over directions. It keeps its factor N, as its authors' does: of
Gaussian vectors it is about 1, whatever N, and of others it grows with N. The integral is a trapezoid over t from -3 to
3, of which one half is computed, as the other is its mirror image.
"""

import torch
from torch import Tensor

from piton_trainer.runtime.collectives import mean_over_ranks, world_size

KNOTS, RANGE = 17, 3.0
"""Of the trapezoid, from 0; the authors' own."""


def directions(dim: int, count: int, *, seed: int, step: int, device: torch.device) -> Tensor:
    """(dim, count): random unit vectors, the same on every rank and device for equal numbers."""
    rng = torch.Generator().manual_seed((seed << 32) + step)
    drawn = torch.randn(dim, count, generator=rng)
    unit: Tensor = drawn / drawn.norm(dim=0)
    return unit.to(device)


def waves(vectors: Tensor, along: Tensor) -> Tensor:
    """(vectors, 2, directions, knots): cosine and sine of the vectors' projections, times each knot."""
    angles = (vectors @ along).unsqueeze(-1) * _knots(vectors.device)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def statistic(mean_waves: Tensor, count: int) -> Tensor:
    """SIGReg of so many vectors whose waves have this mean."""
    knots = _knots(mean_waves.device)
    gaussian = torch.exp(-knots.square() / 2)
    width = RANGE / (KNOTS - 1)
    weights = 2 * width * gaussian
    weights[0] /= 2
    weights[-1] /= 2
    gaps = (mean_waves[0] - gaussian).square() + mean_waves[1].square()
    return (gaps @ weights.to(gaps.dtype)).mean() * count


def sigreg(vectors: Tensor, along: Tensor) -> Tensor:
    """SIGReg of the vectors of all ranks, each of which has as many."""
    mean = mean_over_ranks(waves(vectors, along).mean(0))
    return statistic(mean, len(vectors) * world_size())


def covariance(vectors: Tensor) -> Tensor:
    """RAGCUN's: how far the covariance over all ranks is from a multiple of the identity."""
    found = _covariance(vectors)
    sphere = torch.diag(found.diagonal().mean().expand(len(found)))
    norm: Tensor = torch.linalg.matrix_norm(found - sphere)
    return norm / len(found)


def spread(vectors: Tensor) -> Tensor:
    """The mean over the dimensions of how far the standard deviation over all ranks is from 1, squared."""
    mean, squares = mean_over_ranks(torch.stack([vectors.mean(0), vectors.square().mean(0)]))
    deviations: Tensor = (squares - mean.square()).clamp(min=1e-12).sqrt()
    return (deviations - 1).square().mean()


def _covariance(vectors: Tensor) -> Tensor:
    mean = mean_over_ranks(vectors.mean(0))
    return mean_over_ranks(vectors.T @ vectors / len(vectors)) - torch.outer(mean, mean)


def _knots(device: torch.device) -> Tensor:
    return torch.linspace(0.0, RANGE, KNOTS, device=device)
