"""Damaged examples that a config accepts to lose (`maxSkipped`), and the list of them.

A reader hands each damaged example to `Skips.add`, in the order in which the examples stand. That refuses the data at
the first one that is too many. So the list depends on what the files hold, and not on the attempt that reads them.

Skipped is what is damaged by itself: a row, a line, an image. Never skipped is damage after which nobody knows what is
lost (a cut file, a shard with a bad header). Nor are two entries that contradict each other, as either may be wrong,
and a header among the rows, which says that two files were joined.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from piton.contract import InputError
from piton_trainer.errors import BadConfig

_REMEDY = "mend the data, or accept more"
MANIFEST = "skipped.json"
"""Beside data that was made with examples left out."""


class Contradiction(InputError):  # noqa: N818 - it is a ValueError of a parser, and says what it found
    """An entry that contradicts an earlier one, or the header again. It is never skipped."""


@dataclass(frozen=True, kw_only=True)
class Skip:
    """A damaged example that is left out."""

    file: str
    place: str = ""
    """Line, entry or member in the file; empty where the file is the example."""
    why: str
    examples: int = 1
    """Number of examples that may be lost: the lines of a damaged row."""

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.why}" if self.place else f"{self.file}: {self.why}"


def total(skipped: Iterable[Skip]) -> int:
    """Return the number of examples that are lost."""
    return sum(skip.examples for skip in skipped)


class Skips:
    """Takes the damaged examples of one source, as many as the config accepts."""

    def __init__(self, most: int = 0) -> None:
        """Accept to lose `most` examples."""
        self.most = most
        self._skipped: list[Skip] = []

    @property
    def skipped(self) -> Sequence[Skip]:
        """The examples that are left out, in the order of the source."""
        return tuple(self._skipped)

    @property
    def count(self) -> int:
        """Number of examples that are left out."""
        return total(self._skipped)

    def add(self, skip: Skip, refusal: str | None = None) -> None:
        """Leave an example out. `refusal` is the sentence for a config that accepts no loss.

        Raises:
            BadConfig: it is one more than the config accepts.
        """
        if not self.most:
            raise BadConfig(f"trainer.config.data: {refusal or skip}")
        self._skipped.append(skip)
        if self.count > self.most:
            raise BadConfig(self._too_many(self._skipped, "there are at least", _REMEDY))

    def expect_within(self, skipped: Sequence[Skip], *, remedy: str = "") -> None:
        """Compare data that was prepared earlier with what is accepted now.

        Raises:
            BadConfig: more examples were left out.
        """
        if total(skipped) > self.most:
            raise BadConfig(self._too_many(skipped, "there are", remedy or _REMEDY))

    def _too_many(self, skipped: Sequence[Skip], found: str, remedy: str) -> str:
        return (
            f"trainer.config.maxSkipped: {self.most} damaged examples are accepted, and {found} {total(skipped)}; "
            f"the first is {skipped[0]}; {remedy}"
        )

    def to_wire(self) -> dict[str, Any]:
        """Return the manifest, as plain values."""
        return {"maxSkipped": self.most, "skipped": [asdict(skip) for skip in self._skipped]}

    def save(self, folder: Path) -> None:
        """Write the manifest into a folder that is there, if anything is left out."""
        if self._skipped:
            content = json.dumps(self.to_wire(), ensure_ascii=False, indent=1)
            (folder / MANIFEST).write_text(f"{content}\n", encoding="utf-8")


def skipped_from_wire(fields: Any) -> tuple[Skip, ...]:
    """Return the examples that a manifest lists.

    Raises:
        ValueError: it is none.
    """
    try:
        return tuple(Skip(**entry) for entry in fields["skipped"])
    except (KeyError, TypeError) as error:
        raise InputError(f"it is no list of skipped examples: {error}") from error


def load(folder: Path, most: int) -> tuple[Skip, ...]:
    """Return the examples that were left out when the data in a folder was made.

    Raises:
        BadConfig: they are more than `most`, or the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return ()
    try:
        skipped = skipped_from_wire(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise BadConfig(f"trainer.config.data: {path} is damaged; delete {folder} to have it made anew") from error
    Skips(most).expect_within(skipped)
    return skipped


class SkippedData:
    """The examples that a run leaves out of all its sources."""

    def __init__(self, most: int = 0) -> None:
        """Accept to lose `most` examples of each source."""
        self.most = most
        self._lists: dict[Path, Sequence[Skip]] = {}

    def add(self, manifest: Path, skipped: Sequence[Skip]) -> None:
        """Take what is left out of a source, and the file that lists it."""
        self._lists[manifest] = skipped

    @property
    def count(self) -> int:
        """Number of examples that are left out."""
        return sum(total(skipped) for skipped in self._lists.values())

    def sentences(self) -> list[str]:
        """Return a sentence for each source of which something is left out."""
        return [
            f"{total(skipped)} damaged examples are left out, and maxSkipped accepts {self.most}; the first is "
            f"{skipped[0]}; all are listed in {manifest}"
            for manifest, skipped in self._lists.items()
            if skipped
        ]


NO_SKIPS = Skips()
"""For readers of data of which nothing may be lost. It never changes: each damaged example raises."""
