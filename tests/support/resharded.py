"""A recipe whose weights do not depend on how many ranks train it, or how they share it.

It computes in double precision, where the order of a sum shows in the last digits only, and trains on windows that know
their numbers. `run` is what a rank does: several attempts, one after the other, in one process group.
"""

import random
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

import piton_trainer
from piton_trainer.data.text.windows import ShuffledWindows, Windows
from piton_trainer.errors import Ended
from piton_trainer.recipes.config import RecipeConfig
from piton_trainer.recipes.protocol import Stateful
from piton_trainer.training.loop import train
from support import tiny

STEPS = 12
WINDOWS, PER_STEP, LENGTH, WIDTH = 40, 8, 3, 6
Kind = Literal["ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One attempt."""

    directory: Path
    kind: Kind
    """ddp: every rank has the whole model; fsdp: each has its share."""
    stop_at: int | None = None
    background_saves: bool = True


@dataclass(kw_only=True)
class Ran:
    """What one rank saw of an attempt; by step, counted from 1."""

    code: int = 0
    seen: dict[int, list[int]] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    drawn: dict[int, tuple[float, float]] = field(default_factory=dict)
    arrived: dict[str, Any] = field(default_factory=dict)
    """The state before the first step, as a checkpoint would name it: tensors, whole, and everything else."""
    end: dict[str, Any] = field(default_factory=dict)
    """The same at the end."""


class Counted:
    """The recipe."""

    def __init__(self, plan: Plan, session: piton_trainer.Session) -> None:
        self.config = RecipeConfig(steps=STEPS, ema=0.9, parallelism=plan.kind)
        self.ran = Ran()
        self.tokens_per_step = PER_STEP
        self._scheduler: OneCycleLR | None = None
        self._session = session
        self._stop_at = plan.stop_at
        self.loader = ShuffledWindows(
            Windows(torch.arange(WINDOWS * LENGTH + 1), LENGTH),
            device_batch=2,
            total_batch=PER_STEP,
            seed=7,
            rank=session.rank,
            world_size=session.world_size,
        )

    @property
    def extras(self) -> Mapping[str, Stateful]:
        assert self._scheduler is not None
        return {"scheduler": cast("Stateful", self._scheduler)}

    def describe(self) -> str:
        return "counted"

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(LENGTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 1)
        ).double()

    def draw_weights(self, model: nn.Module) -> None:
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                whole = torch.linspace(-1, 1, parameter.numel(), dtype=torch.float64).add(number).sin()
                set_whole(parameter, whole.reshape(parameter.shape))

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        return [part for part in model.children() if isinstance(part, nn.Linear)]

    def optimizers(self, model: nn.Module) -> list[Optimizer]:
        optimizer = AdamW(model.parameters(), lr=0.05)
        self._scheduler = OneCycleLR(optimizer, max_lr=0.05, total_steps=STEPS + 1)
        return [optimizer]

    def flops_per_token(self, model: nn.Module) -> float:
        return 1.0

    def tune(self, optimizers: Sequence[Optimizer], *, fraction: float, step: int) -> None:
        if not self.ran.rates:
            self.ran.arrived = state_of(self._session)
        if step == 0:
            random.seed(self._session.rank)
            torch.manual_seed(self._session.rank)
        else:
            assert self._scheduler is not None
            self._scheduler.step()
        self.ran.rates[step + 1] = optimizers[0].param_groups[0]["lr"]
        self.ran.drawn[step + 1] = (torch.rand(()).item(), random.random())
        if step + 1 == self._stop_at:
            signal.raise_signal(signal.SIGTERM)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        starts = batch[0][:, 0]
        self.ran.seen.setdefault(self._session.step + 1, []).extend((starts // LENGTH).tolist())
        x = batch[0].double().div(10).sin()
        loss: Tensor = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        return loss

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Tensor], int]:
        return {"val_loss": torch.zeros((), dtype=torch.float64)}, 1


def draws(rank: int, steps: int) -> dict[int, tuple[float, float]]:
    """What a rank draws that is not disturbed."""
    random.seed(rank)
    generator = torch.Generator().manual_seed(rank)
    return {step: (torch.rand((), generator=generator).item(), random.random()) for step in range(1, steps + 1)}


def set_whole(parameter: Tensor, whole: Tensor) -> None:
    """Give a tensor, or this rank's part of it, its numbers."""
    if isinstance(parameter, DTensor):
        whole = torch.distributed.tensor.distribute_tensor(whole, parameter.device_mesh, parameter.placements)
    parameter.copy_(whole)


def state_of(session: piton_trainer.Session) -> dict[str, Any]:
    """What a checkpoint would hold of the objects at this moment, but for the loader; each tensor is whole."""
    objects = session._opened._objects
    assert objects is not None
    documents, tensors = objects.capture()
    state: dict[str, Any] = {key: whole(tensor) for key, tensor in tensors.items()}
    return state | {"documents": documents}


def whole(tensor: Tensor) -> Any:
    """Numbers that may travel between processes."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().numpy().copy()


def run(plans: Sequence[Plan]) -> list[Ran]:
    """Attempts of one rank, in one process group."""
    dist.init_process_group("gloo")
    try:
        return [attempt(plan) for plan in plans]
    finally:
        dist.destroy_process_group()


def attempt(plan: Plan) -> Ran:
    """One attempt."""
    config = tiny.config(plan.directory, tiny.every(5), background_saves=plan.background_saves)
    recipe: Counted | None = None
    code = 0
    try:
        with piton_trainer.session(config) as session:
            recipe = Counted(plan, session)
            train(session, recipe)
            recipe.ran.end = state_of(session)
    except Ended as end:
        code = int(end.code or 0)
    assert recipe is not None
    recipe.ran.code = code
    return recipe.ran
