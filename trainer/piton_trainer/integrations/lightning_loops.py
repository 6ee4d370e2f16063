"""State of Lightning's loops and finders that has no public name: the one place that a new version can break.

It has been tried with Lightning 2.6.6, and must not know sessions.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.utilities.parsing import lightning_getattr, lightning_hasattr, lightning_setattr

from piton_trainer.state.data_position import set_epoch
from piton_trainer.state.refusals import Stateful

_RATES = ("lr", "learning_rate")
"""Names of the learning rate that Lightning tries, unless it is told one."""


class Loops:
    """State of Lightning's loops that has no public name."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._fit = trainer.fit_loop
        self._epoch = trainer.fit_loop.epoch_loop

    @property
    def total(self) -> int | None:
        """The step at which training ends; None when nobody knows."""
        if not self._trainer.lightning_module.automatic_optimization or self._changes_accumulation:
            return None
        total = self._total_with_reloads if self._reloads_every else self._trainer.estimated_stepping_batches
        return int(total) if math.isfinite(total) and total >= 0 else None  # -1: data without a length

    @property
    def _total_with_reloads(self) -> float:
        """The step at which training ends if all later loaders have as many batches as the one of this epoch."""
        trainer, progress = self._trainer, self._fit.epoch_progress.current
        if trainer.max_epochs == -1 or not math.isfinite(trainer.num_training_batches):
            return float(trainer.estimated_stepping_batches)
        batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
        whole = math.ceil(batches / accumulated)
        left = math.ceil((batches - self._done) / accumulated) if self.is_mid_epoch else 0
        total = trainer.global_step + left + whole * (trainer.max_epochs - int(progress.ready))
        return float(total if trainer.max_steps == -1 else min(total, trainer.max_steps))

    @property
    def _changes_accumulation(self) -> bool:
        """True if steps are of more batches in some epochs than in others."""
        own = (item for item in self._trainer.callbacks if isinstance(item, GradientAccumulationScheduler))
        return any(len(set(item.scheduling.values())) > 1 for item in own)

    @property
    def step(self) -> int:
        """Steps that are done; with several optimizers Lightning counts the steps of each, and so nobody knows."""
        return int(self._trainer.global_step) if self._trainer.lightning_module.automatic_optimization else 0

    @property
    def has_stepped(self) -> bool:
        """True if this batch was the last of its step."""
        return not self._epoch._should_accumulate()  # noqa: SLF001

    @property
    def is_last_batch(self) -> bool:
        """True if this batch was the last of its epoch."""
        return bool(self._trainer.is_last_batch)

    @property
    def is_mid_epoch(self) -> bool:
        """True if training begins in the middle of an epoch."""
        epoch = self._fit.epoch_progress.current
        return int(epoch.processed) < int(epoch.ready)

    @property
    def may_stop(self) -> bool:
        """True if Lightning heeds its own flag to stop."""
        return bool(self._fit._can_stop_early)  # noqa: SLF001

    @property
    def _done(self) -> int:
        """Batches of the current epoch."""
        return int(self._epoch.batch_progress.current.processed)

    @property
    def is_data_open(self) -> bool:
        """True if the data of an epoch that begins has been opened before anybody could remember its random numbers."""
        return self._trainer.current_epoch == 0 or bool(self._fit.is_resuming)

    @contextmanager
    def followed(
        self,
        *,
        batch: Callable[[], None],
        epoch: Callable[[], None],
        begun: Callable[[], None],
        make: Callable[[Callable[[], bool]], None],
        is_whole: bool,
        has_metrics: bool,
    ) -> Iterator[None]:
        """Have these called when Lightning has done all of a batch, its validation too, and all of an epoch.

        `begun` is called before the first epoch, and `make` in place of what makes loaders, which it is given; that
        returns True if it has made any. No hook of a callback comes after those of the module and of all other
        callbacks. `is_whole` says that the
        checkpoint was made at such a moment, `has_metrics` that it has what schedules look at: without it Lightning
        leaves ReduceLROnPlateau out in the first epoch after a resume.
        """
        batch_done, epoch_done = self._epoch.on_advance_end, self._fit.on_advance_end
        on_run_start, setup_data = self._fit.on_run_start, self._fit.setup_data

        def on_start() -> None:
            on_run_start()
            begun()

        def make_loaders() -> bool:
            before = self._fit._data_fetcher  # noqa: SLF001 - there is a new one for new loaders
            setup_data()
            return self._fit._data_fetcher is not before  # noqa: SLF001

        def on_batch(data_fetcher: Any) -> None:
            if is_whole and self._epoch._skip_next_val:  # noqa: SLF001 - a resume after a validation
                self._epoch._skip_next_val = False  # noqa: SLF001
                return
            batch_done(data_fetcher)
            batch()

        def on_epoch() -> None:
            if has_metrics:
                self._fit._restarting = False  # noqa: SLF001
            epoch_done()
            epoch()

        self._epoch.on_advance_end, self._fit.on_advance_end = on_batch, on_epoch
        self._fit.on_run_start, self._fit.setup_data = on_start, lambda: make(make_loaders)
        try:
            yield
        finally:
            del self._epoch.on_advance_end, self._fit.on_advance_end, self._fit.on_run_start, self._fit.setup_data

    def stop(self) -> None:
        """Have no further step taken."""
        self._fit.min_epochs, self._epoch.min_steps = 0, None
        self._trainer.should_stop = True

    def leave_epoch(self) -> None:
        """The epoch of the save has ended. Lightning would take up its end again, and now and then a batch more."""
        for progress in (self._fit.epoch_progress.total, self._fit.epoch_progress.current):
            progress.completed = progress.processed
        self._epoch.restarting = False
        self._fit.reset_restart_stage()
        self._epoch.reset_restart_stage()

    def resume_averages(self) -> None:
        """Take the average of weights up again that is under way: Lightning does so at the start of an epoch only.

        The new schedule steps once when it is made; the learning rates of the save are put back after it.
        """
        trainer = self._trainer
        for item in trainer.callbacks:
            if not isinstance(item, StochasticWeightAveraging) or item._scheduler_state is None:  # noqa: SLF001
                continue
            if not item.swa_start <= trainer.current_epoch <= item.swa_end:
                continue  # an epoch for batch norm has no steps, and so no save in its middle
            groups = trainer.optimizers[0].param_groups
            before = [{name: value for name, value in group.items() if name != "params"} for group in groups]
            item.on_train_epoch_start(trainer, trainer.lightning_module)
            for group, values in zip(groups, before, strict=True):
                group.update(values)

    def open_data(self) -> None:
        """Begin the epoch's data anew."""
        iter(self._fit._data_fetcher)  # noqa: SLF001

    def skip(self, opened: Callable[[], None]) -> None:
        """Open the data, and take the batches that are done. Loaders with state are where they were already.

        `opened` is called in between.
        """
        if all(isinstance(loader, Stateful) for loader in self.loaders):
            return
        for loader in self.loaders:
            set_epoch(loader, self._fit.epoch_progress.current.processed)
        self.open_data()
        opened()
        fetcher = self._fit._data_fetcher  # noqa: SLF001
        for _ in range(self._done):
            next(fetcher)
        fetcher.fetched -= self._done  # Lightning counts them in itself

    @property
    def loaded_in(self) -> int | None:
        """The epoch in which the loaders were made, of a Trainer that makes them anew in some."""
        epoch = self._fit._last_train_dl_reload_epoch  # noqa: SLF001 - minus infinity before there are any
        return int(epoch) if self._reloads_every and math.isfinite(epoch) else None

    @property
    def _reloads_every(self) -> int:
        return int(self._trainer.reload_dataloaders_every_n_epochs)

    def will_reload(self, loaded_in: int | None) -> bool:
        """True if new loaders are due in the next epoch, with those of the save made in `loaded_in`."""
        if self.is_mid_epoch or not self._reloads_every:
            return False
        if loaded_in is None:  # a checkpoint of an earlier version
            return self._reloads_every == 1
        return int(self._trainer.current_epoch) - loaded_in >= self._reloads_every

    def reload_as_of(self, loaded_in: int) -> None:
        """Have Lightning count from this epoch for making loaders anew; of those for a resume it counts from there."""
        self._fit._last_train_dl_reload_epoch = loaded_in  # noqa: SLF001

    @property
    def combined(self) -> Any:
        """Lightning's loader around those that the loop has its data from."""
        return self._fit._combined_loader  # noqa: SLF001

    @property
    def loaders(self) -> list[Any]:
        """The loaders that the loop has its data from."""
        return list(self._fit._combined_loader.flattened)  # noqa: SLF001


