"""A training loop as data: what it is made of, where it is killed, and what is changed before it resumes. Pure.

Each field has its simplest value as default, so a loop is made simpler by giving one of its fields that value.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

ALONE, DDP, FSDP2 = "alone", "ddp", "fsdp2"
TERM, KILL = "TERM", "KILL"
PHASES = ("batch", "forward", "backward", "step", "end")
"""Moments of a step at which a signal may come."""

PARTS = (
    "linear",
    "tanh",
    "dropout",
    "batchnorm",
    "layernorm",
    "weightnorm",
    "spectralnorm",
    "tied",
    "frozen",
    "unused",
    "gru",
    "conv",
    "embedding",
    "extra state",
    "calls",
    "transposed",
    "scalar",
    "own noise",
)
OPTIMIZERS = (
    "SGD",
    "SGD momentum",
    "Adam",
    "AdamW",
    "AdamW amsgrad",
    "AdamW tensor lr",
    "AdamW fused",
    "Adagrad",
    "Adadelta",
    "Adamax",
    "Adafactor",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "LBFGS",
    "Muon",
    "pair",
    "wide",
)
STATIC_GROUPS = ("one", "decay", "each", "named")
MOVING_GROUPS = ("added", "split", "merged")
SCHEDULERS = (
    "StepLR",
    "LambdaLR",
    "OneCycleLR",
    "CosineAnnealingWarmRestarts",
    "ReduceLROnPlateau",
    "SequentialLR",
    "ChainedScheduler",
    "CyclicLR",
    "MultiplicativeLR",
    "SWALR",
)
EMAS = ("averaged", "with buffers", "shadow", "module")
KEPT = (
    "generator",
    "metric",
    "scaler",
    "tuple",
    "counter",
    "numbers as keys",
    "odd numbers",
    "tensors",
    "dollar",
    "none",
    "empty",
    "slashes",
)
"""Objects whose state comes back."""
REFUSED = ("set", "bytes", "complex", "array", "sparse", "date")
"""Objects whose state may be refused."""
MAY_BE_REFUSED = frozenset(REFUSED)
"""Words of loops that may be refused after their first step."""
MAY_BE_REFUSED_LATER = frozenset(("stream",))
"""Words of loops that may be refused when they resume: outside Piton they are warned in their first attempt."""
STANDARD = ("ordered", "default", "deque", "named", "numpy number")
"""Objects of standard containers."""
SAMPLERS = (
    "in order",
    "shuffle",
    "weighted",
    "subset",
    "replacement",
    "generator",
    "batch",
    "lazy",
    "distributed",
    "python",
)
LOADERS = ("list", "dataloader", "stateful", "own", "own by yield", "stream")
NOISE = ("torch", "python", "numpy")


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A signal that ends an attempt."""

    step: int
    phase: str = "end"
    signal: str = TERM
    rank: int = 0
    """The rank that the signal reaches; after a SIGKILL the others are killed too, as torchrun does."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A training loop of one's own, its kills and its change."""

    seed: int = 0
    ranks: int = 1
    parallel: str = ALONE
    parts: tuple[str, ...] = ()
    bfloat16: bool = False
    wrapped: bool = False
    """True if the session gets the model in DDP's wrapper."""
    broadcasts: bool = True
    """False if DDP leaves buffers as they are on each rank."""
    optimizer: str = "SGD"
    lr: float = 0.02
    groups: str = "one"
    backwards: bool = False
    """True if the optimizer gets the parameters in the opposite order."""
    scheduler: str = ""
    ema: str = ""
    objects: tuple[str, ...] = ()
    apart: bool = False
    """True if objects differ between ranks from the start."""
    loader: str = "list"
    sampler: str = "in order"
    workers: int = 0
    persistent: bool = False
    augment: bool = False
    shares: int = 1
    """Number of ranks that the rows of the data set are enough for."""
    rest: bool = False
    """True if the last batch of an epoch is a smaller one."""
    noise: tuple[str, ...] = ()
    accumulate: int = 1
    declared: bool = False
    """True if the script says `accumulate=` to the session."""
    clears_after: bool = False
    thaws: bool = False
    """True if the first layer is trained only from some step on."""
    clips: bool = False
    epochs: int = 1
    batches: int = 6
    every: int = 2
    background: bool = False
    overlaps: bool = False
    kills: tuple[Kill, ...] = ()
    change: str = ""

    @property
    def steps(self) -> int:
        """Number of batches of all epochs."""
        return self.epochs * (self.batches + self.rest)

    @property
    def words(self) -> frozenset[str]:
        """All words that say what it is made of."""
        named = (self.parallel, self.optimizer, self.groups, self.scheduler, self.ema, self.loader, self.sampler)
        apart = self.parallel == FSDP2 or not self.broadcasts or self.ema == "with buffers"
        own = "own buffers" if self.ranks > 1 and apart and "batchnorm" in self.parts else ""
        return frozenset((*named, *self.parts, *self.objects, *self.noise, self.change, own)) - {""}

    def to_json(self) -> str:
        """Return it as JSON, without what is simplest."""
        simplest = asdict(Loop())
        return json.dumps({name: value for name, value in asdict(self).items() if value != simplest[name]})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse what `to_json` returns."""
        found: dict[str, Any] = json.loads(text)
        kills = tuple(Kill(**kill) for kill in found.pop("kills", ()))
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return cls(**{**found, **lists, "kills": kills})


def fits(loop: Loop) -> bool:
    """True if torch can run such a loop, and it is one that the docs speak of."""
    return not any(
        (
            (loop.ranks == 1) != (loop.parallel == ALONE),
            loop.parallel == FSDP2 and loop.words & _NOT_SHARDED,
            loop.parallel == FSDP2 and (loop.ema in ("averaged", "with buffers") or loop.wrapped),
            (loop.wrapped or not loop.broadcasts) and loop.parallel != DDP,
            loop.optimizer == "wide" and not loop.bfloat16,
            loop.bfloat16 and loop.words & {"spectralnorm", "weightnorm", "Muon", "Adafactor", "LBFGS", "gru"},
            loop.optimizer == "LBFGS" and (loop.accumulate > 1 or loop.groups != "one" or "scaler" in loop.objects),
            loop.optimizer == "LBFGS" and loop.words & {"dropout", "embedding", "transposed"},
            loop.optimizer in ("Muon", "pair", "LBFGS") and loop.groups != "one",
            loop.optimizer == "AdamW tensor lr" and (loop.groups != "one" or loop.scheduler not in ("", "StepLR")),
            loop.groups in MOVING_GROUPS and (loop.scheduler not in ("", "StepLR") or loop.change),
            loop.groups == "added" and loop.clears_after,  # its first step has gradients of earlier ones
            loop.groups == "each" and loop.scheduler in ("CyclicLR", "OneCycleLR"),
            loop.loader not in ("dataloader", "stateful") and (loop.sampler != "in order" or loop.workers),
            loop.loader in ("list", "own", "own by yield", "stream") and (loop.rest or loop.augment),
            loop.sampler == "lazy" and (loop.workers or loop.loader == "stateful"),
            loop.sampler == "distributed" and loop.ranks == 1 and not loop.change,
            loop.persistent and not loop.workers,
            loop.augment and (loop.workers or loop.loader == "stateful"),
            loop.declared and loop.accumulate == 1,
            loop.thaws and (loop.parallel != ALONE or "more ranks" in loop.change),  # DDP does not see it
            "scaler" in loop.objects and (loop.accumulate > 1 or loop.parallel == FSDP2 or loop.bfloat16 or loop.clips),
        )
    )


_NOT_SHARDED = frozenset(
    {"weightnorm", "spectralnorm", "tied", "transposed", "scalar", "gru"}
    | {"LBFGS", "Adafactor", "Muon", "Rprop", "AdamW fused", "shadow"}
)
"""What FSDP2 does not take on a CPU, or takes otherwise on each rank."""


def simpler(loop: Loop) -> Iterator[Loop]:
    """Yield loops with one part less, or with one value that is simpler; the greatest steps first."""
    for ranks in range(1, loop.ranks):
        kills = tuple(replace(kill, rank=0) for kill in loop.kills)
        alone = {"parallel": ALONE, "wrapped": False, "broadcasts": True} if ranks == 1 else {}
        yield replace(loop, ranks=ranks, shares=ranks, kills=kills, **alone)  # type: ignore[arg-type]
    if loop.parallel == FSDP2:
        yield replace(loop, parallel=DDP)
    for field in fields(Loop):
        value: Any = getattr(loop, field.name)
        default: Any = field.default
        if isinstance(value, tuple):
            shorter: list[Any] = [value[:n] + value[n + 1 :] for n in range(len(value))]
            yield from (replace(loop, **{field.name: part}) for part in shorter)
        elif field.name not in ("seed", "ranks", "shares", "parallel") and value != default:
            other = replace(loop, **{field.name: default})
            kills = tuple(replace(kill, step=min(kill.step, other.steps)) for kill in loop.kills)
            yield replace(other, kills=kills)
    for n, kill in enumerate(loop.kills):
        for plain in (replace(kill, phase="end"), replace(kill, signal=TERM), replace(kill, rank=0)):
            if plain != kill:
                yield replace(loop, kills=(*loop.kills[:n], plain, *loop.kills[n + 1 :]))
