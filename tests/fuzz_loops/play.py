"""One loop, from its first attempt to the verdict."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fuzz_loops.changes import CHANGES, Change, changed
from fuzz_loops.drivers import Place, under_piton, without
from fuzz_loops.loop import KILL, MAY_BE_REFUSED, MAY_BE_REFUSED_LATER, Kill, Loop
from piton.contract.termination import ExitCode
from piton_trainer.checkpoint.format import layout
from support import ranks
from support.verdicts import VerdictKind

SECONDS = 60.0
"""Time for one attempt; they take less than two seconds."""
_TRACEBACK = "Traceback (most recent call last)"
_EXPECTED = (0, ExitCode.STOPPED, -signal.SIGKILL)
"""Exit codes of ranks that have finished, or were killed as the loop says."""


class Kind(VerdictKind):
    """What became of a loop."""

    EXACT = "exact"
    REFUSED = "refused"
    NO_LOOP = "torch refuses"
    DIFFERENT = "DIFFERENT WITHOUT A WORD"
    UNTOLD = "TAKEN WITHOUT A WORD"
    TRACEBACK = "TRACEBACK"
    LATE = "REFUSED LATE"
    NEEDLESS = "REFUSED WITHOUT NEED"
    HANGS = "HANGS"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a loop, and why."""

    kind: Kind
    reason: str = ""
    detail: str = ""


Lines = dict[tuple[int, int | str], dict[str, Any]]
"""The traces of all ranks, by rank and step."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What one attempt has left behind."""

    place: Place
    loop: Loop
    codes: list[int]
    lines: Lines

    @property
    def resumed_from(self) -> int | None:
        """The step that it resumed from."""
        found: int | None = self.lines.get((0, "begin"), {}).get("from")
        return found

    @property
    def steps(self) -> int:
        """The number of steps that rank 0 has done."""
        return sum(rank == 0 and isinstance(step, int) for rank, step in self.lines)

    def log(self, rank: int = 0) -> str:
        """Return what a rank has written."""
        path = self.place.file("log", rank)
        return path.read_text(errors="replace") if path.exists() else ""

    def logs(self) -> str:
        """Return what all ranks have written."""
        return "".join(map(self.log, range(self.loop.ranks)))

    def error(self) -> str:
        """Return the exception that ended a rank, in one line."""
        failed = [rank for rank, code in enumerate(self.codes) if code not in _EXPECTED]
        own = [
            line
            for rank in failed
            for line in self.log(rank).splitlines()
            if re.match(r"[A-Za-z_.]+(Error|Exception|Warning): ", line)
        ]
        lines = own or [line for rank in failed for line in self.log(rank).splitlines() if line]
        return lines[-1] if lines else f"exit codes {self.codes}"


def play(loop: Loop, folder: Path) -> Verdict:
    """Run the attempts of a loop and its oracle, and compare."""
    try:
        return Play(loop, folder).verdict()
    except TimeoutError as error:
        return Verdict(kind=Kind.HANGS, reason=str(error))


