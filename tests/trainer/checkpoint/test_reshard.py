"""The number of ranks changes between two attempts, or the way in which they share the model; the training does not.

Each case is an attempt that is told to stop in the middle of an epoch, and one that goes on. All attempts of as many
ranks follow each other in the same processes, since it is those that take their time.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from piton.contract.termination import ExitCode
from piton_trainer.checkpoint.format import codec
from piton_trainer.checkpoint.format.layout import read_document
from piton_trainer.checkpoint.load.loader import load_tensors, newest_good
from piton_trainer.runtime.process_group import Ranks
from support import ranks, resharded
from support.resharded import STEPS, WINDOWS, Kind, Plan, Ran

STOP_AT = 7
"""The second of the epochs, five steps each, is at its second step then."""


@dataclass(frozen=True)
class World:
    """Who trains."""

    kind: Kind
    size: int

    def __str__(self) -> str:
        return f"{self.kind}{self.size}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What changes between two attempts."""

    before: World
    after: World
    background_saves: bool = True

    def __str__(self) -> str:
        return f"{self.before}-to-{self.after}" + ("" if self.background_saves else "-blocking")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What became of a case, by rank."""

    case: Case
    directory: Path
    stopped: Sequence[Ran]
    resumed: Sequence[Ran]
    alone: Ran
    """One rank that nobody stopped."""
    undisturbed: Sequence[Ran]
    """As many ranks of the same kind as go on, that nobody stopped; only where those before were the same."""


def all_cases() -> Iterator[Case]:
    kinds: tuple[Kind, ...] = ("ddp", "fsdp")
    for (before, after), kind, other in product(((1, 2), (2, 1), (4, 2), (2, 2)), kinds, kinds):
        yield Case(before=World(kind, before), after=World(other, after))
    yield Case(before=World("fsdp", 2), after=World("ddp", 1), background_saves=False)


CASES = list(all_cases())
HARDEST = Case(before=World("fsdp", 4), after=World("ddp", 2))
"""Tested each time. Of four ranks that share a tensor some have no row of it."""


def run_all(plans: dict[World, list[Plan]]) -> dict[Path, list[Ran]]:
    """What each rank saw of each attempt, by directory."""
    found: dict[Path, list[Ran]] = {}
    for size in sorted({world.size for world in plans}):
        own = [plan for world in plans for plan in plans[world] if world.size == size]
        ends = ranks.run(size, partial(resharded.run, own))
        assert [end.code for end in ends] == [0] * size
        found |= {plan.directory: [end.result[number] for end in ends] for number, plan in enumerate(own)}
    return found


def play(cases: Sequence[Case], root: Path) -> list[Seen]:
    """All cases, in two rounds: one until the stop, one from there."""
    first: dict[World, list[Plan]] = {}
    undisturbed = {case.after for case in cases if case.before == case.after} | {World("ddp", 1)}
    for world in undisturbed:
        first.setdefault(world, []).append(Plan(directory=root / f"undisturbed-{world}", kind=world.kind))
    for world, background in {(case.before, case.background_saves) for case in cases}:
        plan = Plan(directory=begun(root, world, background), kind=world.kind, stop_at=STOP_AT)
        first.setdefault(world, []).append(Plan(**(vars(plan) | {"background_saves": background})))
    before = run_all(first)

    second: dict[World, list[Plan]] = {}
    for case in cases:
        shutil.copytree(begun(root, case.before, case.background_saves), root / str(case))
        plan = Plan(directory=root / str(case), kind=case.after.kind, background_saves=case.background_saves)
        second.setdefault(case.after, []).append(plan)
    after = run_all(second)
    return [
        Seen(
            case=case,
            directory=begun(root, case.before, case.background_saves),
            stopped=before[begun(root, case.before, case.background_saves)],
            resumed=after[root / str(case)],
            alone=before[root / "undisturbed-ddp1"][0],
            undisturbed=before[root / f"undisturbed-{case.after}"] if case.before == case.after else [],
        )
        for case in cases
    ]


def begun(root: Path, world: World, background: bool) -> Path:
    return root / f"begun-{world}-{'background' if background else 'blocking'}"


def check(seen: Seen) -> None:
    """All that has to hold."""
    assert {ran.code for ran in seen.stopped} == {ExitCode.STOPPED}
    assert {ran.code for ran in seen.resumed} == {0}
    assert_all_state_arrived(seen)
    assert_the_data_goes_on(seen)
    assert_the_rates_go_on(seen)
    assert_same_end(seen)
    assert_the_random_numbers_go_on(seen)


def assert_all_state_arrived(seen: Seen) -> None:
    """Bit by bit: what the new ranks would save is what the old ones saved. Where the data goes on shows later."""
    checkpoint = newest_good(seen.directory, Ranks())
    assert checkpoint is not None
    assert checkpoint.manifest.step == STOP_AT
    assert checkpoint.manifest.world_size == seen.case.before.size
    document = read_document(checkpoint.folder)
    saved: dict[str, Any] = {"documents": document["objects"]}
    tensors = load_tensors(checkpoint, dict.fromkeys(codec.keys(document["objects"])))
    saved |= {key: tensor.numpy() for key, tensor in tensors.items()}
    assert {"exp_avg", "exp_avg_sq", "step"} < {key.rpartition("/")[2] for key in saved}
    assert {"model", "ema", "optimizer", "scheduler"} == document["objects"].keys()
    for ran in seen.resumed:
        assert [
            key for key in saved.keys() | ran.arrived.keys() if not same(saved.get(key), ran.arrived.get(key))
        ] == []


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return bool(json.loads(json.dumps(one)) == json.loads(json.dumps(other)))


def assert_the_data_goes_on(seen: Seen) -> None:
    """Each step has the windows that it would have had, and each epoch has each window once."""
    steps = together(seen.stopped) | together(seen.resumed)
    assert sorted(together(seen.stopped)) == list(range(1, STOP_AT + 1))
    assert sorted(together(seen.resumed)) == list(range(STOP_AT + 1, STEPS + 1))
    assert steps == together([seen.alone])
    for first in (1, 6):
        assert sorted(chain(*(steps[step] for step in range(first, first + 5)))) == list(range(WINDOWS))


def together(rans: Sequence[Ran]) -> dict[int, list[int]]:
    """The windows of each step, of all ranks."""
    return {step: sorted(chain(*(ran.seen[step] for ran in rans))) for step in rans[0].seen}


def assert_the_rates_go_on(seen: Seen) -> None:
    for before, after in zip(seen.stopped, seen.resumed, strict=False):
        assert before.rates | after.rates == seen.alone.rates


def assert_same_end(seen: Seen) -> None:
    """Weights, averages and momenta are those of one rank that nobody stopped; in the same world, bit by bit."""
    for number, ran in enumerate(seen.resumed):
        assert ran.end.keys() == seen.alone.end.keys()
        assert same(ran.end["documents"], seen.alone.end["documents"])
        for key in ran.end.keys() - {"documents"}:
            np.testing.assert_allclose(ran.end[key], seen.alone.end[key], rtol=1e-9, atol=1e-12, err_msg=key)
            if seen.undisturbed:
                assert same(ran.end[key], seen.undisturbed[number].end[key]), key


def assert_the_random_numbers_go_on(seen: Seen) -> None:
    """A rank that was there goes on with its own; one that was not has some that nobody else has."""
    for number, ran in enumerate(seen.resumed):
        if number < len(seen.stopped):
            assert ran.drawn == {step: resharded.draws(number, STEPS)[step] for step in ran.drawn}
    everybody = [drawn for ran in seen.resumed for drawn in ran.drawn.values()]
    assert len(set(everybody)) == len(everybody)


def test_what_four_ranks_share_is_whole_on_two(tmp_path: Path) -> None:
    for seen in play([HARDEST], tmp_path):
        check(seen)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Seen]:
    return {seen.case: seen for seen in play(CASES, tmp_path_factory.mktemp("worlds"))}


@pytest.mark.crash
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_ranks_go_on_as_if_they_had_been_there_all_along(case: Case, played: dict[Case, Seen]) -> None:
    check(played[case])


@pytest.mark.crash
def test_ranks_that_were_not_there_draw_the_same_whoever_they_share_the_model_with(played: dict[Case, Seen]) -> None:
    new = [seen.resumed[1].drawn for case, seen in played.items() if case.before.size == 1]
    assert len(new) == 4
    assert all(drawn == new[0] for drawn in new)
