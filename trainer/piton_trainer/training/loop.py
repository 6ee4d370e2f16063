"""The training loop that all recipes share. It exists once.

    recipe: model, data, optimizers, rates, loss, metric        session: restore, save, report, stop
                          |                                               |
                          +------------ train(): step, evaluate ----------+

The loop knows how to compute on one device or many. It must not know files, signals or attempts, which are the
session's, nor what is trained, which is the recipe's.
"""

import logging
import os
import statistics
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from piton.contract.progress import EVALUATION_EVERY_STEPS, EVALUATION_SECONDS, EXAMPLES_SKIPPED, STEP_SECONDS
from piton_trainer.clock import Clock
from piton_trainer.recipes.config import RecipeConfig
from piton_trainer.recipes.protocol import ClipsGradients, Recipe, RecipeContext, SkipsExamples
from piton_trainer.telemetry.peak_flops import mfu_per_token, peak_flops
from piton_trainer.training.session import Session

_log = logging.getLogger(__name__)

SKIPPED_STEPS = "skipped_steps"
"""Metric of the steps of this attempt that `onNonFinite: Skip` has left out."""


def train(session: Session, recipe: Recipe) -> None:
    """Train a recipe from its newest checkpoint, or from the start, to its end."""
    config = recipe.config
    _make_repeatable(config, session)
    trainee = TrainableModel(recipe, session)
    # The data comes first: where it has changed, that is the thing to say, and not that some weight has another shape.
    session.restore(
        per_rank=False,
        **recipe.extras,
        loader=recipe.loader,
        model=trainee.model,
        optimizer=trainee.optimizers,
        ema=trainee.average,
    )
    trainee.connect()
    if session.is_main:
        _log.info(recipe.describe())
    skipped = _count_skipped(recipe, session)
    clock = Clock()
    throughput = Throughput(recipe.tokens_per_step, _mfu_per_token(recipe, trainee.model, session), clock)
    before: float | None = None
    for batches in session.steps(recipe.loader, total=config.steps):
        fraction = session.fraction
        recipe.tune(trainee.optimizers, fraction=fraction, step=session.step)
        metrics: dict[str, Any] = {"loss": trainee.step(batches), **throughput.lap(), **skipped}
        if config.on_non_finite == "Skip":
            metrics[SKIPPED_STEPS] = trainee.skipped_steps
        if _is_evaluated(session.step + 1, config, session.last_step) or _seems_last(fraction, before):
            with session.untimed():
                metrics |= _timed(trainee.evaluate, config, clock)
        session.report(**metrics)
        before = fraction


class EvaluationContext(RecipeContext, Protocol):
    """Somebody who looks at a checkpoint and trains nothing."""

    @property
    def step(self) -> int:
        """The step of what was restored."""

    def restore(self, **objects: Any) -> None:
        """Put the checkpoint into these objects; those that are None are left out."""

    def fraction(self, total: int | None) -> float:
        """Return the fraction of a training of `total` steps that was done at that step."""


def evaluate(place: EvaluationContext, recipe: Recipe) -> dict[str, float]:
    """Return the recipe's metrics of a checkpoint: those that the training would have reported at that step."""
    _make_repeatable(recipe.config, place)
    trainee = TrainableModel(recipe, place)
    place.restore(**recipe.extras, loader=recipe.loader, model=trainee.model, ema=trainee.average)
    fraction = place.fraction(recipe.config.steps)
    recipe.tune(trainee.optimizers, fraction=fraction, step=max(0, place.step - 1))
    return trainee.evaluate()


