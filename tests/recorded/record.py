"""Record the first attempts of all scripts, and how they go on.

    PYTHONPATH=<operator>:<trainer>:tests python -m recorded.record OUT.tar.xz

The trainer is that of the commit whose runs are recorded.
"""

import json
import shutil
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from recorded.scripts import CASES, Case, train
from support import ranks

LOSSES = "losses.json"


def attempt(directory: Path, case: Case, *, resumes: bool) -> dict[int, float]:
    """Return the losses of an attempt, also of one that was stopped."""
    try:
        return train(directory, case, resumes=resumes)
    except SystemExit as end:
        if resumes:
            raise
        return {} if end.code == 143 else {-1: float(str(end.code))}


def name_of(case: Case, size: int) -> str:
    """Return the folder of a case with so many ranks."""
    return f"{list(CASES.values()).index(case)}-{size}"


def main(out: Path) -> None:
    """Record all of them into an archive."""
    with tempfile.TemporaryDirectory() as folder:
        root, losses = Path(folder) / "recorded", dict[str, list[dict[int, float]]]()
        for case in CASES.values():
            for size in case.sizes:
                place = root / name_of(case, size)
                begun = ranks.run(size, partial(attempt, place, case, resumes=False))
                went_on = Path(folder) / "went-on"
                shutil.copytree(place, went_on)
                ends = ranks.run(size, partial(attempt, went_on, case, resumes=True))
                shutil.rmtree(went_on)
                losses[place.name] = [end.result for end in ends]  # None where the older trainer could not go on
                print(place.name, [end.code for end in begun], [end.code for end in ends])
        (root / LOSSES).write_text(json.dumps(losses))
        with tarfile.open(out, "w:xz") as archive:
            archive.add(root, ".")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
