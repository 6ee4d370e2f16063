"""`reload_dataloaders_every_n_epochs`: the loaders of Lightning that are made anew, with what they remember."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Sampler, Subset

from piton_trainer.integrations.lightning_data import Makings
from support import ends, resume
from support import tiny_lightning as pl

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own use of torch
]
EPOCHS = 4


class Counting(Sampler[int]):
    """An order that follows from the number of epochs that it has made."""

    def __init__(self) -> None:
        self.made = 0

    def __iter__(self) -> Iterator[int]:
        self.made += 1
        generator = torch.Generator().manual_seed(self.made)
        return iter(torch.randperm(len(self), generator=generator).tolist())

    def __len__(self) -> int:
        return 6 * pl.BATCHES


class Shuffled(pl.Module):
    """The random numbers of the process decide on the order."""

    def train_dataloader(self) -> Any:
        return pl.loader()


class Seeded(pl.Module):
    """A generator of the loader does, which is seeded by the epoch."""

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(self.current_epoch)
        return DataLoader(pl.Augmented(), batch_size=6, shuffle=True, generator=generator)


class Counted(pl.Module):
    """A sampler does, which begins to count anew with each loader."""

    def train_dataloader(self) -> Any:
        return DataLoader(pl.Augmented(), batch_size=6, sampler=Counting())


class Keeping(pl.Module):
    """A sampler does, which is the same one in each loader."""

    def __init__(self, events: Any) -> None:
        super().__init__(events)
        self.sampler = Counting()

    def train_dataloader(self) -> Any:
        return DataLoader(pl.Augmented(), batch_size=6, sampler=self.sampler)


class Growing(pl.Module):
    """Each epoch has a batch more than the one before."""

    def train_dataloader(self) -> Any:
        return DataLoader(Subset(pl.Augmented(), range(6 * (2 + self.current_epoch))), batch_size=6, shuffle=True)


@resume.exact("Lightning: loaders that are made anew in some epochs", "reload_dataloaders_every_n_epochs")
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kind", [Shuffled, Seeded, Counted, Keeping])
def test_a_loader_that_is_made_anew_goes_on_where_it_was(kind: type[pl.Module], every: int, tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "kind": kind,
        "brings_data": True,
        "validate": False,
        "max_epochs": EPOCHS,
        "reload_dataloaders_every_n_epochs": every,
    }
    whole = pl.train(tmp_path / "whole", **how)
    for stop in (3, 5, 8, 10, 17):
        stopped = pl.train(tmp_path / str(stop), at={stop: ends.terminate}, **how)
        resumed = pl.train(tmp_path / str(stop), **how)
        assert (stopped.code, resumed.code) == (143, 0)
        assert stopped.seen + resumed.seen == whole.seen, stop
        assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items()), stop


@pytest.mark.parametrize("stop", [1, 2, 4, 5, 7])
def test_a_loader_that_is_made_anew_may_have_other_data(stop: int, tmp_path: Path) -> None:
    how: dict[str, Any] = {"kind": Growing, "brings_data": True, "validate": False}
    how |= {"reload_dataloaders_every_n_epochs": 1, "max_epochs": -1, "max_steps": 9}
    whole = pl.train(tmp_path / "whole", **how)
    stopped = pl.train(tmp_path / "parts", at={stop: ends.terminate}, **how)
    resumed = pl.train(tmp_path / "parts", **how)
    assert (stopped.code, resumed.code, resumed.error) == (143, 0, "")
    assert stopped.seen + resumed.seen == whole.seen


class Shrinking(pl.Module):
    """Each epoch has fewer batches than the one before."""

    def train_dataloader(self) -> Any:
        return DataLoader(Subset(pl.Augmented(), range(6 * (4 - self.current_epoch))), batch_size=6, shuffle=True)


@resume.exact("Lightning: loaders that are made anew with more or fewer batches", "the last epoch is whole")
@pytest.mark.parametrize("kind", [Growing, Shrinking])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_has_all_its_epochs_whatever_their_lengths(
    kind: type[pl.Module], accumulate: int, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"kind": kind, "brings_data": True, "validate": False, "max_epochs": 3}
    how |= {"reload_dataloaders_every_n_epochs": 1, "accumulate_grad_batches": accumulate}
    whole = pl.train(tmp_path / "whole", **how)
    assert len(whole.seen) == 2 + 3 + 4
    assert whole.trainer.global_step == (9 if accumulate == 1 else 5)
    for stop in range(1, whole.trainer.global_step):
        stopped = pl.train(tmp_path / str(stop), at={stop: ends.terminate}, **how)
        resumed = pl.train(tmp_path / str(stop), **how)
        assert (stopped.code, resumed.code) == (143, 0)
        assert stopped.seen + resumed.seen == whole.seen, stop


def test_a_loader_of_an_earlier_epoch_and_version_that_is_made_again_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Makings, "state_dict", lambda _: {})  # earlier versions did not save how loaders were made
    how: dict[str, Any] = {"kind": Counted, "brings_data": True, "validate": False}
    how |= {"reload_dataloaders_every_n_epochs": 2}
    for stop, is_told in ((3, False), (8, True), (12, False)):
        caplog.clear()
        pl.train(tmp_path / str(stop), at={stop: ends.terminate}, **how)
        pl.train(tmp_path / str(stop), **how)
        told = "train_dataloader: epoch 1 has the loader that was made in epoch 0, and the resume makes it again"
        assert (told in caplog.text) == is_told
