"""Metrics of Lightning in the middle of an epoch, which its own checkpoints do not have.

    self.log(..., on_epoch=True)    sums of the epoch so far, put back where the value is logged again
    metrics of torchmetrics         their states, which are no buffers that a checkpoint has
    callback_metrics                what schedules and early stopping look at, until it is logged again

They are of one rank. Names are those of Lightning 2.6.6 that are not public.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.wrappers import MetricTracker

logger = logging.getLogger(__name__)

_HOW = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph"),
    *("add_dataloader_idx", "dataloader_idx", "metric_attribute"),
)
"""The settings of a logged value that are numbers and texts."""
_LOGGED, _METRICS, _SEEN, _RANKS, _TRACKED = "logged", "metrics", "seen", "ranks", "tracked"


class EpochMetrics:
    """The metrics of a Trainer on this rank."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._saved: Mapping[str, Any] | None = None
        self._sums: dict[str, Mapping[str, Tensor]] = {}
        """Of values that have not been logged again since the resume."""

    def state_dict(self) -> dict[str, Any]:
        """Return them in pairs of names and tensors: a name may hold anything."""
        return {
            _RANKS: self._trainer.world_size,
            _LOGGED: [[key, _document(one)] for key, one in self._logged.items() if not one.has_reset],
            _TRACKED: [[name, tracker.n_steps] for name, tracker in self._trackers()],
            _METRICS: [[name, _state(metric)] for name, metric in self._metrics() if metric._update_count],  # noqa: SLF001
            _SEEN: [[name, value] for name, value in self._seen.items() if isinstance(value, Tensor)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember them until Lightning has built and cleared all that it has."""
        self._saved = state

    def put_back(self, *, is_mid_epoch: bool) -> dict[str, Any]:
        """Put them back where a training begins; return those that callbacks see."""
        saved = {} if self._saved is None else self._saved
        self._seen.update(saved.get(_SEEN, ()))
        if _RANKS in saved and saved[_RANKS] != self._trainer.world_size:
            saved = {}
            if is_mid_epoch:
                logger.warning(
                    "metrics of this epoch are of the batches after the resume: the number of ranks has changed"
                )
        elif is_mid_epoch:
            self._trainer._logger_connector._first_loop_iter = False  # noqa: SLF001 - the first batch clears them
            self._put_back_later(dict(saved.get(_LOGGED, ())), is_known=_RANKS in saved)
        for name, steps in saved.get(_TRACKED, ()):
            _grow(dict(self._trackers()).get(name), steps)
        metrics = dict(self._metrics())
        for name, state in saved.get(_METRICS, ()):
            if name in metrics:
                _put(metrics[name], state)
        return dict(self._seen)

    def end_epoch(self) -> None:
        """Forget the sums: they are of an epoch that has ended."""
        self._sums.clear()

    def _put_back_later(self, documents: dict[str, Any], *, is_known: bool) -> None:
        """Have each value continue its sums where it is logged again; until then there is one that is like it."""
        logged, log, update = self._logged, self._logged.log, self._logged.update_metrics
        likenesses = {key: self._likeness(document) for key, document in documents.items()}
        self._sums = {key: document["sums"] for key, document in documents.items()}

        def log_anew(fx: str, name: str, *args: Any, **kwargs: Any) -> None:
            index = logged.dataloader_idx
            key = (
                f"{fx}.{name}"
                if index is None or not kwargs.get("add_dataloader_idx", True)
                else f"{fx}.{name}.{index}"
            )
            if likenesses.pop(key, None) is not None:
                logged.pop(key, None)  # the script says anew how it is to be logged
            log(fx, name, *args, **kwargs)

        def update_metrics(key: str, value: Any, batch_size: int) -> None:
            nonlocal is_known
            one = logged[key]
            if (sums := self._sums.pop(key, None)) is not None and one.is_tensor:
                _put_sums(one, sums, value.device)
            elif not is_known and one.meta.on_epoch:
                is_known = True
                logger.warning(
                    "%s: the checkpoint, of an earlier version of Piton, is without metrics of an epoch under way; "
                    "those of this epoch are of the batches after the resume",
                    one.meta.name,
                )
            update(key, value, batch_size)

        logged |= {key: one for key, one in likenesses.items() if one is not None}
        logged.log, logged.update_metrics = log_anew, update_metrics

    def _likeness(self, document: Mapping[str, Any]) -> Any:
        """Return a value like the one that was logged; None if its metric is not there."""
        meta = _Metadata(**{**document["meta"], "reduce_fx": document["reduce"]})
        meta.sync = _Sync(
            _should=document["syncs"], fn=self._trainer.strategy.reduce, rank_zero_only=document["is_main"]
        )
        one = _ResultMetric(meta, document["is_tensor"])
        if one.is_tensor:
            _put_sums(one, document["sums"], self._trainer.strategy.root_device)
        elif (metric := dict(self._metrics()).get(meta.metric_attribute or "")) is not None:
            one.value = metric
        else:
            return None
        one._update_count = 1  # noqa: SLF001
        return one

    @property
    def _logged(self) -> Any:
        return self._trainer.fit_loop.epoch_loop._results  # noqa: SLF001

    @property
    def _seen(self) -> dict[str, Any]:
        seen: dict[str, Any] = self._trainer._logger_connector._callback_metrics  # noqa: SLF001
        return seen

    def _trackers(self) -> Iterator[tuple[str, Any]]:
        named = self._trainer.lightning_module.named_modules()
        return ((name, module) for name, module in named if isinstance(module, MetricTracker))

    def _metrics(self) -> Iterator[tuple[str, Metric]]:
        named = self._trainer.lightning_module.named_modules()
        return ((name, module) for name, module in named if isinstance(module, Metric))


def _document(one: Any) -> dict[str, Any]:
    """Return how a value is logged, its sums, and what it was in the last step."""
    meta, sums = one.meta, {}
    if one.is_tensor:
        found = {"value": one.value, "size": getattr(one, "cumulated_batch_size", None), "step": one._forward_cache}  # noqa: SLF001
        sums = {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}
    return {
        "is_tensor": one.is_tensor,
        "sums": sums,
        "meta": {name: getattr(meta, name) for name in _HOW},
        "reduce": meta.reduce_fx.__name__,
        "syncs": meta.sync.should,
        "is_main": meta.sync.rank_zero_only,
    }


def _put_sums(one: Any, sums: Mapping[str, Tensor], device: Any) -> None:
    one.value = sums["value"].to(device)
    if "size" in sums and one.meta.is_mean_reduction:
        one.cumulated_batch_size = sums["size"].to(device)
    if "step" in sums:
        one._forward_cache = sums["step"].to(device)  # noqa: SLF001


def _grow(tracker: Any, steps: int) -> None:
    """Have a tracker begin so many metrics, as it has done before. Their states are put back after that."""
    while tracker is not None and tracker.n_steps < steps:
        tracker.increment()


def _state(metric: Metric) -> dict[str, Any]:
    states = {name: getattr(metric, name) for name in metric._defaults}  # noqa: SLF001
    return {"count": metric._update_count, "states": [[name, _tensors(value)] for name, value in states.items()]}  # noqa: SLF001


def _tensors(value: Any) -> Any:
    return [item.detach() for item in value] if isinstance(value, list) else value.detach()


def _put(metric: Metric, state: Mapping[str, Any]) -> None:
    for name, value in state["states"]:
        if name in metric._defaults:  # noqa: SLF001
            here = [item.to(metric.device) for item in value] if isinstance(value, list) else value.to(metric.device)
            setattr(metric, name, here)
    metric._update_count, metric._computed = int(state["count"]), None  # noqa: SLF001
