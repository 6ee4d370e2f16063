"""Scripts that people have. They use nothing that a trainer of before did not have."""

import enum
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import piton_trainer
from piton.contract.assignment import Assignment, SavePolicy
from piton_trainer.config import Config

STEPS, STOP = 14, 6
ROWS = 40


@dataclass(kw_only=True)
class Script:
    """What a script builds."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    loader: Iterable[Any]
    objects: dict[str, Any] = field(default_factory=dict)
    """What it names in restore."""
    noise: Callable[[], float] = lambda: 0.0
    total: int | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A script, and what its resume has to show."""

    build: Callable[[int, int, bool], Script]
    """By the rank, the number of ranks, and whether it resumes."""
    sizes: tuple[int, ...] = (1, 2)
    is_exact: bool = True
    """True if the older trainer went on exactly, so that the losses have to be the same."""
    stop: int = STOP
    told: str = ""
    """Words of a warning that it gets now."""


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 4))


def data(rows: int = ROWS) -> TensorDataset:
    return TensorDataset(torch.randn(rows, 4, generator=torch.Generator().manual_seed(1)))


def shuffled(rank: int, size: int, *, batch: int = 4, rows: int = ROWS) -> DataLoader[Any]:
    rows_of = data(rows)
    sampler: Any = DistributedSampler(rows_of, size, rank) if size > 1 else None
    return DataLoader(rows_of, batch_size=batch, shuffle=sampler is None, sampler=sampler)


def spread(model: nn.Module, size: int, **how: Any) -> nn.Module:
    return DistributedDataParallel(model, **how) if size > 1 else model


def plain(rank: int, size: int, resumes: bool) -> Script:
    model = spread(net(), size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    objects = {"model": model, "optimizer": optimizer, "scheduler": StepLR(optimizer, 2, 0.8)}
    return Script(model=model, optimizers=[optimizer], loader=shuffled(rank, size), objects=objects)


def groups(rank: int, size: int, resumes: bool) -> Script:
    model = spread(net(), size)
    weights = list(model.parameters())
    split = [{"params": weights[::2], "weight_decay": 0.1}, {"params": weights[1::2], "lr": 0.02}]
    optimizer = torch.optim.SGD(split, lr=0.05, momentum=0.9)
    average = AveragedModel(model)
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(model))
    objects = {"model": model, "optimizer": optimizer, "ema": average, "lr": LambdaLR(optimizer, lambda n: 0.9**n)}
    return Script(model=model, optimizers=[optimizer], loader=shuffled(rank, size), objects=objects)


def several(rank: int, size: int, resumes: bool) -> Script:
    model = net()
    wrapped = spread(model, size)
    first, last = model[0].parameters(), model[3].parameters()
    optimizers = [torch.optim.Adam(first, lr=0.01), torch.optim.SGD(last, lr=0.05, momentum=0.9)]
    objects = {"model": model, "optimizer": optimizers, "scaler": torch.amp.GradScaler("cpu", enabled=False)}
    return Script(model=wrapped, optimizers=optimizers, loader=shuffled(rank, size), objects=objects)


def nameless(rank: int, size: int, resumes: bool) -> Script:
    """Do not call the model `model`."""
    script = plain(rank, size, resumes)
    script.objects["net"] = script.objects.pop("model")
    return script


def stateful(rank: int, size: int, resumes: bool) -> Script:
    script = plain(rank, size, resumes)
    own = shuffled(rank, size)
    sampler = own.sampler if size > 1 else None
    script.loader = StatefulDataLoader(own.dataset, batch_size=4, shuffle=sampler is None, sampler=sampler)
    script.objects["loader"] = script.loader
    return script


def norms(rank: int, size: int, resumes: bool, **how: Any) -> Script:
    model = spread(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)), size, **how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    objects = {"model": model, "optimizer": optimizer}
    return Script(model=model, optimizers=[optimizer], loader=shuffled(rank, size), objects=objects)


def norms_of_ranks(rank: int, size: int, resumes: bool) -> Script:
    return norms(rank, size, resumes, **({"forward_sync_buffers": False} if size > 1 else {}))


