"""Data that Lightning draws besides at the start of an epoch: loaders that wrap, and loaders of rows at random."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler, Subset

from support import ends, resume
from support import tiny_lightning as pl

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own use of torch
]


class Swapping(Sampler[int]):
    """An order that it shuffles in place, with the random numbers of the process."""

    def __init__(self) -> None:
        self.rows = list(range(12))

    def __iter__(self) -> Iterator[int]:
        self.rows = [self.rows[number] for number in torch.randperm(len(self.rows)).tolist()]
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Several(pl.Module):
    """A step has a batch of each loader; the shorter ones begin anew in the middle of an epoch."""

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        x, y = (torch.cat(parts) for parts in zip(*batch.values(), strict=True))
        return super().training_step((x, y), number)

    def train_dataloader(self) -> Any:
        data = Subset(pl.Augmented(), range(12))
        return {
            "long": pl.loader(),
            "short": DataLoader(data, batch_size=6, shuffle=True),
            "shortest": DataLoader(Subset(pl.Augmented(), range(6)), batch_size=6, shuffle=True),
            "remembers": DataLoader(data, batch_size=6, sampler=Swapping()),
        }


class Chosen(pl.Module):
    """Each loader has rows at random, and as many as the number of its epoch says."""

    def train_dataloader(self) -> Any:
        rows = torch.randperm(6 * pl.BATCHES)[: 12 + 6 * self.current_epoch].tolist()
        return DataLoader(Subset(pl.Augmented(), rows), batch_size=6, shuffle=True)


class Data(LightningDataModule):  # type: ignore[misc]
    """Rows by a generator and a count of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.count = torch.Generator().manual_seed(3), 0

    def train_dataloader(self) -> Any:
        self.count += 1
        rows = [*torch.randperm(6 * pl.BATCHES, generator=self.generator)[:17].tolist(), self.count]
        return DataLoader(Subset(pl.Augmented(), rows), batch_size=6, shuffle=True)


def check(tmp_path: Path, stops: tuple[int, ...], **how: Any) -> None:
    """Stop a training at any of these steps, and see that it goes on as if it had not been stopped."""
    make = how.pop("data", lambda: None)
    how |= {"brings_data": True, "validate": False}
    whole = pl.train(tmp_path / "whole", data=make(), **how)
    for stop in stops:
        stopped = pl.train(tmp_path / str(stop), at={stop: ends.terminate}, data=make(), **how)
        resumed = pl.train(tmp_path / str(stop), data=make(), **how)
        assert (stopped.code, resumed.code, resumed.error) == (143, 0, "")
        assert stopped.seen + resumed.seen == whole.seen, stop
        assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items()), stop


@resume.exact("Lightning: shorter loaders that begin anew in an epoch", "max_size_cycle, as in a dict of loaders")
def test_loaders_that_wrap_go_on_in_their_order(tmp_path: Path) -> None:
    check(tmp_path, (4, 8), kind=Several)


@resume.exact("Lightning: rows that train_dataloader chooses at random, or by the epoch")
@pytest.mark.parametrize("every", [0, 2])
def test_a_loader_is_made_again_as_it_was(every: int, tmp_path: Path) -> None:
    check(tmp_path, (1, 3), kind=Chosen, reload_dataloaders_every_n_epochs=every)


def test_a_data_module_chooses_with_what_it_had(tmp_path: Path) -> None:
    check(tmp_path, (2, 4), data=Data, kind=pl.Module, reload_dataloaders_every_n_epochs=1)