class TrainableModel:
    """A model with everything that changes when it learns."""

    def __init__(self, recipe: Recipe, place: RecipeContext) -> None:
        self.recipe = recipe
        self.config = recipe.config
        self.place = place
        self.model = _build(recipe, place)
        self.optimizers = recipe.optimizers(self.model)
        self.average = None if self.config.ema is None else Average(_build(recipe, place), decay=self.config.ema)
        self.runner = self.model
        """The module to call in training: the model, or its wrapper that averages gradients over the ranks."""
        self.statistics = _statistics(self.model)
        self.skipped_steps = 0
        """Steps of this attempt that were left out because they were not of finite numbers."""

    def connect(self) -> None:
        """Make ready to train once the state is restored."""
        if self.config.compile:
            for block in self.recipe.blocks(self.model):
                block.compile()
        if dist.is_initialized() and self.config.parallelism == "ddp":
            device_ids = [self.place.device] if self.place.device.type == "cuda" else None
            self.runner = DistributedDataParallel(
                self.model, device_ids=device_ids, forward_sync_buffers=False, gradient_as_bucket_view=True
            )

    def step(self, batches: list[Any]) -> Tensor:
        """One optimizer step over this rank's micro-batches; the mean loss over all ranks."""
        skips = self.config.on_non_finite == "Skip"
        before = [part.clone() for part in self.statistics] if skips else []
        total = torch.zeros((), device=self.place.device)
        for number, batch in enumerate(batches, start=1):
            with self._communicating(number == len(batches)):
                with self._precision():
                    loss = self.recipe.loss(self.runner, batch) / len(batches)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if skips and not self._is_finite(total):
            self._skip(before)
            return _sum_over_ranks(total) / self.place.world_size
        if self.config.grad_clip is not None and isinstance(self.recipe, ClipsGradients):
            self.recipe.clip(self.model, self.config.grad_clip)
        elif self.config.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        _share_statistics(self.statistics, self.place.world_size)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return _sum_over_ranks(total) / self.place.world_size

    @torch.no_grad()
    def _is_finite(self, loss: Tensor) -> bool:
        """True if the loss and the gradients of all ranks are finite numbers. All ranks call it together."""
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        local = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in gradients]
        largest = nn.utils.get_total_norm([part for part in local if part.numel()], float("inf"))
        bad = ~(torch.isfinite(largest) & torch.isfinite(loss))
        return not bool(_sum_over_ranks(bad.float()))

    def _skip(self, statistics: list[Tensor]) -> None:
        """Leave the step out: weights, momenta, average and what normalisations remember stay as they were."""
        self.skipped_steps += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if statistics:
            torch._foreach_copy_(self.statistics, statistics)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The recipe's metrics over all ranks, of the averaged weights if there are any. Training does not notice."""
        model = self.model if self.average is None else self.average.module
        cuda = [self.place.device] if self.place.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), self._precision():
            model.eval()
            sums, count = self.recipe.evaluate(model)
            model.train()
        if isinstance(model, FSDPModule):
            model.reshard()  # it gathered its weights for a backward pass that does not come
        total = torch.tensor(float(count), dtype=torch.float64, device=self.place.device)
        sums_and_count = _sum_over_ranks(torch.stack([*sums.values(), total])).tolist()
        return {name: value / sums_and_count[-1] for name, value in zip(sums, sums_and_count, strict=False)}

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.place.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16")

    def _communicating(self, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients once per step, with those of the last micro-batch; shards exchange every time.

        Gradients that wait for an exchange lie whole on every rank, and what is sharded is so because it does not fit.
        """
        if isinstance(self.runner, DistributedDataParallel) and not last:
            waiting: AbstractContextManager[Any] = self.runner.no_sync()
            return waiting
        return nullcontext()


class Average(AveragedModel):
    """An exponential average of a model's weights, whose decay warms up so that the first weights are soon forgotten.

    What normalisations remember is averaged as well: the live model's would not fit averaged weights. It takes a module
    of its own instead of copying the model: a sharded model cannot be copied.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        super().__init__(nn.Module(), multi_avg_fn=self._mix, use_buffers=True)
        self.module = module
        self.decay = decay

    def _mix(self, averages: Any, weights: Any, _: Any) -> None:
        done = int(self.n_averaged)  # our own, which lies on the CPU; the argument would make the GPU wait
        share = 1.0 - min(self.decay, (1 + done) / (10 + done))
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, weights)  # a normalisation counts its batches
            return
        for sharded in (True, False):  # weights may be, buffers are not, and no operation takes both
            places = [place for place, average in enumerate(averages) if isinstance(average, DTensor) is sharded]
            if places:
                torch._foreach_lerp_([averages[at] for at in places], [weights[at] for at in places], share)


