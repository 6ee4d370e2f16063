"""What modules, metrics and callbacks of Lightning keep in attributes of their own, after a resume."""

import argparse
import enum
import itertools
import logging
import os
import random
import re
import threading
from collections import defaultdict, deque
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torchmetrics import wrappers

from piton_trainer.integrations import lightning_values
from piton_trainer.integrations.lightning_checkpoint import Made
from support import ends, resume
from support import tiny_lightning as pl

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own use of torch
    pytest.mark.filterwarnings("ignore:.*`compute` method of metric"),
]


class Outputs(pl.Module):
    """Lists of an epoch, as Lightning's guide has them, and a number that is the least of all epochs."""

    def __init__(self, events: Any) -> None:
        super().__init__(events)
        self.outputs: list[torch.Tensor] = []
        self.by_half: dict[int, list[torch.Tensor]] = defaultdict(list)
        self.newest: deque[float] = deque(maxlen=3)
        self.least: Any = None

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        loss = super().training_step(batch, number)
        self.outputs.append(loss)
        self.by_half[number % 2].append(loss.detach())
        self.newest.append(float(loss.detach()))
        self.least = loss.detach() if self.least is None else torch.minimum(loss.detach(), self.least)
        return loss * (1 + sum(self.newest))

    def on_train_epoch_end(self) -> None:
        halves = torch.stack([torch.stack(values).sum() for values in self.by_half.values()])
        self.log("mean_epoch", torch.stack(self.outputs).mean() + halves.sum() + self.least)
        self.outputs.clear()
        self.by_half.clear()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.1, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "mean_epoch"}}


class Wrapped(pl.Module):
    """Metrics around others."""

    def __init__(self, events: Any) -> None:
        super().__init__(events)
        self.extremes = wrappers.MinMaxMetric(torchmetrics.MeanMetric())
        self.tracker = wrappers.MetricTracker(torchmetrics.MeanSquaredError())
        self.running = wrappers.Running(torchmetrics.SumMetric(), window=3)
        self.copies = wrappers.BootStrapper(torchmetrics.MeanSquaredError(), num_bootstraps=2)

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        loss = super().training_step(batch, number)
        if number == 0:
            self.tracker.increment()
        self.extremes(loss.detach())
        for metric in (self.tracker, self.copies):
            metric.update(loss.detach().reshape(1), torch.ones(1))
        self.running.update(loss.detach())
        self.log("running", self.running.compute())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log_dict({f"extremes_{name}": value for name, value in self.extremes.compute().items()})
        self.log_dict(self.copies.compute())
        self.log("tracked", self.tracker.compute_all().sum())
        self.copies.reset()


class Average(Callback):  # type: ignore[misc]
    """An average of the weights, in tensors by name, and a count."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.steps = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.steps += 1
        for name, value in pl_module.state_dict().items():
            self.weights[name].lerp_(value, 1 / self.steps)


class Copy(Callback):  # type: ignore[misc]
    """A module of its own."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.copy = torch.nn.Linear(4, 8)
        self.model = pl_module  # it is in the checkpoint

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.copy.weight.data.lerp_(pl_module.net[0].weight.data, 0.1)


