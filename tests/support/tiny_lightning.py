"""A module that trains in hundredths of a second, in a real lightning.Trainer, with all that makes resuming hard.

Dropout, noise, a shuffled loader without state, a schedule, and a validation that draws random numbers.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from piton.contract.manifest import Complete
from piton_trainer.checkpoint import inspect
from piton_trainer.integrations.lightning import PitonCallback
from support import tiny
from support.ends import Event

BATCHES, EPOCHS = 5, 3
STEPS = BATCHES * EPOCHS


@dataclass
class Ran:
    """What an attempt did."""

    code: int = 0
    error: str = ""
    seen: list[tuple[float, ...]] = field(default_factory=list)
    """The batches, in order."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    trainer: Any = None
    complete: Complete | None = None


class Seen(list[tuple[float, ...]]):
    """Batches of one attempt: no checkpoint has them, as it has a plain list of a module."""


class Module(LightningModule):  # type: ignore[misc]
    """Something to train. `events` says what happens in which step (from 1)."""

    def __init__(self, events: Mapping[int, Event]) -> None:
        super().__init__()
        self.events = events
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.seen = Seen()

    def training_step(self, batch: Any, number: int) -> Tensor:
        x, y = batch
        self.seen.append(tuple(y.flatten().tolist()))
        loss = nn.functional.mse_loss(self.net(x + 0.01 * torch.rand(())), y)
        self.log("train_loss", loss)
        is_tried = not self.trainer.checkpoint_callbacks  # by a finder, without our callback
        if not is_tried and (event := self.events.get(self.global_step + 1)):
            event()
        return loss

    def validation_step(self, batch: Any, number: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.net(x + 0.01 * torch.rand(())), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=3 * STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Plateau(Module):
    """Its learning rate falls where a metric does not halve, after each epoch."""

    when, monitor = "epoch", "val_loss"

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5, factor=0.5)
        how = {"scheduler": scheduler, "interval": self.when, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": how}


class PlateauOfSteps(Plateau):
    """It is asked after each step."""

    when, monitor = "step", "train_loss"


class Adversaries(Module):
    """Two networks with an optimizer each, which step by hand."""

    def __init__(self, events: Mapping[int, Event]) -> None:
        super().__init__(events)
        self.automatic_optimization = False
        self.critic = nn.Linear(1, 1)

    def training_step(self, batch: Any, number: int) -> Tensor:
        x, y = batch
        self.seen.append(tuple(y.flatten().tolist()))
        first, second = self.optimizers()
        loss = nn.functional.mse_loss(self.critic(self.net(x)), y)
        for optimizer in (first, second):
            optimizer.zero_grad()
        self.manual_backward(loss)
        first.step()
        second.step()
        if event := self.events.get(len(self.seen)):
            event()
        return loss.detach()

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(self.net.parameters(), lr=0.05), torch.optim.SGD(self.critic.parameters(), lr=0.05)]


class Tunable(Module):
    """A module with what Lightning's finders look for, and uses for it besides the optimizer."""

    def __init__(self, events: Mapping[int, Event]) -> None:
        super().__init__(events)
        self.lr, self.batch_size = 1e-3, 6

    def training_step(self, batch: Any, number: int) -> Tensor:
        return super().training_step(batch, number) * (1 + self.lr)

    def train_dataloader(self) -> Any:
        return DataLoader(Augmented(), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return loader(shuffle=False)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Accumulating(Module):
    """A network that steps by hand, with the gradients of several batches; they may come from two epochs."""

    every, zeroes_first = 2, False

    def __init__(self, events: Mapping[int, Event]) -> None:
        super().__init__(events)
        self.automatic_optimization = False
        self.batches = 0

    def training_step(self, batch: Any, number: int) -> Tensor:
        x, y = batch
        self.seen.append(tuple(y.flatten().tolist()))
        optimizer, is_first = self.optimizers(), self.batches % self.every == 0
        self.batches += 1
        if self.zeroes_first and is_first:
            optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.net(x), y)
        self.manual_backward(loss / self.every)
        if self.batches % self.every == 0:
            optimizer.step()
            if not self.zeroes_first:
                optimizer.zero_grad()
        if event := self.events.get(self.batches):
            event()
        return loss.detach()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches"] = self.batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches = checkpoint["batches"]


