"""The interface between the shared loop and a recipe. Neither knows more of the other."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from piton.contract.assignment import Assignment
from piton_trainer.data.skipped import SkippedData
from piton_trainer.recipes.config import RecipeConfig
from piton_trainer.run_cache import RunCache


class RecipeContext(Protocol):
    """The position of a rank among the ranks; a session is one."""

    @property
    def rank(self) -> int:
        """Number of this process among all."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def device(self) -> torch.device:
        """The device that this process computes on."""


class DataContext(RecipeContext, Protocol):
    """A place with a volume that outlives the attempt; a session is one."""

    @property
    def directory(self) -> Path:
        """The directory of the checkpoints; files beside them stay with the run."""

    @property
    def run_cache(self) -> RunCache:
        """For what is made once and every attempt needs."""


class RunContext(DataContext, Protocol):
    """A workplace with orders; a session is one."""

    @property
    def assignment(self) -> Assignment:
        """The run's orders."""


class Stateful(Protocol):
    """Something that a checkpoint carries."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, called at step boundaries."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take the state back, or raise `BadConfig` where it does not fit."""


class Loader(Stateful, Protocol):
    """Endless data that can resume. Each item is one optimizer step of this rank: a list of micro-batches."""

    position_is_global: ClassVar[bool]
    """True: the state counts the data of all ranks together, so that any number of ranks can go on from it."""

    def __iter__(self) -> Iterator[list[Any]]:
        """Go on after the last step that was handed out."""


class Recipe(Protocol):
    """A recipe: model, data and optimizers. The loop calls these methods from top to bottom, on all ranks alike."""

    @property
    def config(self) -> RecipeConfig:
        """The settings that the loop reads."""

    @property
    def loader(self) -> Loader:
        """The training data."""

    @property
    def extras(self) -> Mapping[str, Stateful]:
        """Further objects of a checkpoint, by name."""

    @property
    def tokens_per_step(self) -> int:
        """Of all ranks together: characters, images, rows, whatever the recipe counts."""

    def describe(self) -> str:
        """One line for the log."""

    def build(self) -> nn.Module:
        """The model on torch's default device, which may be `meta`; its numbers do not matter yet."""

    def draw_weights(self, model: nn.Module) -> None:
        """Set all weights and buffers from the config's seed; the weights may be sharded."""

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        """The parts that are sharded and compiled as one each."""

    def optimizers(self, model: nn.Module) -> list[Optimizer]:
        """The optimizers, which together hold every weight."""

    def flops_per_token(self, model: nn.Module) -> float:
        """Operations of training, per token."""

    def tune(self, optimizers: Sequence[Optimizer], *, fraction: float, step: int) -> None:
        """Set the rates before a step: a pure function of the training's fraction (0 to 1) and the steps done."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a micro-batch, a mean."""

    def evaluate(self, model: nn.Module) -> tuple[dict[str, Tensor], int]:
        """Sums of metrics over this rank's share of the validation data, and the count that they are sums over."""


@runtime_checkable
class SkipsExamples(Protocol):
    """A recipe that may leave out damaged examples, where `maxSkipped` accepts that."""

    skipped_data: SkippedData
    """The examples that are left out of its data."""


@runtime_checkable
class ClipsGradients(Protocol):
    """A recipe for which the norm of all gradients together means nothing."""

    def clip(self, model: nn.Module, largest: float) -> None:
        """Limit the gradients before a step; called only where `gradClip` is set."""
