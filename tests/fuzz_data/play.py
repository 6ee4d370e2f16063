"""One source, damaged and read: the verdict."""

import logging
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from fuzz_data.damages import DAMAGES, HARMLESS
from fuzz_data.readers import READERS, Rows
from piton_trainer.data.skipped import Skips
from piton_trainer.errors import BadConfig
from support.verdicts import VerdictKind

LOGGER = "piton_trainer.data"


class Kind(VerdictKind):
    """What became of a damage."""

    SAME = "same"
    REFUSED = "refused"
    SAID = "said"
    SKIPPED = "skipped and listed"
    OWN_ROW = "in its own row only"
    DIFFERENT = "DIFFERENT WITHOUT A WORD"
    UNCOUNTED = "MORE LOST THAN COUNTED"
    UNSTEADY = "ANOTHER LIST EACH TIME"
    UNNAMED = "REFUSED WITHOUT A NAME"
    NEEDLESS = "REFUSED WITHOUT NEED"
    TRACEBACK = "TRACEBACK"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a damage, and the words about it."""

    kind: Kind
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A source and its damage."""

    reader: str
    damage: str
    seed: str
    most: int = 0
    """Damaged examples that the config accepts to lose."""

    @property
    def name(self) -> str:
        """For a person."""
        told = f", of which {self.most} may be lost" if self.most else ""
        return f"{self.damage} of {self.reader}{told}"


def draw(seed: int, number: int) -> Case:
    """Return one of the cases of a seed; always the same."""
    random = Random(f"{seed}/{number}")
    reader = random.choice(list(READERS.values()))
    damage = random.choice([damage for damage in DAMAGES.values() if damage.fits(reader)])
    return Case(reader=reader.name, damage=damage.name, seed=f"{seed}/{number}", most=random.choice((0, 0, 1, 3, 100)))


def play(case: Case, folder: Path) -> Verdict:
    """Write a source into an empty folder, damage it, read it."""
    reader, random = READERS[case.reader], Random(case.seed)
    source = reader.write(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = random.choice([path for path in files if _is_text(path, case.damage)] or files)
    DAMAGES[case.damage].act(random, file)
    skips, again = Skips(case.most), Skips(case.most + 1)
    with _warnings() as said:
        try:
            rows = reader.read(source, skips)
            reader.read(source, again)
        except BadConfig as error:
            return _refusal(error.detail, source, file, case)
        except Exception:  # noqa: BLE001 - it is the fault that is looked for
            return Verdict(kind=Kind.TRACEBACK, detail=f"{file}\n{traceback.format_exc()}")
    told = [line for line in said if _path_of(source) in line]
    changed = _rows_hit(_undamaged(case.reader), rows)
    if skips.skipped:
        return _loss(skips, again, rows, file, case)
    if not changed:
        return Verdict(kind=Kind.SAME)
    if told and case.damage not in HARMLESS:
        return Verdict(kind=Kind.SAID, detail=told[0])
    is_checked = "checksums" in reader.tags and case.damage not in ("file", "array")
    if changed <= reader.rows_hit and not is_checked and case.damage not in HARMLESS:
        return Verdict(kind=Kind.OWN_ROW)
    return Verdict(kind=Kind.DIFFERENT, detail=f"{file}\n{_difference(_undamaged(case.reader), rows)}")


def _is_text(path: Path, damage: str) -> bool:
    """True if the damage makes sense for this file of several."""
    return damage != "number" or path.suffix != ".1400" or b".I" in path.read_bytes()


def _path_of(source: str) -> str:
    return source.removeprefix("cranfield:").removeprefix("foldoc:")


def _refusal(detail: str, source: str, file: Path, case: Case) -> Verdict:
    if case.damage in HARMLESS:
        return Verdict(kind=Kind.NEEDLESS, detail=detail)
    # Of files that contradict each other none is the wrong one.
    is_named = str(file) in detail or (file != Path(source) and _path_of(source) in detail)
    has_form = detail.startswith("trainer.config.") and "\n" not in detail
    return Verdict(kind=Kind.REFUSED if is_named and has_form else Kind.UNNAMED, detail=detail)


def _loss(skips: Skips, again: Skips, rows: Rows, file: Path, case: Case) -> Verdict:
    """Return the verdict on what is left out: it is named, is all that is lost, and is the same each time.

    A lost line break makes one damaged line of two rows, and a query goes with its two judgments. A text is many rows.
    """
    detail = "\n".join(f"{skip}" for skip in skips.skipped)
    if case.damage in HARMLESS:
        return Verdict(kind=Kind.NEEDLESS, detail=detail)
    if skips.skipped != again.skipped:
        return Verdict(kind=Kind.UNSTEADY, detail=f"{detail}\n{again.skipped}")
    if any(skip.file != str(file) for skip in skips.skipped):
        return Verdict(kind=Kind.UNNAMED, detail=f"{file}\n{detail}")
    whole, reader = _undamaged(case.reader), READERS[case.reader]
    lost = max((Counter(whole[kind]) - Counter(rows.get(kind, ()))).total() for kind in whole)
    more = max((Counter(rows.get(kind, ())) - Counter(whole[kind])).total() for kind in whole)
    if "texts" in reader.tags or (lost <= 2 * skips.count and more <= reader.rows_hit):
        return Verdict(kind=Kind.SKIPPED, detail=detail)
    return Verdict(kind=Kind.UNCOUNTED, detail=f"{detail}\n{_difference(whole, rows)}")


@contextmanager
def _warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(LOGGER)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


@cache
def _undamaged(reader: str) -> Rows:
    with TemporaryDirectory() as folder:
        return READERS[reader].read(READERS[reader].write(Path(folder)), Skips())


def _rows_hit(before: Rows, after: Rows) -> int:
    """Return how many rows of a kind are others, at most."""
    if before == after:
        return 0
    most = 1  # the order at least is another one
    for kind in {*before, *after}:
        old, new = Counter(before.get(kind, ())), Counter(after.get(kind, ()))
        most = max(most, (old - new).total(), (new - old).total())
    return most


def _difference(before: Rows, after: Rows) -> str:
    lines = []
    for kind in sorted({*before, *after}):
        old, new = Counter(before.get(kind, ())), Counter(after.get(kind, ()))
        lines += [f"- {kind} {str(row)[:150]}" for row in old - new] + [
            f"+ {kind} {str(row)[:150]}" for row in new - old
        ]
    return "\n".join(lines)