class Play:
    """One loop in a folder of its own."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._loop = loop
        self._folder = folder
        self._change = CHANGES[loop.change] if loop.change else Change(of=lambda same: same)

    def verdict(self) -> Verdict:
        """Return what became of it."""
        attempts = list(self._attempts())
        last = attempts[-1]
        code = max(last.codes, key=lambda code: (code == ExitCode.BAD_CONFIG, code))
        if code == ExitCode.BAD_CONFIG:
            return self._refused(attempts)
        before = self._oracle(attempts)
        if any(before.codes):
            return Verdict(kind=Kind.NO_LOOP, reason=_plain(before.error()))
        if any(code not in _EXPECTED for code in last.codes):
            return Verdict(kind=Kind.TRACEBACK, reason=_plain(last.error()), detail=last.logs())
        for attempt in attempts[:-1] if self._loop.change else attempts:
            if difference := _difference(attempt, before):
                return Verdict(kind=Kind.DIFFERENT, reason=difference, detail=attempt.logs())
        if self._loop.change and not self._is_over(attempts):
            return self._after_the_change(last, before)
        return Verdict(kind=Kind.EXACT)

    def _attempts(self) -> Iterator[Attempt]:
        for number, kill in enumerate((*self._loop.kills, None)):
            loop = changed(self._loop) if kill is None else self._loop
            attempt = self._attempt(loop, number, kill)
            yield attempt
            is_killed = kill is not None and (
                -signal.SIGKILL in attempt.codes if kill.signal == KILL else set(attempt.codes) == {ExitCode.STOPPED}
            )
            if not is_killed and set(attempt.codes) != {0}:
                return

    def _attempt(self, loop: Loop, number: int, kill: Kill | None) -> Attempt:
        place, checkpoints = Place(folder=self._folder, name=f"attempt-{number}"), self._folder / "checkpoints"
        has_saved = checkpoints.exists() and bool(layout.step_folders(checkpoints))
        seed = loop.seed + (number + 1 if has_saved else 0)
        body = partial(under_piton, loop, place, checkpoints, seed=seed, kill=kill)
        return self._run(loop, place, body, is_killed=kill is not None and kill.signal == KILL)

    def _run(self, loop: Loop, place: Place, body: Callable[[], object], *, is_killed: bool = False) -> Attempt:
        with ranks.start(loop.ranks, body) as world:
            if is_killed:
                world.end_as_torchrun_does(0.0)
            codes = [end.code for end in world.wait(SECONDS)]
        return Attempt(place=place, loop=loop, codes=codes, lines=_lines(place, loop.ranks))

    def _oracle(self, attempts: list[Attempt]) -> Attempt:
        """Run the loop undisturbed, and without Piton."""
        saves = frozenset(step for attempt in attempts if (step := attempt.resumed_from) is not None)
        place = Place(folder=self._folder, name="undisturbed")
        return self._run(self._loop, place, partial(without, self._loop, place, seed=self._loop.seed, saves=saves))

    def _reloaded(self, loop: Loop, last: Attempt) -> Attempt:
        """Run what is left of a loop, over torch.save and torch.load where the last attempt has resumed."""
        step, place = last.resumed_from, Place(folder=self._folder, name="reloaded")
        load = None if step is None else self._folder / f"saved-{step}"
        seed = loop.seed + (0 if step is None else 50)
        return self._run(loop, place, partial(without, loop, place, seed=seed, load=load))

    def _after_the_change(self, last: Attempt, before: Attempt) -> Verdict:
        change = self._change
        right = before if change.like_before and last.resumed_from is not None else self._reloaded(last.loop, last)
        if any(right.codes):
            reason = f"{self._loop.change}: torch refuses ({_plain(right.error())}), and Piton goes on"
            return Verdict(kind=Kind.DIFFERENT, reason=reason, detail=last.logs())
        if difference := _difference(last, right):
            return Verdict(kind=Kind.DIFFERENT, reason=f"{self._loop.change}: {difference}", detail=last.logs())
        if change.told and last.resumed_from is not None and change.told not in last.logs():
            return Verdict(kind=Kind.UNTOLD, reason=f"{self._loop.change}: no line with {change.told!r}")
        return Verdict(kind=Kind.EXACT)

    def _is_over(self, attempts: list[Attempt]) -> bool:
        """True if an attempt before the change has finished already, so that the change changes nothing."""
        return any(set(attempt.codes) == {0} for attempt in attempts[:-1])

    def _refused(self, attempts: list[Attempt]) -> Verdict:
        last = attempts[-1]
        words = [line.removeprefix("piton: ") for line in last.log().splitlines() if line.startswith("piton: ")]
        reason = _plain(words[-1]) if words else "without a sentence"
        if last.steps > last.loop.accumulate or not words:
            return Verdict(kind=Kind.LATE, reason=reason, detail=last.logs())
        if _TRACEBACK in last.logs():
            return Verdict(kind=Kind.TRACEBACK, reason=reason, detail=last.logs())
        is_changed = last.loop is not self._loop and self._change.refused
        words_that_may = MAY_BE_REFUSED_LATER if last.resumed_from else MAY_BE_REFUSED
        may_be = is_changed or self._loop.words & words_that_may
        return Verdict(kind=Kind.REFUSED if may_be else Kind.NEEDLESS, reason=reason, detail=last.logs())


def _lines(place: Place, world_size: int) -> Lines:
    found: Lines = {}
    for rank in range(world_size):
        path = place.file("trace", rank)
        for text in path.read_text().splitlines() if path.exists() else ():
            if text.endswith("}"):  # the last one may have been cut
                line = json.loads(text)
                found[rank, line["step"]] = line
    return found


def _difference(one: Attempt, other: Attempt) -> str:
    """Return where two traces differ first; an empty text if the first is a part of the second."""
    # Where nothing was left to train, only what rank 0 has is the end of the training.
    is_idle = one.steps == 0
    left_out = {"random numbers"} if is_idle else set()
    for rank, step in sorted(one.lines, key=_order):
        if step == "begin" or (is_idle and rank > 0):
            continue
        line, right = one.lines[rank, step], other.lines.get((rank, step))
        if right is None:
            return f"a step {step} that is not there"
        if wrong := sorted(name for name in line.keys() - left_out if line[name] != right.get(name)):
            return f"{', '.join(wrong)}{' of another rank' if rank else ''}"
    return ""


def _order(place: tuple[int, int | str]) -> tuple[bool, int | str, int]:
    """Sort by step, the end last, then by rank."""
    rank, step = place
    return isinstance(step, str), step, rank


def _plain(text: str) -> str:
    """Return a sentence without what differs from loop to loop: places and numbers."""
    text = re.sub(r"/\S+", "…", text)
    return re.sub(r"\b\d+(\.\d+)?\b", "n", text)[:160]
