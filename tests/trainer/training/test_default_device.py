"""A script may make its tensors on another device than the CPU by default: `torch.set_default_device("cuda")`, say.

What Piton makes for itself stays on the CPU. `meta` stands for the GPU here: a tensor on it holds no numbers.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import piton_trainer
from support import ranks, tiny


def train(directory: Path, *, seed: int, steps: int, background: bool = False) -> tuple[int | None, list[float]]:
    """Train on the CPU, while another device is the default; where it resumed from, and the weights at the end."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    rows = torch.linspace(-1, 1, 32).reshape(8, 4)
    settings = tiny.config(directory, tiny.every(2), background_saves=background)
    with torch.device("meta"), piton_trainer.session(settings) as session:
        restored = session.restore(model=model, optimizer=optimizer)
        for row in session.steps(list(rows), total=steps):
            optimizer.zero_grad()
            model(row).square().sum().backward()
            optimizer.step()
    return None if restored is None else restored.step, model.weight.detach().flatten().tolist()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("background", [False, True], ids=["blocking", "background"])
def test_a_run_saves_and_resumes_under_another_default_device(
    background: bool, world_size: int, tmp_path: Path
) -> None:
    saves = partial(train, background=background)
    whole = ranks.run(world_size, partial(saves, tmp_path / "whole", seed=1, steps=6))
    ranks.run(world_size, partial(saves, tmp_path / "parts", seed=1, steps=3))
    resumed = ranks.run(world_size, partial(saves, tmp_path / "parts", seed=2, steps=6))
    assert [end.result for end in resumed] == [(3, weights) for _, weights in (end.result for end in whole)]