class Saving(Copy):
    """It says itself what it keeps."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self.copy.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.copy.load_state_dict(state_dict)


def logged(ran: pl.Ran) -> dict[str, float]:
    """Return what callbacks see at the end."""
    return {name: float(value) for name, value in ran.trainer.callback_metrics.items()}


@resume.exact("Lightning: lists, numbers and small tensors that a module keeps in attributes")
@resume.exact("Lightning: MinMaxMetric, MetricTracker, Running, BootStrapper of torchmetrics")
@pytest.mark.parametrize("kind", [Outputs, Wrapped])
def test_what_a_module_keeps_comes_back(kind: type[pl.Module], tmp_path: Path) -> None:
    whole = pl.train(tmp_path / "whole", kind=kind)
    for stop in (3, 8):
        assert pl.train(tmp_path / str(stop), kind=kind, at={stop: ends.terminate}).code == 143
        resumed = pl.train(tmp_path / str(stop), kind=kind)
        assert (resumed.code, resumed.error, logged(resumed)) == (0, "", logged(whole)), stop
        assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items()), stop


@resume.exact("Lightning: numbers and tensors in the attributes of a callback without state_dict")
def test_what_a_callback_keeps_comes_back(tmp_path: Path) -> None:
    callbacks = {name: Average() for name in ("whole", "stopped", "resumed")}
    pl.train(tmp_path / "whole", callbacks=[callbacks["whole"]])
    pl.train(tmp_path / "parts", callbacks=[callbacks["stopped"]], at={7: ends.terminate})
    pl.train(tmp_path / "parts", callbacks=[callbacks["resumed"]])
    assert callbacks["resumed"].steps == callbacks["whole"].steps
    for name, weight in callbacks["whole"].weights.items():
        assert torch.equal(callbacks["resumed"].weights[name], weight)


@resume.approximate("Lightning: a module inside of a callback without state_dict", "it begins anew, which is told")
def test_a_module_of_a_callback_that_changes_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pl.train(tmp_path / "told", callbacks=[Copy()])
    assert caplog.text.count("Copy.copy: it changes in the training and is in no checkpoint") == 1
    assert "Copy.model" not in caplog.text
    caplog.clear()
    pl.train(tmp_path / "saved", callbacks=[Saving(), Average()])
    assert "in no checkpoint" not in caplog.text.replace(
        "module.seen: it changes in the training and is in no checkpoint", ""
    )


class Odd(pl.Module):
    """It keeps what no checkpoint can hold."""

    def __init__(self, events: Any) -> None:
        super().__init__(events)
        self.itself: list[Any] = []
        self.itself.append(self.itself)
        self.sparse, self.objects = torch.eye(2).to_sparse(), [object()]
        self.known = {"a", "b"}

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.objects.append(object())
        self.sparse = self.sparse * 2
        self.known.add(str(number))
        return super().training_step(batch, number)


def test_what_no_checkpoint_can_hold_is_told_of_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert pl.train(tmp_path, kind=Odd, at={7: ends.terminate}).code == 143
    assert caplog.text.count("module.objects: it changes in the training and is in no checkpoint") == 1
    resumed = pl.train(tmp_path, kind=Odd)
    assert (resumed.code, resumed.error) == (0, "")
    assert resumed.trainer.lightning_module.known == {"a", "b", *map(str, range(pl.BATCHES))}


class Meter:
    """A mean, as many scripts have one."""

    __slots__ = ("count", "total")

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0

    def update(self, value: float) -> None:
        self.count += 1
        self.total += value


class Phase(enum.Enum):
    """A part of a training."""

    WARM = 0
    MAIN = 1


class OfOtherTypes(pl.Module):
    """It keeps values in what is neither a number nor a list; some does not change, or is saved elsewhere."""

    def __init__(self, events: Any) -> None:
        super().__init__(events)
        self.save_hyperparameters({"scale": 1.0, "width": 8})
        self.meter, self.meters, self.phase = Meter(), {"loss": Meter()}, Phase.WARM
        self.own, self.numbers = argparse.Namespace(first=None), itertools.count()
        self.others = itertools.cycle([1, 2])
        self.log_of_mine, self.settings = logging.getLogger("of mine"), argparse.Namespace(rate=1)
        self.generator = random.Random(3)

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        loss = super().training_step(batch, number)
        value = loss.item()
        self.meter.update(value)
        self.meters["loss"].update(value)
        self.phase, self.own.first, self.newest = Phase.MAIN, self.own.first or value, Meter()
        self.hparams["scale"] *= 0.5
        self.log_of_mine.debug("step")
        self.used = self.optimizers().optimizer
        return loss * (1 + next(self.numbers) + next(self.others) + self.generator.random())


@resume.approximate("Lightning: attributes of other types that change", "they begin anew, which is told")
def test_attributes_of_other_types_are_told_of_if_they_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert pl.train(tmp_path, kind=OfOtherTypes).code == 0
    told = set(re.findall(r"module\.(\w+): it changes in the training and is in no checkpoint", caplog.text))
    expected = {"meter", "meters", "phase", "own", "numbers", "others", "newest", "_hparams"}
    assert told - {"seen"} == expected  # the batches of an attempt are the tests' own


class Noise(Callback):  # type: ignore[misc]
    """It draws from generators of its own."""

    def __init__(self) -> None:
        self.generator, self.other = torch.Generator().manual_seed(2), random.Random(1)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        batch[0].add_(torch.rand(batch[0].shape, generator=self.generator) * self.other.random())


@resume.exact("Lightning: generators that a callback holds")
def test_generators_of_a_callback_go_on_from_where_they_were(tmp_path: Path) -> None:
    whole = pl.train(tmp_path / "whole", callbacks=[Noise()])
    assert pl.train(tmp_path / "parts", callbacks=[Noise()], at={7: ends.terminate}).code == 143
    resumed = pl.train(tmp_path / "parts", callbacks=[Noise()])
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items())


class Patient(EarlyStopping):  # type: ignore[misc]
    """It is one of Lightning's, and scales the weights by a count of its own."""

    def __init__(self) -> None:
        super().__init__("train_loss", patience=99, check_on_train_epoch_end=True, strict=False)
        self.batches, self.seen = 0, [0.0]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.batches += 1
        self.seen.append(self.batches / 7)
        with torch.no_grad():
            next(pl_module.parameters()).mul_(1 + sum(self.seen) / 1000)


@resume.exact("Lightning: attributes of a callback that inherits from one of Lightning's")
def test_what_a_subclass_of_a_callback_of_lightning_keeps_comes_back(tmp_path: Path) -> None:
    whole = pl.train(tmp_path / "whole", callbacks=[Patient()])
    assert pl.train(tmp_path / "parts", callbacks=[Patient()], at={7: ends.terminate}).code == 143
    resumed = pl.train(tmp_path / "parts", callbacks=[Patient()])
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items())