class Finders:
    """The LearningRateFinder and BatchSizeFinder of a Trainer: they try before the first step, and set what is best.

    To try again, in a training that goes on, would begin Lightning's loops anew after their state has come back.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._own = [item for item in trainer.callbacks if isinstance(item, BatchSizeFinder | LearningRateFinder)]

    def found(self) -> dict[str, Any]:
        """Return the attributes of the module, or of its data, that they set."""
        module = self._trainer.lightning_module
        return {name: lightning_getattr(module, name) for name in map(self._attribute, self._own) if name}

    def put_back(self, found: Mapping[str, Any]) -> None:
        """Set these attributes, as the first attempt has found them."""
        for name, value in found.items():
            lightning_setattr(self._trainer.lightning_module, name, value)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep them from trying before the first step."""
        for item in self._own:
            item.on_fit_start = lambda *_: None
        try:
            yield
        finally:
            for item in self._own:
                del item.on_fit_start

    def _attribute(self, item: Any) -> str:
        if isinstance(item, BatchSizeFinder):
            names: tuple[str, ...] = (item._batch_arg_name,)  # noqa: SLF001
        elif item._update_attr:  # noqa: SLF001
            names = (item._attr_name,) if item._attr_name else _RATES  # noqa: SLF001
        else:
            names = ()
        return next((name for name in names if lightning_hasattr(self._trainer.lightning_module, name)), "")
