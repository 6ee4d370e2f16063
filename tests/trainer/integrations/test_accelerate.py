"""A loop over accelerate on two ranks, killed and resumed: each rank has the batches and weights of a whole run."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import piton_trainer
from support import ranks, resume, tiny
from support.accelerators import forget_accelerators

pytestmark = [
    pytest.mark.filterwarnings("ignore:OMP_NUM_THREADS"),  # accelerate's, about each process
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata's
]

ROWS, EPOCHS = 39, 3
SETTINGS: dict[str, dict[str, bool]] = {
    "as it is": {},
    "with a seed": {"use_seedable_sampler": True},
    "with batches that are split": {"split_batches": True},
    "with state": {"use_stateful_dataloader": True},
}


def train(directory: Path, settings: dict[str, bool], *, seed: int, kill: int = 0) -> dict[int, tuple[float, float]]:
    """Return the sum of each batch, and of the weights after it, by step."""
    seen: dict[int, tuple[float, float]] = {}
    with piton_trainer.session(tiny.config(directory, tiny.every(2))) as session:
        forget_accelerators()  # a test before this one may have made one in this process
        configuration = DataLoaderConfiguration(**settings)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, dataloader_config=configuration)
        torch.manual_seed(seed)
        model: Any = nn.Linear(4, 1)
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.01)
        data = TensorDataset(torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1)))
        model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=2, shuffle=True))
        session.restore(model=model, optimizer=optimizer, loader=loader)
        for (x,) in session.steps(loader, epochs=EPOCHS):
            with accelerator.accumulate(model):
                accelerator.backward(model(x).square().mean())
                optimizer.step()
                optimizer.zero_grad()
            seen[session.step] = (x.sum().item(), float(model.module.weight.detach().sum()))
            if session.step + 1 == kill:
                os.kill(os.getpid(), signal.SIGKILL)
    return seen


@resume.exact("accelerate: a loop of one's own on two ranks, with accumulation, killed in the middle of an epoch")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_loop_of_accelerate_goes_on_exactly_on_two_ranks(settings: dict[str, bool], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", settings)
    for kill in (13, 20):  # in the middle, and where a batch that is read ahead is the last one of the epoch
        killed = partial(train, tmp_path / str(kill), settings, seed=0, kill=kill)
        with ranks.start(2, killed) as world:
            world.end_as_torchrun_does(0.0)
        for rank, seen in enumerate(run(tmp_path / str(kill), settings, seed=9)):
            assert seen == {step: whole[rank][step] for step in seen}, f"rank {rank}, killed in step {kill}"
            assert 0 < min(seen) < kill


def run(directory: Path, settings: dict[str, bool], *, seed: int = 0) -> list[dict[int, tuple[float, float]]]:
    """Return what each rank has seen in a run that finishes."""
    ends = ranks.run(2, partial(train, directory, settings, seed=seed))
    assert [end.code for end in ends] == [0, 0]
    return [end.result for end in ends]