class AccumulatingThree(Accumulating):
    """Its gradients are there at all times."""

    every, zeroes_first = 3, True


class Following(Module):
    """A second network that follows the first one in the module's own hooks, and numbers that they count."""

    def __init__(self, events: Mapping[int, Event]) -> None:
        super().__init__(events)
        self.follower = copy.deepcopy(self.net).requires_grad_(False)
        self.scale = 1.0

    def training_step(self, batch: Any, number: int) -> Tensor:
        x, _ = batch
        distance = nn.functional.mse_loss(self.net(x), self.follower(x))
        return super().training_step(batch, number) * self.scale + distance

    def follow(self, share: float) -> None:
        with torch.no_grad():
            for mine, other in zip(self.follower.parameters(), self.net.parameters(), strict=True):
                mine.lerp_(other, share)

    def on_train_batch_end(self, *args: Any) -> None:
        self.follow(0.2)
        self.scale *= 0.99

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.scale *= 1.1

    def on_train_epoch_end(self) -> None:
        self.follow(0.5)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["scale"] = self.scale

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.scale = checkpoint["scale"]


class Stream(IterableDataset[tuple[Tensor, ...]]):
    """Rows without a length, or with one that is too large."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        rows = Augmented().x
        return iter([(row, row.sum(dim=0, keepdim=True)) for row in rows])


class Boastful(Stream):
    """It says that it has more than it has."""

    def __len__(self) -> int:
        return 10 * 6 * BATCHES * 4


def train(
    directory: Path,
    *,
    at: Mapping[int, Event] | None = None,
    config: Any = None,
    callbacks: Any = (),
    validate: bool = True,
    workers: int = 0,
    data: Any = None,
    brings_data: bool = False,
    kind: Callable[[Mapping[int, Event]], Module] = Module,
    **arguments: Any,
) -> Ran:
    """One attempt: a new module, a new Trainer, and random numbers that only the first attempt begins with.

    `brings_data` says that the module has a loader of its own.
    """
    torch.manual_seed(5 if (directory / "checkpoints").exists() else 0)
    module = kind(at or {})
    ours = PitonCallback(config or tiny.config(directory / "checkpoints", tiny.every(4)))
    ran = Ran(trainer=make_trainer([ours, *callbacks], **arguments))
    try:
        given = loader(workers=workers) if data is None and not brings_data else data
        ran.trainer.fit(module, given, loader(shuffle=False) if validate else None)
    except SystemExit as end:
        ran.code, ran.error = int(end.code or 0), str(end)
    ran.seen = module.seen
    ran.weights = {name: value.clone() for name, value in module.state_dict().items()}
    ran.complete = inspect.complete(directory / "checkpoints")
    return ran


def make_trainer(callbacks: list[Any], **arguments: Any) -> Trainer:
    """A Trainer that says nothing."""
    given = {"max_epochs": EPOCHS, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", callbacks=callbacks, **({"devices": 1} | given | arguments))


class Augmented(Dataset[tuple[Tensor, ...]]):
    """Rows that are changed at random by the process that loads them."""

    def __init__(self) -> None:
        self.x = torch.linspace(-1, 1, 6 * BATCHES * 4).reshape(-1, 4).sin()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        row = self.x[index]
        return row, row.sum(dim=0, keepdim=True) + 0.01 * torch.rand(1)


def loader(*, shuffle: bool = True, workers: int = 0) -> DataLoader[tuple[Tensor, ...]]:
    """Batches without a state of their own."""
    return DataLoader(Augmented(), batch_size=6, shuffle=shuffle, num_workers=workers)