class Opening(Callback):  # type: ignore[misc]
    """It opens its log once, and counts its lines."""

    def __init__(self, path: Path) -> None:
        self.path, self.is_open, self.file, self.number, self.lines = path, False, None, -1, 0

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.is_open:
            self.file = self.path.open("a")  # type: ignore[assignment]
            self.is_open, self.number = True, self.file.fileno()  # type: ignore[attr-defined]
        self.lines += os.write(self.number, b"line\n") // 5

    def on_fit_end(self, *_: Any) -> None:
        self.file.close()  # type: ignore[attr-defined]


class Rotary(pl.Module):
    """A table that no checkpoint of Lightning holds, made for the longest batch so far."""

    table: torch.Tensor

    def __init__(self, events: Any) -> None:
        super().__init__(events)
        self.length = 0
        self.register_buffer("table", torch.empty(0), persistent=False)

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        if self.length < number:
            self.table, self.length = torch.arange(number).cos(), number
        loss: torch.Tensor = super().training_step(batch, number)
        return loss * (2 + self.table[: self.length].sum())


class Bank(pl.Module):
    """A tensor that is too large, and how many of its rows are filled."""

    def __init__(self, events: Any) -> None:
        super().__init__(events)
        self.bank, self.rows = torch.zeros(lightning_values.NUMBERS_MAX + 1), 0

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.bank[self.rows], self.rows = 1.0, self.rows + 1
        assert float(self.bank.sum()) == self.rows
        loss: torch.Tensor = super().training_step(batch, number)
        return loss


class Views(pl.Module):
    """Attributes that are a weight, and a buffer in a dict; they follow the training."""

    mean: torch.Tensor
    weight: torch.Tensor

    def __init__(self, events: Any) -> None:
        super().__init__(events)
        self.register_buffer("mean", torch.zeros(()))
        self.weight, self.stats = dict(self.named_parameters())["net.0.weight"].data, {"mean": self.mean}

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        loss = super().training_step(batch, number)
        self.mean += loss.detach()
        return loss + self.weight.sum() * 0.01 * loss.detach() + self.stats["mean"] * 0


@resume.approximate(
    "Lightning: flags, numbers of files and lengths of large tables in attributes that change once",
    "they begin as in the script, with what they stand for",
)
def test_what_stands_for_an_opened_file_stays_as_the_script_makes_it(tmp_path: Path) -> None:
    callbacks = {name: Opening(tmp_path / f"{name}.log") for name in ("stopped", "resumed")}
    assert pl.train(tmp_path / "parts", callbacks=[callbacks["stopped"]], at={7: ends.terminate}).code == 143
    callbacks["stopped"].file.close()  # type: ignore[attr-defined]
    resumed = pl.train(tmp_path / "parts", callbacks=[callbacks["resumed"]])
    assert (resumed.code, resumed.error) == (0, "")
    lines = [(tmp_path / f"{name}.log").read_text().count("line") for name in callbacks]
    assert sum(lines) == callbacks["resumed"].lines, "a count that goes on comes back"


@resume.exact("Lightning: buffers that are not persistent; attributes that are views of weights and buffers")
@pytest.mark.parametrize("kind", [Rotary, Views])
def test_tables_and_views_are_what_they_were(kind: type[pl.Module], tmp_path: Path) -> None:
    whole = pl.train(tmp_path / "whole", kind=kind)
    assert (whole.code, whole.error) == (0, "")
    assert pl.train(tmp_path / "parts", kind=kind, at={7: ends.terminate}).code == 143
    resumed = pl.train(tmp_path / "parts", kind=kind)
    assert (resumed.code, resumed.error) == (0, "")
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items())


def test_a_count_of_rows_stays_with_rows_that_are_too_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert pl.train(tmp_path, kind=Bank, at={7: ends.terminate}).code == 143
    resumed = pl.train(tmp_path, kind=Bank)
    assert (resumed.code, resumed.error) == (0, "")
    assert "module: bank changed once in the training" in caplog.text
    assert "so rows begins as the script makes it" in caplog.text


class Busy(Callback):  # type: ignore[misc]
    """What nobody can look at in peace: a row that another thread fills, and what refuses to be looked at."""

    def on_fit_start(self, *_: Any) -> None:
        self.row: deque[int] = deque(maxlen=50)
        self.sparse, self.lazy = torch.eye(2).to_sparse(), torch.nn.LazyLinear(3)
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._fill)
        self.thread.start()

    def _fill(self) -> None:
        while not self.is_over.is_set():
            self.row.append(1)

    def on_fit_end(self, *_: Any) -> None:
        self.is_over.set()
        self.thread.join()


def test_what_cannot_be_looked_at_ends_nothing(tmp_path: Path) -> None:
    ran = pl.train(tmp_path, callbacks=[Busy()])
    assert (ran.code, ran.error) == (0, "")


def test_a_checkpoint_of_an_earlier_version_has_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(Made, "state_dict", partialmethod(_as_before, Made.state_dict))
        assert pl.train(tmp_path, kind=Outputs, at={7: ends.terminate}).code == 143
    assert pl.train(tmp_path, kind=Outputs).code == 0


def _as_before(made: Any, state_dict: Any) -> dict[str, Any]:
    return {name: part for name, part in state_dict(made).items() if name in ("version", "is_whole", "results")}
