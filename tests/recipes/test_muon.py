"""One Newton-Schulz iteration for all matrices of a shape ends where torch's Muon ends."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Muon

from piton_trainer.recipes.charlm import muon
from piton_trainer.recipes.charlm.muon import BatchedMuon

SHAPES = [(16, 16), (64, 16), (16, 64), (16, 16), (64, 16), (16, 16)]
SETTINGS: list[dict[str, Any]] = [
    {"lr": 0.02, "weight_decay": 0.0},
    {"lr": 0.02, "weight_decay": 0.1, "nesterov": False},
    {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
]


def trained(kind: type[Muon], settings: dict[str, Any], *, steps: int = 4) -> tuple[list[Tensor], Muon]:
    dice = torch.Generator().manual_seed(1)
    weights = [nn.Parameter(torch.randn(shape, generator=dice)) for shape in SHAPES]
    optimizer = kind(weights, **settings)
    for step in range(steps):
        for number, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=dice)
            if (step, number) == (0, 3):
                weight.grad = None  # this one takes no part in the step
        optimizer.step()  # type: ignore[no-untyped-call]
    return [weight.detach() for weight in weights], optimizer


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("numbers", [1, 600, muon.BATCH_NUMBERS])
def test_it_ends_where_torchs_muon_ends(
    settings: dict[str, Any], numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "BATCH_NUMBERS", numbers)

    theirs, their_optimizer = trained(Muon, settings)
    ours, our_optimizer = trained(BatchedMuon, settings)

    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=4 * 0.01 * settings["lr"])  # four updates in bfloat16
    ours_kept, theirs_kept = our_optimizer.state_dict(), their_optimizer.state_dict()
    assert ours_kept["param_groups"] == theirs_kept["param_groups"]
    torch.testing.assert_close(ours_kept["state"], theirs_kept["state"], rtol=0, atol=0)


def test_a_checkpoint_of_torchs_muon_goes_on_in_it_and_the_other_way_round() -> None:
    _, theirs = trained(Muon, SETTINGS[0])
    _, ours = trained(BatchedMuon, SETTINGS[0], steps=1)

    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())

    assert ours.state_dict()["state"].keys() == theirs.state_dict()["state"].keys()
    ours.step()  # type: ignore[no-untyped-call]


def test_the_closure_is_called_with_gradients() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    optimizer = BatchedMuon([weight], lr=0.1)

    def closure() -> Tensor:
        loss = weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    before = weight.detach().clone()
    loss = optimizer.step(closure)
    assert loss.item() > 0
    assert not torch.equal(before, weight)
