"""Loops by a seed. Pure."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

from fuzz_loops.changes import CHANGES, can_change, changed
from fuzz_loops.loop import (
    ALONE,
    DDP,
    EMAS,
    FSDP2,
    KEPT,
    KILL,
    LOADERS,
    MOVING_GROUPS,
    NOISE,
    OPTIMIZERS,
    PARTS,
    PHASES,
    REFUSED,
    SAMPLERS,
    SCHEDULERS,
    STANDARD,
    STATIC_GROUPS,
    TERM,
    Kill,
    Loop,
    fits,
)

_VALUES: dict[str, tuple[Any, ...]] = {
    "ranks": (1, 1, 2, 2, 2, 3, 4),
    "parallel": (DDP, FSDP2),
    "parts": PARTS,
    "bfloat16": (False, False, True),
    "wrapped": (False, True),
    "broadcasts": (True, False),
    "optimizer": OPTIMIZERS,
    "groups": ("one", *STATIC_GROUPS, *MOVING_GROUPS, *MOVING_GROUPS),
    "backwards": (False, False, True),
    "scheduler": ("", *SCHEDULERS),
    "ema": ("", *EMAS),
    "objects": KEPT * 4 + STANDARD * 4 + REFUSED,
    "apart": (False, True),
    "loader": ("list", "dataloader", "dataloader", "dataloader", "stateful", *LOADERS),
    "sampler": SAMPLERS,
    "workers": (0, 0, 1, 2),
    "persistent": (False, True),
    "augment": (False, True),
    "rest": (False, True),
    "noise": NOISE,
    "accumulate": (1, 1, 2, 3),
    "declared": (False, True),
    "clears_after": (False, True),
    "thaws": (False, False, True),
    "clips": (False, False, True),
    "epochs": (1, 2, 3),
    "batches": (3, 4, 5),
    "every": (1, 2, 3, 4),
    "background": (False, True),
    "overlaps": (False, False, True),
    "change": ("", *CHANGES),
}
"""What a field may be; of a field that holds several words, what they may be. Some are there twice, to come often."""
_WORDS_MAX = {"parts": 4, "objects": 2, "noise": 2}


def draw(seed: int, number: int) -> Loop:
    """Return one of the loops of a seed; always the same. Fields get their values in any order, as they fit."""
    random = Random(f"{seed}/{number}")
    loop = Loop(seed=random.randrange(1000))
    for name in random.sample(sorted(_VALUES), len(_VALUES)):
        loop = _with(random, loop, name)
    return replace(loop, kills=tuple(_kills(random, loop)))


def is_right(loop: Loop) -> bool:
    """True if torch can run the loop before its change and after it, and an oracle knows what is right then."""
    has_kills = all(kill.step <= loop.steps and kill.rank < loop.ranks for kill in loop.kills)
    return fits(loop) and has_kills and can_change(loop) and fits(changed(loop))


def _with(random: Random, loop: Loop, name: str) -> Loop:
    """Return the loop with a value of this field that fits to the others."""
    for _ in range(_TRIES):
        value: Any = random.choice(_VALUES[name])
        if name in _WORDS_MAX:
            value = tuple(dict.fromkeys(random.sample(_VALUES[name], random.randint(0, _WORDS_MAX[name]))))
        other = replace(loop, **{name: value})
        if name == "ranks":
            parallel = ALONE if value == 1 else random.choice(_VALUES["parallel"])
            other = replace(other, shares=value, parallel=parallel)
        if is_right(other):
            return other
    return loop


_TRIES = 5


def _kills(random: Random, loop: Loop) -> Iterator[Kill]:
    """One kill or two, at steps that a resumed attempt comes to."""
    step = 0
    for _ in range(random.choice((1, 1, 2))):
        first = step + 1 + (loop.accumulate if step else 0)
        if first > loop.steps:
            return
        step = random.randint(first, loop.steps)
        yield Kill(
            step=step,
            phase=random.choice(PHASES),
            signal=random.choice((TERM, KILL)),
            rank=random.randrange(loop.ranks),
        )
