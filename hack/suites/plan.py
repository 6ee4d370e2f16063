"""Which parts each suite has, in which order, and the minutes that each part should take on 2 cores. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from random import Random


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command of a suite."""

    name: str
    command: str
    """A line for bash, run in the root of the checkout."""
    warm: float
    """Minutes with all caches filled."""
    cold: float | None = None
    """Minutes with empty caches; None where that makes no difference."""
    needs: tuple[str, ...] = ()
    """The parts that must have passed before this one starts."""
    after: tuple[str, ...] = ()
    """The parts that must have ended before this one starts, passed or failed."""
    environment: Mapping[str, str] = field(default_factory=dict)
    niceness: int = 0
    """By how much its processes stand back behind those of other parts, as `nice` counts. With 5 they get a quarter of
    a CPU that others want as well. With 15 they starved, and tests that wait for something ran out of time."""
    is_one_case: bool = False
    """True if its tests take their size and seed from the command: only the whole part repeats a failure of one."""

    @property
    def minutes_cold(self) -> float:
        """Minutes with empty caches."""
        return self.warm if self.cold is None else self.cold


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Parts, and the limits of the whole. A part comes after the parts that it waits for."""

    name: str
    parts: tuple[Part, ...]
    warm: float
    """Minutes that the whole may take with all caches filled."""
    cold: float
    """Minutes that the whole may take with empty caches."""
    limit: float
    """Minutes after which the suite stops what still runs."""

    def only(self, name: str) -> "Suite":
        """Return the suite of that part and of all parts that it needs.

        Raises:
            ValueError: The suite has no such part.
        """
        named = {part.name: part for part in self.parts}
        if name not in named:
            raise ValueError(f"PART: {self.name} has no part {name!r}; choose one of {', '.join(named)}")
        wanted, left = {name}, [name]
        while left:
            needs = set(named[left.pop()].needs) - wanted
            wanted |= needs
            left += needs
        return replace(self, parts=tuple(part for part in self.parts if part.name in wanted))


def longest_path(parts: Iterable[Part], *, cold: bool) -> float:
    """Return the planned minutes of the whole: those of the longest chain of parts that wait for one another."""
    ends: dict[str, float] = {}
    for part in parts:
        begins = max((ends[name] for name in (*part.needs, *part.after) if name in ends), default=0.0)
        ends[part.name] = begins + (part.minutes_cold if cold else part.warm)
    return max(ends.values(), default=0.0)


def _beside(name: str, command: str, *, warm: float, after: str = "", is_one_case: bool = False) -> Part:
    """Return a part that computes. It runs at a low priority beside the stories of a cluster, which mostly wait."""
    order = (after,) if after else ()
    return Part(
        name=name,
        command=command,
        warm=warm,
        niceness=5,
        needs=("setup",),
        after=order,
        is_one_case=is_one_case,
    )


_PREPARED = (
    Part(name="setup", command="make datasets && .venv/bin/python -m hack.cluster promtool", warm=2),
    # A run that was killed may have left a box.
    Part(name="build", command="make cluster-down e2e-build", warm=1, cold=13, needs=("setup",)),
    Part(
        name="build-neighbours",
        command="make e2e-neighbours-build",
        warm=0,
        cold=12,
        needs=("setup",),
        after=("build",),  # one build at a time; the stories that start first need the other one
    ),
)

PRESUBMIT = Suite(
    name="presubmit",
    warm=40,
    cold=55,
    limit=85,
    parts=(
        *_PREPARED,
        Part(name="cluster", command="make e2e PART=presubmit", warm=14, needs=("build",)),
        Part(
            name="neighbours",
            command="make e2e-neighbours PART=presubmit",
            warm=6,
            needs=("build", "build-neighbours"),
            after=("cluster",),  # there is one box
        ),
        _beside("test", "make test", warm=5),
        _beside("check", "make check", warm=1, after="test"),
        _beside("test-slow", "make test-slow", warm=12, after="check"),
        _beside("system", "make e2e PART=system", warm=3, after="test-slow"),
        _beside("loops", "make fuzz-loops LOOPS=50 SEED=0", warm=3, after="system", is_one_case=True),
        _beside("data", "make fuzz-data N=100 SEED=0", warm=1, after="loops", is_one_case=True),
        # The stories on the cluster have ended by then, so a core is free.
        _beside("kills", "make test-crash KILLS=20", warm=12, after="test-slow", is_one_case=True),
    ),
)


def nightly(day: date) -> Suite:
    """Return the nightly suite of that day, which draws the seeds of everything that is random."""
    random = Random(day.isoformat())  # noqa: S311 - seeds that the day repeats
    seed = str(random.randrange(1_000_000))
    storms = " ".join(str(found) for found in sorted(random.sample(range(1000), 6)))
    jobs = {"PITON_DIFFERENTIAL_JOBS": "300", "PITON_DIFFERENTIAL_SEED": seed}

    return Suite(
        name="nightly",
        warm=100,
        cold=125,
        limit=180,
        parts=(
            *_PREPARED,
            Part(
                name="cluster",
                command="make e2e PART=cluster",
                warm=32,
                needs=("build",),
                environment={"CHAOS_SEEDS": storms},
            ),
            Part(
                name="neighbours",
                command="make e2e-neighbours",
                warm=20,
                needs=("build", "build-neighbours"),
                after=("cluster",),  # there is one box
                environment=jobs,
            ),
            _beside("test", "make test", warm=5),
            _beside("check", "make check", warm=1, after="test"),
            _beside("test-slow", "make test-slow", warm=12, after="check"),
            _beside("systems", "make e2e PART=systems", warm=18, after="test-slow"),
            _beside("kills", f"make test-crash KILLS=200 SEED={seed}", warm=17, after="systems", is_one_case=True),
            _beside("worlds", f"make worlds WORLDS=1000 SEED={seed}", warm=3, after="kills", is_one_case=True),
            _beside("loops", f"make fuzz-loops LOOPS=300 SEED={seed}", warm=12, after="worlds", is_one_case=True),
            _beside("data", f"make fuzz-data N=2000 SEED={seed}", warm=2, after="loops", is_one_case=True),
            _beside("gpu-dry", "make gpu DRY=1 MINUTES=30", warm=3, after="data"),
            Part(
                name="operator",
                command="make bench-operator RUNS=100",
                warm=13,
                needs=("build", "build-neighbours"),
                after=("neighbours", "gpu-dry"),  # alone, as it measures
            ),
        ),
    )
