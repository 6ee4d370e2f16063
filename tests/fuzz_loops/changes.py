"""What a script may have changed when it resumes, and what then is right. Pure.

like torch     what the same change does over torch.save and torch.load per rank
like before    what the script does without the change: the checkpoint counts, and a line of the log says so
refused        nothing else would be right
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fuzz_loops.loop import ALONE, DDP, FSDP2, MOVING_GROUPS, Loop


def _always(loop: Loop) -> bool:
    return bool(loop)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a script."""

    of: Callable[[Loop], Loop]
    fits: Callable[[Loop], bool] = _always
    like_before: bool = False
    told: str = ""
    """Words of the log without which the change would be taken in silence."""
    refused: bool = False
    """True if a refusal is right as well."""


def _other(value: str, *values: str) -> str:
    return next(other for other in values if other != value)


CHANGES: dict[str, Change] = {
    "lr": Change(of=lambda loop: replace(loop, lr=0.5), fits=lambda loop: loop.optimizer != "pair"),
    "other optimizer": Change(
        of=lambda loop: replace(loop, optimizer=_other(loop.optimizer, "Adam", "SGD momentum")), refused=True
    ),
    "other groups": Change(
        of=lambda loop: replace(loop, groups=_other(loop.groups, "decay", "one")),
        fits=lambda loop: loop.optimizer not in ("Muon", "pair", "LBFGS", "AdamW tensor lr") and loop.groups != "named",
        like_before=True,
        told="parameter groups are",
        refused=True,  # some schedules have one function for each group
    ),
    "order of parameters": Change(of=lambda loop: replace(loop, backwards=not loop.backwards), like_before=True),
    "bfloat16": Change(
        of=lambda loop: replace(loop, bfloat16=True),
        fits=lambda loop: not loop.bfloat16 and loop.ema != "shadow",  # its own code keeps the type of the checkpoint
        told="is converted",
    ),
    "other scheduler": Change(
        of=lambda loop: replace(loop, scheduler=_other(loop.scheduler, "StepLR", "CosineAnnealingWarmRestarts")),
        fits=lambda loop: bool(loop.scheduler),
        refused=True,
    ),
    "no scheduler": Change(of=lambda loop: replace(loop, scheduler=""), fits=lambda loop: bool(loop.scheduler)),
    "a scheduler": Change(
        of=lambda loop: replace(loop, scheduler="StepLR"), fits=lambda loop: not loop.scheduler, refused=True
    ),
    "an average": Change(of=lambda loop: replace(loop, ema="module"), fits=lambda loop: not loop.ema, refused=True),
    "another object": Change(
        of=lambda loop: replace(loop, objects=(*loop.objects, "metric")),
        fits=lambda loop: "metric" not in loop.objects,
        refused=True,
    ),
    "an object less": Change(
        of=lambda loop: replace(loop, objects=loop.objects[1:]),
        fits=lambda loop: bool(loop.objects) and loop.objects[0] != "scaler",
    ),
    "another layer": Change(of=lambda loop: replace(loop, parts=(*loop.parts, "linear")), refused=True),
    "a layer less": Change(
        of=lambda loop: replace(loop, parts=loop.parts[1:]), fits=lambda loop: bool(loop.parts), refused=True
    ),
    "workers": Change(
        of=lambda loop: replace(loop, workers=2 - loop.workers),
        fits=lambda loop: loop.loader == "dataloader" and loop.sampler != "lazy" and not loop.augment,
    ),
    "accumulation": Change(of=lambda loop: replace(loop, accumulate=1 + loop.accumulate % 2, declared=False)),
    "another epoch": Change(of=lambda loop: replace(loop, epochs=loop.epochs + 1)),
    "fewer ranks": Change(
        of=lambda loop: replace(
            loop, ranks=loop.ranks - 1, parallel=loop.parallel if loop.ranks > 2 else ALONE, broadcasts=True
        ),
        fits=lambda loop: loop.ranks > 1 and _counts_for_all(loop) and not loop.wrapped,
    ),
    "more ranks": Change(
        of=lambda loop: replace(loop, ranks=loop.ranks + 1, parallel=DDP if loop.parallel == ALONE else loop.parallel),
        fits=lambda loop: loop.ranks < 4 and _counts_for_all(loop),
    ),
    "sharded": Change(
        of=lambda loop: replace(loop, parallel=FSDP2, wrapped=False, broadcasts=True),
        fits=lambda loop: loop.parallel == DDP,
    ),
    "in DDP": Change(of=lambda loop: replace(loop, parallel=DDP), fits=lambda loop: loop.parallel == FSDP2),
    "clears": Change(of=lambda loop: replace(loop, clears_after=not loop.clears_after)),
}


def _counts_for_all(loop: Loop) -> bool:
    """True if another number of ranks finds its place in the data."""
    return (loop.loader == "dataloader" and loop.sampler == "distributed") or loop.loader == "list"


def changed(loop: Loop) -> Loop:
    """Return the loop as its last attempt has it."""
    return CHANGES[loop.change].of(loop) if loop.change else loop


def can_change(loop: Loop) -> bool:
    """True if the change of a loop is one that its oracle understands."""
    if not loop.change:
        return True
    return (
        loop.loader in ("list", "dataloader")
        and loop.groups not in MOVING_GROUPS
        and bool(CHANGES[loop.change].fits(loop))
    )