class Throughput:
    """Tokens per second over the last steps, and the share of the devices' peak that they are."""

    LAPS = 20
    """Steps that count. Their median does not see the odd save or evaluation."""

    def __init__(self, tokens_per_step: int, mfu_per_token: float | None, clock: Clock) -> None:
        """Measure with this clock; `mfu_per_token` is the share of the peak that one token per second is."""
        self.tokens_per_step = tokens_per_step
        self.mfu_per_token = mfu_per_token
        self.clock = clock
        self.laps: deque[float] = deque(maxlen=self.LAPS)
        self.last: float | None = None

    def lap(self) -> dict[str, float]:
        """The figures at the end of a step; none after the first, which has nothing to be measured against."""
        now, last = self.clock.monotonic(), self.last
        self.last = now
        if last is None:
            return {}
        self.laps.append(now - last)
        lap = statistics.median(self.laps)
        speed = self.tokens_per_step / lap
        figures = {"tokens_per_second": speed, STEP_SECONDS: lap}
        return figures if self.mfu_per_token is None else {**figures, "mfu": speed * self.mfu_per_token}


def _count_skipped(recipe: Recipe, session: Session) -> dict[str, int]:
    """Say what is left out of the data, and return the metric of it where the config accepts any."""
    if not isinstance(recipe, SkipsExamples) or not (recipe.config.max_skipped or recipe.skipped_data.count):
        return {}
    if session.is_main:
        for sentence in recipe.skipped_data.sentences():
            _log.warning(sentence)
    return {EXAMPLES_SKIPPED: recipe.skipped_data.count}


def _timed(evaluate: Callable[[], dict[str, float]], config: RecipeConfig, clock: Clock) -> dict[str, float]:
    """The metrics of an evaluation, with what it took, and how often there is one."""
    began = clock.monotonic()
    found = evaluate()
    return {**found, EVALUATION_SECONDS: clock.monotonic() - began, EVALUATION_EVERY_STEPS: config.eval_every}


def _make_repeatable(config: RecipeConfig, place: RecipeContext) -> None:
    """Give every rank its own random numbers, and sums that do not depend on the machine."""
    torch.manual_seed(config.seed * 65_536 + place.rank)
    if place.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # The order of a sum depends on the number of threads, and the next machine may have another number of cores.
        torch.set_num_threads(1)


def _build(recipe: Recipe, place: RecipeContext) -> nn.Module:
    """A model with its initial weights, sharded over the ranks where the config asks for it."""
    if recipe.config.parallelism == "fsdp" and dist.is_initialized():
        with torch.device("meta"):
            model = recipe.build()
        _shard(recipe, model, place)
        model.to_empty(device=place.device)
    else:
        with place.device:
            model = recipe.build()
    recipe.draw_weights(model)
    return model


def _shard(recipe: Recipe, model: nn.Module, place: RecipeContext) -> None:
    mesh = init_device_mesh(place.device.type, (place.world_size,))
    half = recipe.config.precision == "bf16"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for module in [*recipe.blocks(model), model]:
        fully_shard(module, mesh=mesh, mp_policy=policy)


def _statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of the batch normalisations."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [part for norm in norms for part in (norm.running_mean, norm.running_var) if part is not None]


@torch.no_grad()
def _share_statistics(statistics: list[Tensor], world_size: int) -> None:
    """Make them the mean over all ranks, so that every rank has the same model: in one exchange, some 200 kB of it."""
    if statistics and dist.is_initialized():
        mean = _sum_over_ranks(torch.cat([part.flatten() for part in statistics])) / world_size
        torch._foreach_copy_(statistics, list(torch.split(mean, [part.numel() for part in statistics])))


def _sum_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def _is_evaluated(step: int, config: RecipeConfig, last_step: int | None) -> bool:
    return step % config.eval_every == 0 or step in (config.steps, last_step)


def _seems_last(fraction: float, before: float | None) -> bool:
    """True if training ends with this step, if it takes up to half as long again as the one before.

    Where time is the limit nobody knows for certain. The same on all ranks, as the fraction is.
    """
    return before is not None and fraction + 1.5 * (fraction - before) >= 1.0


def _mfu_per_token(recipe: Recipe, model: nn.Module, place: RecipeContext) -> float | None:
    peak = recipe.config.peak_flops
    if peak is None and place.device.type == "cuda":
        peak = peak_flops(torch.cuda.get_device_name(place.device))
    return None if peak is None else mfu_per_token(recipe.flops_per_token(model), peak=peak, devices=place.world_size)
