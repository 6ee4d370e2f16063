"""Metrics of an epoch of Lightning that is resumed in its middle, and what follows from them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import Callback, EarlyStopping, StochasticWeightAveraging

from support import ends, resume
from support import tiny_lightning as pl

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own use of torch
]


class Mean(pl.Module):
    """Its learning rate follows from the mean loss of the epoch."""

    def note(self, loss: torch.Tensor) -> None:
        self.log("mean", loss, on_step=True, on_epoch=True)

    def training_step(self, batch: Any, number: int) -> Any:
        loss = super().training_step(batch, number)
        self.note(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.1, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "mean_epoch"}}


class Largest(Mean):
    """The largest value of an epoch, which is logged in some batches only."""

    def note(self, loss: torch.Tensor) -> None:
        if self.global_step % 2 == 0:
            self.log("mean_epoch", loss, on_step=False, on_epoch=True, reduce_fx="max")


class OfTorchmetrics(Mean):
    """The mean is kept by a metric."""

    def __init__(self, events: Any) -> None:
        super().__init__(events)
        self.metric, self.values = torchmetrics.MeanMetric(), torchmetrics.CatMetric()

    def note(self, loss: torch.Tensor) -> None:
        self.metric(loss)
        self.values.update(loss)
        self.log("mean_epoch", self.metric, on_step=False, on_epoch=True)

    def on_train_epoch_end(self) -> None:
        self.log("values", self.values.compute().sum())
        self.values.reset()


class Noting(Callback):  # type: ignore[misc]
    """It notes what callbacks see after each batch and epoch."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.note(f"step {trainer.global_step}", trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.note(f"epoch {trainer.current_epoch}", trainer)

    def note(self, when: str, trainer: Any) -> None:
        self.seen[when] = {name: float(value) for name, value in trainer.callback_metrics.items()}


@resume.exact("Lightning: metrics of an epoch", "self.log(on_epoch=True), torchmetrics, and what follows from them")
@pytest.mark.parametrize("kind", [Mean, Largest, OfTorchmetrics])
@pytest.mark.parametrize("stop", [3, 5, 7, 9])
def test_metrics_of_an_epoch_are_of_all_its_batches(kind: type[Mean], stop: int, tmp_path: Path) -> None:
    noted: dict[str, Noting] = {"whole": Noting(), "stopped": Noting(), "resumed": Noting()}
    whole = pl.train(tmp_path / "whole", kind=kind, callbacks=[noted["whole"]])
    pl.train(tmp_path / "parts", kind=kind, callbacks=[noted["stopped"]], at={stop: ends.terminate})
    resumed = pl.train(tmp_path / "parts", kind=kind, callbacks=[noted["resumed"]])
    assert noted["stopped"].seen | noted["resumed"].seen == noted["whole"].seen
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items())


@pytest.mark.parametrize("stop", [2, 3, 8])
def test_early_stopping_judges_a_whole_epoch(stop: int, tmp_path: Path) -> None:
    def train(directory: Path, **arguments: Any) -> pl.Ran:
        stopping = EarlyStopping("mean_epoch", patience=1, min_delta=0.3)
        return pl.train(directory, kind=Mean, validate=False, max_epochs=8, callbacks=[stopping], **arguments)

    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", at={stop: ends.terminate})
    assert train(tmp_path / "parts").trainer.global_step == whole.trainer.global_step


@resume.exact("Lightning: ReduceLROnPlateau by epoch, resumed in the middle of one")
@pytest.mark.parametrize("stop", [3, 5, 8, 10])
def test_a_schedule_by_epoch_takes_its_step_at_the_end_of_an_epoch_that_is_resumed(stop: int, tmp_path: Path) -> None:
    whole = pl.train(tmp_path / "whole", kind=Falling)
    pl.train(tmp_path / "parts", kind=Falling, at={stop: ends.terminate})
    resumed = pl.train(tmp_path / "parts", kind=Falling)
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items())


class Falling(pl.Plateau):
    """Its learning rate falls after each epoch but the first."""

    def configure_optimizers(self) -> Any:
        how = super().configure_optimizers()
        how["lr_scheduler"]["scheduler"].threshold = 0.9
        return how


@resume.exact("Lightning: StochasticWeightAveraging, without batch norm")
@pytest.mark.filterwarnings("ignore:.*SWA is currently only supported every epoch")
@pytest.mark.parametrize("validate", [True, False])
def test_an_average_of_weights_goes_on_in_any_epoch(validate: bool, tmp_path: Path) -> None:
    def train(directory: Path, **arguments: Any) -> pl.Ran:
        callbacks = [StochasticWeightAveraging(0.01, swa_epoch_start=2)]
        return pl.train(directory, validate=validate, max_epochs=4, callbacks=callbacks, **arguments)

    whole = train(tmp_path / "whole")
    for stop in (3, 5, 7, 10, 12):
        train(tmp_path / str(stop), at={stop: ends.terminate})
        resumed = train(tmp_path / str(stop))
        assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items()), stop
