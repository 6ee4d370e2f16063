"""Schedules of the learning rate, beside the groups that a checkpoint has brought into their optimizer.

A schedule is made for the groups that the script gives. Some schedules then have lists with an item for each group:

    StepLR, ExponentialLR, OneCycleLR …     go by the groups that there are
    LambdaLR, CosineAnnealingLR, CyclicLR … go by their lists; a list of another length fails the next step

So the second kind is refused when the steps begin, if its lists do not fit: until then a script may mend them. What the
lists contain is the state of the schedule, and comes from the checkpoint with it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LRScheduler,
    MultiplicativeLR,
    ReduceLROnPlateau,
)

from piton_trainer.errors import BadConfig

_LISTS: Mapping[type[LRScheduler], Sequence[str]] = {
    LambdaLR: ("base_lrs", "lr_lambdas"),
    MultiplicativeLR: ("lr_lambdas",),
    CosineAnnealingLR: ("base_lrs",),
    CosineAnnealingWarmRestarts: ("base_lrs",),
    CyclicLR: ("base_lrs", "max_lrs"),
    ReduceLROnPlateau: ("min_lrs",),
}
"""The lists of a kind that have an item for each group, and without which its next step fails.

Where a kind is not named here, a list that does not fit does no harm.
"""


def refuse_unfit_schedules(objects: Mapping[str, Any]) -> None:
    """Refuse a schedule among the objects that is made for more or fewer groups than its optimizer has now.

    Raises:
        BadConfig: there is one.
    """
    for name, value in objects.items():
        _expect_fitting(name, value)


def _expect_fitting(name: str, schedule: object) -> None:
    for part in getattr(schedule, "_schedulers", ()):
        _expect_fitting(name, part)
    lists = next((lists for kind, lists in _LISTS.items() if isinstance(schedule, kind)), ())
    groups = len(schedule.optimizer.param_groups) if isinstance(schedule, LRScheduler) else 0
    lengths = {len(own) for one in lists if isinstance(own := getattr(schedule, one, None), list)} - {groups}
    if lengths:
        raise BadConfig(
            f"{name}: it is a {type(schedule).__name__} of {min(lengths)} parameter groups, and the optimizer has "
            f"{groups}, with those of the checkpoint; give the optimizer the checkpoint's groups before the schedule "
            "is made, or begin a new run"
        )
