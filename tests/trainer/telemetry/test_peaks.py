"""MFU: what a card can do, and which share of it a training takes."""

import pytest

from piton_trainer.recipes.charlm import size
from piton_trainer.recipes.charlm.config import CharlmConfig
from piton_trainer.telemetry.peak_flops import mfu_per_token, peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
    ],
)
def test_the_peak_of_a_card_is_its_own_and_not_its_familys(name: str, peak: float) -> None:
    assert peak_flops(name) == peak


@pytest.mark.parametrize(
    "name",
    ["Tesla T4", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA A100-SXM4-40GB MIG 3g.20gb"],
)
def test_a_card_that_nobody_looked_up_has_no_peak(name: str) -> None:
    assert peak_flops(name) is None


def test_the_seeds_730_steps_an_hour_would_be_more_than_eight_h100_on_pcie_can_do() -> None:
    per_token = size.flops_per_token(CharlmConfig(depth=64, vocabulary_multiple=32), 19)
    assert per_token == pytest.approx(8.375e10, rel=1e-3)
    share = mfu_per_token(per_token, peak=756e12, devices=8) * 730 * 524_288 / 3600
    assert share == pytest.approx(1.47, abs=0.01)
