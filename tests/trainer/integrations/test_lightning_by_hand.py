"""Modules of Lightning that step by hand, with an optimizer whose step does not come for long."""

from pathlib import Path
from typing import Any

import pytest
import torch

from piton_trainer.checkpoint.format import layout
from piton_trainer.training import step_patience
from support import ends, resume, tiny
from support import tiny_lightning as pl

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own use of torch
]
EPOCHS = 12


class Warming(pl.Adversaries):
    """Its first network has gradients in each batch; its optimizer steps in the first `steps` batches only."""

    steps = 0

    def training_step(self, batch: Any, number: int) -> Any:
        x, y = batch
        self.seen.append(tuple(y.flatten().tolist()))
        first, second = self.optimizers()
        loss = torch.nn.functional.mse_loss(self.critic(self.net(x)), y)
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        if len(self.seen) <= self.steps:
            first.step()
        if event := self.events.get(len(self.seen)):
            event()
        return loss.detach()


class Stopping(Warming):
    """The optimizer has stepped before."""

    steps = 1


def newest(directory: Path) -> int:
    return next(layout.committed(directory / "checkpoints")).manifest.step


@pytest.mark.parametrize("kind", [Warming, Stopping])
def test_a_training_on_machines_that_live_shortly_makes_progress(kind: type[Warming], tmp_path: Path) -> None:
    for attempt in (1, 2):
        with pytest.raises(tiny.LostError):
            pl.train(tmp_path, kind=kind, max_epochs=EPOCHS, validate=False, at={25: ends.vanish})
        assert newest(tmp_path) >= attempt * 5
    assert pl.train(tmp_path, kind=kind, max_epochs=EPOCHS, validate=False).complete is not None


@resume.approximate(
    "Lightning: manual optimization, an optimizer that does not step for 16 batches or more",
    "unless it has accumulated as many before; its gradients until then are lost",
)
@pytest.mark.parametrize("kind", [Warming, Stopping])
def test_a_stop_waits_for_a_few_batches_only_and_says_so(
    kind: type[Warming], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = pl.train(tmp_path, kind=kind, max_epochs=EPOCHS, validate=False, at={7: ends.terminate})
    assert (stopped.code, len(stopped.seen)) == (143, step_patience.FEW + kind.steps)
    assert "the stop waits for the step of optimizer 0, whose gradients of" in caplog.text
    assert "for 16 batches; they are taken as not used, and checkpoints are without them" in caplog.text
    caplog.clear()
    again = pl.train(tmp_path, kind=kind, max_epochs=EPOCHS, validate=False, at={3: ends.terminate})
    assert (again.code, len(again.seen)) == (143, 3 if kind is Warming else step_patience.FEW + 1)
    assert "the checkpoint is without gradients that waited for the step of optimizer 0" in caplog.text


def test_a_stop_waits_for_a_few_seconds_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(step_patience, "STOP_SECONDS", 0.0)
    stopped = pl.train(tmp_path, kind=pl.AccumulatingThree, validate=False, at={4: ends.terminate})
    assert (stopped.code, len(stopped.seen)) == (143, 4)
    assert "stops before the step of optimizer 0; its gradients of 1 batches are not in the checkpoint" in caplog.text
