"""Data of a transformers.Trainer: samplers that remember, random rows, streams, and data that ends early."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import Trainer, TrainerCallback

from support import ends, resume
from support import tiny_transformers as hf
from support.samplers import Placed

ROWS = 26


class Counting(Placed):
    """One of our rows."""

    def __init__(self) -> None:
        super().__init__(ROWS)


class Popping(Sampler[int]):
    """A sampler that uses up a list, and has some of it left from the epoch before."""

    def __init__(self) -> None:
        self.rows = [0, 1, 2]

    def __iter__(self) -> Iterator[int]:
        self.rows = torch.randperm(ROWS).tolist() + self.rows
        for _ in range(ROWS):
            yield self.rows.pop()

    def __len__(self) -> int:
        return ROWS


class Noisy(Dataset[Any]):
    """Rows with random augmentation."""

    def __getitem__(self, number: int) -> Any:
        row = hf.tokens(ROWS)[number]["input_ids"].clone()
        row[int(torch.randint(len(row), ()))] = 0
        return {"input_ids": row, "labels": row}

    def __len__(self) -> int:
        return ROWS


def sampled_by(kind: type[Sampler[int]]) -> type[Trainer]:
    """Return a Trainer whose loader transformers makes, with a sampler of the user's."""

    class Sampled(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return kind()

    return Sampled


def loaded(rows: Any = None, **how: Any) -> type[Trainer]:
    """Return a Trainer with a loader of torch's that the user makes."""

    class Loaded(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            own = {name: value() if isinstance(value, type) else value for name, value in how.items()}
            return DataLoader(rows or self.train_dataset, batch_size=4, collate_fn=self.data_collator, **own)

    return Loaded


TRAINERS = {
    "counting": sampled_by(Counting),
    "popping": sampled_by(Popping),
    "own loader, counting": loaded(sampler=Counting),
    "own loader, counting, workers": loaded(sampler=Counting, num_workers=1),
    "own loader, random rows": loaded(Noisy(), shuffle=True),
}


def assert_resumes(tmp_path: Path, step: int, **arguments: Any) -> None:
    """Stop at a step, resume, and have what a whole training has."""
    whole = hf.train(tmp_path / "whole", **arguments)
    hf.train(tmp_path / "parts", at={step: ends.terminate}, **arguments)
    resumed = hf.train(tmp_path / "parts", **arguments)
    assert resumed.losses == whole.losses
    assert resumed.state.epoch == whole.state.epoch
    assert [name for name in whole.weights if not torch.equal(resumed.weights[name], whole.weights[name])] == []


@resume.exact("transformers: samplers that count their place, or use up a list")
@pytest.mark.parametrize("step", [1, hf.STEPS_PER_EPOCH, hf.STEPS_PER_EPOCH + 2])
@pytest.mark.parametrize("kind", TRAINERS.values(), ids=TRAINERS)
def test_a_sampler_is_where_it_was(kind: type[Trainer], step: int, tmp_path: Path) -> None:
    assert_resumes(tmp_path, step, kind=kind)


class Turns:
    """Batches of two loaders by turns: an object of the user's, which is no loader of torch's."""

    def __init__(self, *loaders: Any) -> None:
        self.loaders = loaders

    def __iter__(self) -> Iterator[Any]:
        for batches in zip(*self.loaders, strict=True):
            yield from batches

    def __len__(self) -> int:
        return sum(map(len, self.loaders))


class Doubled(DataLoader[Any]):
    """A loader of torch's that gives each batch twice."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield from (batch, batch)

    def __len__(self) -> int:
        return 2 * super().__len__()


def loads(make: Any) -> type[Trainer]:
    """Return a Trainer whose loader the user makes of one of torch's."""

    class Loads(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            def loader(kind: Any = DataLoader, **how: Any) -> Any:
                return kind(self.train_dataset, batch_size=8, collate_fn=self.data_collator, **how)

            return make(loader)

    return Loads


LOADERS: dict[str, Any] = {
    "an object": lambda loader: Turns(loader(shuffle=True), loader(shuffle=True)),
    "a list": lambda loader: list(loader()),
    "a subclass": lambda loader: loader(Doubled, shuffle=True),
}


@resume.exact("transformers: loaders that are lists, or classes of one's own", "batches that are done are read again")
@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_a_loader_of_the_users_is_where_it_was(make: Any, step: int, tmp_path: Path) -> None:
    assert_resumes(tmp_path, step, kind=loads(make))


def test_a_sampler_is_where_it_was_with_workers_that_outlast_an_epoch(tmp_path: Path) -> None:
    how = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    assert_resumes(tmp_path, hf.STEPS_PER_EPOCH + 1, kind=sampled_by(Popping), **how)


class Cut(TrainerCallback):  # type: ignore[misc]
    """Ends epochs early, at steps and by an event of its choice."""

    def __init__(self, event: str, steps: set[int]) -> None:
        def end(args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_epoch_stop |= state.global_step in steps

        setattr(self, event, end)


SHORT_EPOCHS: dict[str, tuple[str, dict[str, Any]]] = {
    "at a step": ("on_step_end", {}),
    "by a log": ("on_log", {}),
    "by an evaluation": ("on_evaluate", {"eval_strategy": "steps", "eval_steps": 1}),
    "evaluated after each epoch": ("on_step_end", {"eval_strategy": "epoch"}),
    "up to a number of steps": ("on_step_end", {"max_steps": 9}),
    "of a sampler that counts": ("on_step_end", {"kind": sampled_by(Counting)}),
    "of a stream": ("on_step_end", {"max_steps": 9, "gradient_accumulation_steps": 1}),
}


@resume.exact("transformers: epochs that a callback ends early by should_epoch_stop")
@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize(("event", "how"), SHORT_EPOCHS.values(), ids=SHORT_EPOCHS)
def test_epochs_that_end_early_are_not_made_up_for(event: str, how: dict[str, Any], step: int, tmp_path: Path) -> None:
    """transformers itself takes the number of steps for that of whole epochs."""
    cut = Cut(event, {2, 6, 7})
    kind = {"kind": fed_by(Short, 20)} if how.get("gradient_accumulation_steps") else {}
    assert_resumes(tmp_path, step, callbacks=[cut], num_train_epochs=4, **kind, **how)


class Short(IterableDataset[Any]):
    """A stream that says it is longer than it is, or says nothing."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(hf.tokens(self.rows))


class Boasting(Short):
    """A stream with too many rows in its length."""

    def __len__(self) -> int:
        return 4 * self.rows


class Once(Short):
    """A stream that can be read once."""

    def __iter__(self) -> Iterator[Any]:
        rows, self.rows = self.rows, 0
        return iter(hf.tokens(rows))


def fed_by(kind: type[Short], rows: int) -> type[Trainer]:
    """Return a Trainer over a stream."""

    class Fed(Trainer):  # type: ignore[misc]
        def __init__(self, *, train_dataset: Any, **how: Any) -> None:
            super().__init__(train_dataset=kind(rows), **how)

    return Fed


STREAMS: dict[str, dict[str, Any]] = {
    "dispatched": {"gradient_accumulation_steps": 1},
    "read by each rank": {"gradient_accumulation_steps": 1, "accelerator_config": {"dispatch_batches": False}},
    "with batches left over": {"gradient_accumulation_steps": 2},
    "evaluated after each epoch": {"gradient_accumulation_steps": 1, "eval_strategy": "epoch"},
}


@resume.exact("transformers: streams without a length, over several epochs")
@pytest.mark.parametrize("step", [2, 5, 7, 11])
@pytest.mark.parametrize("how", STREAMS.values(), ids=STREAMS)
def test_a_stream_goes_on_in_its_epoch(how: dict[str, Any], step: int, tmp_path: Path) -> None:
    assert_resumes(tmp_path, step, kind=fed_by(Short, 20), max_steps=13, **how)


def test_a_stream_goes_on_in_its_epoch_with_more_steps(tmp_path: Path) -> None:
    how: dict[str, Any] = {"kind": fed_by(Short, 20), "lr_scheduler_type": "constant"}
    whole = hf.train(tmp_path / "whole", max_steps=13, **how)
    hf.train(tmp_path / "parts", max_steps=9, at={7: ends.terminate}, **how)
    resumed = hf.train(tmp_path / "parts", max_steps=13, **how)
    assert resumed.losses == whole.losses


UNDISPATCHED = {"accelerator_config": {"dispatch_batches": False}}
ENDED_EARLY = "and no callback asked for that"


@pytest.mark.parametrize(
    ("kind", "arguments", "step"),
    [(Boasting, {}, 4), (Once, {"max_steps": 9, **UNDISPATCHED}, 2)],
    ids=["boasting", "once"],
)
def test_data_that_ends_before_the_last_step_is_told_of(
    kind: type[Short], arguments: dict[str, Any], step: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran = hf.train(tmp_path, kind=fed_by(kind, 16), **arguments)
    assert (ran.code, ran.state.global_step) == (0, step)
    assert caplog.text.count(ENDED_EARLY) == 1