class Counter:
    """Count something in each step, the same or not on all ranks."""

    def __init__(self, by: Any) -> None:
        self.by, self.count = by, 0

    def __call__(self) -> float:
        self.count += 1
        return float(self.count * int(self.by))

    def state_dict(self) -> dict[str, Any]:
        return {"by": self.by, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.by, self.count = state["by"], state["count"]


class Level(enum.IntEnum):
    """A state that comes back as a number."""

    LOW = 1


def counted(rank: int, size: int, resumes: bool, *, by: Any = 1) -> Script:
    script = plain(rank, size, resumes)
    script.noise = script.objects["counter"] = Counter(by)
    return script


def counted_per_rank(rank: int, size: int, resumes: bool) -> Script:
    return counted(rank, size, resumes, by=rank + 1)


def counted_by_level(rank: int, size: int, resumes: bool) -> Script:
    return counted(rank, size, resumes, by=Level.LOW)


def drawn(rank: int, size: int, resumes: bool) -> Script:
    script, generator = plain(rank, size, resumes), torch.Generator().manual_seed(99 if resumes else rank)
    script.objects["generator"] = generator
    script.noise = lambda: float(torch.rand((), generator=generator))
    return script


def alone(rank: int, size: int, resumes: bool) -> Script:
    """Train on each rank for itself."""
    torch.manual_seed(rank)
    script = plain(0, 1, resumes)
    script.loader = shuffled(rank, size)
    return script


def larger_batches(rank: int, size: int, resumes: bool) -> Script:
    script = plain(rank, size, resumes)
    script.loader, script.total = shuffled(rank, size, batch=2 if resumes else 4), STEPS
    return script


def more_rows(rank: int, size: int, resumes: bool) -> Script:
    script = plain(rank, size, resumes)
    script.loader, script.total = shuffled(rank, size, rows=ROWS + 8 if resumes else ROWS), STEPS
    return script


def listed(rank: int, size: int, resumes: bool) -> Script:
    script = plain(rank, size, resumes)
    script.loader = [torch.full((4, 4), 0.1 * (number + rank)) for number in range(5)]
    return script


CASES: dict[str, Case] = {
    "plain": Case(build=plain),
    "groups and an average": Case(build=groups),
    "several optimizers": Case(build=several),
    "a model of another name": Case(build=nameless),
    "a loader with state": Case(build=stateful),
    "a list": Case(build=listed),
    "batch norms": Case(build=norms, sizes=(1,)),
    "batch norms of two ranks": Case(build=norms, sizes=(2,), is_exact=False),
    "batch norms of each rank": Case(build=norms_of_ranks, sizes=(2,), is_exact=False),
    "a counter": Case(build=counted),
    "a counter per rank": Case(build=counted_per_rank, sizes=(2,), is_exact=False),
    "a state that comes back as a number": Case(build=counted_by_level, sizes=(1,)),
    "a generator": Case(build=drawn, sizes=(1,)),
    "a generator per rank": Case(build=drawn, sizes=(2,), is_exact=False),
    "ranks that train for themselves": Case(build=alone, sizes=(2,), is_exact=False, told="has other values on rank 1"),
    "other batches": Case(build=larger_batches, is_exact=False, told="batches at the save and has"),
    "more rows": Case(build=more_rows, is_exact=False, told="batches at the save and has"),
    "a run that was finished": Case(build=plain, stop=0),
}


def train(directory: Path, case: Case, *, resumes: bool) -> dict[int, float]:
    """Train until the stop of the case, or go on from there; return the losses of this attempt."""
    losses = {}
    torch.set_num_threads(1)  # the order of a sum depends on it
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    config = Config(
        checkpoint_dir=directory, assignment=Assignment(save=SavePolicy(every_steps=4)), background_saves=False
    )
    with piton_trainer.session(config) as session:
        torch.manual_seed(99 if resumes else 0)
        script = case.build(session.rank, session.world_size, resumes)
        session.restore(**script.objects)
        for batch in session.steps(script.loader, epochs=3, total=script.total):
            x = batch[0] if isinstance(batch, list | tuple) else batch
            loss = (script.model(x) - x + script.noise()).square().mean()
            loss.backward()
            for optimizer in script.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            for scheduler in script.objects.values():
                if isinstance(scheduler, LRScheduler):
                    scheduler.step()
            losses[session.step + 1] = float(loss.detach())
            if not resumes and session.step + 1 == case.stop:
                signal.raise_signal(signal.SIGTERM)
    return losses
