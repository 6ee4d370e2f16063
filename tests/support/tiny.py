"""A training run that takes milliseconds and has everything that makes resuming hard.

Dropout, shuffling, a learning-rate schedule, an average of the weights, and noise from Python's and numpy's random
numbers. `seed` differs from attempt to attempt on purpose: whatever a resumed run did not restore, it gets wrong.
"""

import random
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import piton_trainer
from piton.contract.assignment import Assignment, SavePolicy
from piton.contract.manifest import Complete
from piton_trainer.checkpoint import inspect
from piton_trainer.checkpoint.format.layout import Disk
from piton_trainer.clock import Clock
from piton_trainer.config import Config, Server

EPOCHS, BATCHES = 3, 5
STEPS = EPOCHS * BATCHES
Event = Callable[[piton_trainer.Session], object]


@dataclass
class Ran:
    """What an attempt did."""

    code: int = 0
    error: str = ""
    losses: dict[int, float] = field(default_factory=dict)
    resumed_from: int | None = None
    complete: Complete | None = None

    def digest(self) -> str:
        """Return the digest of the weights that it ended with."""
        assert self.complete is not None
        assert self.complete.weights_digest is not None
        return self.complete.weights_digest


def terminate(_: piton_trainer.Session) -> None:
    """The node is being reclaimed, and says so."""
    signal.raise_signal(signal.SIGTERM)


class LostError(Exception):
    """The machine is gone, as far as a test inside one process can tell."""


def vanish(_: piton_trainer.Session) -> None:
    """The node is gone without a word."""
    raise LostError


def every(steps: int, **policy: Any) -> Assignment:
    """Orders to save every so many steps."""
    return Assignment(save=SavePolicy(every_steps=steps, **policy))


def config(directory: Path, assignment: Assignment | None = None, **changes: object) -> Config:
    """A trainer's configuration without Piton."""
    fields: dict[str, object] = {
        "checkpoint_dir": directory,
        "assignment": assignment or every(4),
        "background_saves": False,  # a process less to start, and a disk that fails by coordinates
        **changes,
    }
    return Config(**fields)  # type: ignore[arg-type]


def train(
    directory: Path,
    *,
    seed: int = 0,
    assignment: Assignment | None = None,
    at: Mapping[int, Event] | None = None,
    epochs: int = EPOCHS,
    attempt: int | None = None,
    uid: str = "uid-of-this-run",
    clock: Clock | None = None,
    disk: Disk | None = None,
    server: Server | None = None,
    termination_log: Path | None = None,
    metrics_port: int | None = None,
    background_saves: bool = False,
    overlap_saves: bool = False,
    callbacks: Sequence[piton_trainer.Callback] = (),
) -> Ran:
    """One attempt, in this process and its ranks. `at` says what happens in the body of which step (from 1)."""
    ran = Ran()
    settings = config(
        directory,
        assignment,
        attempt=attempt,
        uid=uid,
        server=server,
        termination_log=termination_log,
        metrics_port=metrics_port,
        report_seconds=0.0,
        background_saves=background_saves,
    )
    try:
        with piton_trainer.session(
            settings, overlap_saves=overlap_saves, callbacks=callbacks, clock=clock, disk=disk
        ) as session:
            _loop(session, ran, seed=seed, at=at or {}, epochs=epochs)
    except SystemExit as end:
        ran.code, ran.error = int(end.code or 0), str(end)
    ran.complete = inspect.complete(directory)
    return ran


def _loop(session: piton_trainer.Session, ran: Ran, *, seed: int, at: Mapping[int, Event], epochs: int) -> None:
    torch.manual_seed(1000 * session.rank + seed)
    random.seed(seed)
    np.random.seed(seed)
    net = build()
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=3 * STEPS)
    loader = build_loader(session)
    restored = session.restore(model=net, optimizer=optimizer, scheduler=scheduler, loader=loader, ema=ema)
    ran.resumed_from = None if restored is None else restored.step
    model = DistributedDataParallel(net) if session.world_size > 1 else net
    for x, y in session.steps(loader, epochs=epochs):
        loss = nn.functional.mse_loss(model(x + noise()), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        ema.update_parameters(net)
        ran.losses[session.step + 1] = float(loss.detach())
        session.report(loss=loss)
        if event := at.get(session.step + 1):
            event(session)


def build() -> nn.Module:
    """A model with dropout."""
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


def build_loader(session: piton_trainer.Session) -> DataLoader[tuple[Tensor, ...]]:
    """A shuffled loader of `BATCHES` batches, whatever the number of ranks."""
    rows = 6 * BATCHES * session.world_size
    x = torch.linspace(-1, 1, rows * 4).reshape(rows, 4).sin()
    data = TensorDataset(x, x.sum(dim=1, keepdim=True))
    if session.world_size == 1:
        return DataLoader(data, batch_size=6, shuffle=True)
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=session.world_size, rank=session.rank)
    return DataLoader(data, batch_size=6, sampler=sampler)


def noise() -> float:
    """A little, from both kinds of random numbers that are not torch's."""
    return 0.01 * (random.random() + float(np.random.rand()))
