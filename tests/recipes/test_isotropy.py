"""Isotropy: SIGReg's values for clouds that are known, IsoScore against its definition, ranks against one rank."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that everybody knows

import piton_trainer
from piton_trainer.config import Config
from piton_trainer.recipes.retrieval import isotropy
from piton_trainer.recipes.retrieval.isotropy_stats import IsotropyStats, of_covariance
from support import ranks

CPU = torch.device("cpu")
DIM = 512


def gaussian(count: int, dim: int = DIM, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def along(dim: int = DIM, count: int = 64, step: int = 0) -> Tensor:
    return isotropy.directions(dim, count, seed=1, step=step, device=CPU)


# SIGReg.


@pytest.mark.parametrize(
    ("cloud", "count", "value", "within"),
    [
        (lambda z: z, 4096, 0.985, 0.15),
        (lambda z: z, 64, 1.19, 0.3),
        (lambda z: 0.5 * z, 4096, 620, 10),
        (lambda z: z + 1, 4096, 1542, 250),
        (lambda z: F.normalize(z, dim=1), 4096, 1634, 5),
        (torch.zeros_like, 4096, 1647, 5),
    ],
    ids=["gaussian", "few", "half as wide", "beside the origin", "of length 1", "collapsed"],
)
def test_it_tells_a_gaussian_from_what_is_none(cloud: Any, count: int, value: float, within: float) -> None:
    found = isotropy.sigreg(cloud(gaussian(count)), along(count=128)).item()
    assert found == pytest.approx(value, abs=within)


def test_it_is_the_integral_that_the_paper_has() -> None:
    vectors, directions = gaussian(50, 8) * 0.7 + 0.1, along(8, 3)
    knots = np.linspace(-3, 3, 33)
    values = []
    for direction in directions.T:
        angles = knots[:, None] * (vectors @ direction).numpy()
        gaps = np.abs(np.exp(1j * angles).mean(1) - np.exp(-(knots**2) / 2)) ** 2
        values.append(50 * np.trapezoid(gaps * np.exp(-(knots**2) / 2), knots))
    assert isotropy.sigreg(vectors, directions).item() == pytest.approx(np.mean(values), rel=1e-4)


def test_its_gradient_moves_a_cloud_towards_a_gaussian() -> None:
    vectors = (0.5 * gaussian(256, 16) + 0.5).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    for step in range(60):
        loss = isotropy.sigreg(vectors, along(16, 32, step))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert isotropy.sigreg(vectors.detach(), along(16, 64, 1000)).item() < 3
    assert vectors.mean().item() == pytest.approx(0, abs=0.1)
    assert vectors.std().item() == pytest.approx(1, abs=0.1)


def test_directions_are_new_at_each_step_and_the_same_whenever_it_is_repeated() -> None:
    assert torch.equal(along(step=7), along(step=7))
    assert not torch.equal(along(step=7), along(step=8))
    assert torch.allclose(along().norm(dim=0), torch.ones(64))


# The covariance, and the spread.


def test_a_sphere_has_no_fault_and_a_stretched_one_has() -> None:
    corners = torch.cat([torch.eye(4), -torch.eye(4)]) * 2.0  # its covariance is the identity
    assert isotropy.covariance(corners).item() == pytest.approx(0, abs=1e-6)
    assert isotropy.spread(corners).item() == pytest.approx(0, abs=1e-6)
    stretched = corners * torch.tensor([3.0, 1.0, 1.0, 1.0])
    assert isotropy.covariance(stretched).item() == pytest.approx(
        math.sqrt(36 + 3 * 4) / 4
    )  # variances 9 1 1 1, mean 3
    assert isotropy.spread(stretched).item() == pytest.approx(1.0)
    assert isotropy.covariance(stretched + 5).item() == pytest.approx(math.sqrt(48) / 4, rel=1e-4)


def of_a_rank(directory: Any) -> tuple[list[float], np.ndarray]:
    vectors = gaussian(12, 6, seed=3) * 0.8 + 0.2
    with piton_trainer.session(Config(checkpoint_dir=directory)) as session:
        mine = vectors[session.rank :: session.world_size].clone().requires_grad_()
        losses = [isotropy.sigreg(mine, along(6, 4)), isotropy.covariance(mine), isotropy.spread(mine)]
        (sum(losses) / session.world_size).backward()  # type: ignore[union-attr]
        assert mine.grad is not None
        return [loss.item() for loss in losses], mine.grad.numpy()


def test_two_ranks_have_the_statistics_and_the_gradient_of_one(tmp_path: Any) -> None:
    # DDP divides the sum of the ranks' gradients by their number, which is done by hand here.
    losses, gradient = of_a_rank(tmp_path)
    one, other = (end.result for end in ranks.run(2, partial(of_a_rank, tmp_path)))
    assert one[0] == pytest.approx(losses, rel=1e-5)
    assert other[0] == pytest.approx(losses, rel=1e-5)
    assert np.allclose(np.stack([one[1], other[1]], axis=1).reshape(12, 6), gradient, atol=1e-5)


# The figures of a cloud.


def by_definition(vectors: Tensor) -> float:
    """IsoScore as its authors define it, step by step."""
    centred = vectors.double() - vectors.double().mean(0)
    variances = torch.linalg.svdvals(centred).square() / len(vectors)
    dim = vectors.shape[1]
    normalized = variances * math.sqrt(dim) / variances.norm()
    defect = (normalized - 1).norm() / math.sqrt(2 * (dim - math.sqrt(dim)))
    uniform = (dim - defect**2 * (dim - math.sqrt(dim))) ** 2 / dim**2
    return float((dim * uniform - 1) / (dim - 1))


@pytest.mark.parametrize("scales", [[1.0] * 6, [5.0, 1, 1, 1, 1, 1], [9.0, 5, 3, 1, 0.5, 0.1], [1.0, 0, 0, 0, 0, 0]])
def test_isoscores_closed_form_is_its_definition(scales: list[float]) -> None:
    vectors = gaussian(500, 6) * torch.tensor(scales) + 3
    found = of_covariance(torch.cov(vectors.double().T))
    assert found["iso_score"] == pytest.approx(by_definition(vectors), abs=1e-9)


def test_a_sphere_has_isoscore_1_and_a_line_has_0() -> None:
    assert of_covariance(torch.eye(8)) == {"iso_score": pytest.approx(1), "effective_rank": pytest.approx(1)}
    line = torch.zeros(8, 8)
    line[0, 0] = 3.0
    assert of_covariance(line) == {"iso_score": pytest.approx(0), "effective_rank": pytest.approx(1 / 8)}
    assert of_covariance(torch.zeros(8, 8))["iso_score"] == pytest.approx(0)


def test_figures_of_parts_are_those_of_the_whole() -> None:
    vectors = gaussian(300, 6) * torch.tensor([3.0, 2, 1, 1, 1, 0.5]) + 1
    stats = IsotropyStats(6, CPU)
    for part in torch.split(vectors, 77):
        stats.add(part)
    found = stats.figures()
    units = F.normalize(vectors.double(), dim=1)
    others = (units @ units.T).fill_diagonal_(0).sum().item() / (300 * 299)
    assert found["mean_cosine"] == pytest.approx(others, rel=1e-5)
    assert found["std"] == pytest.approx(vectors.var(0, correction=0).mean().sqrt().item(), rel=1e-5)
    assert found["iso_score"] == pytest.approx(by_definition(vectors), rel=1e-5)
    assert found["sigreg"] == pytest.approx(
        isotropy.sigreg(vectors, isotropy.directions(6, 128, seed=0, step=0, device=CPU)).item() / 300, rel=1e-5
    )
