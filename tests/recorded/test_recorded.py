"""A run that an older trainer began goes on: as exactly as it did before, and with a warning at most."""

import json
import tarfile
from functools import partial
from pathlib import Path

import pytest

from recorded.record import LOSSES, name_of
from recorded.scripts import CASES, train
from support import ranks

ARCHIVE = Path(__file__).with_name("ba64ce2.tar.xz")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, case in CASES.items() for size in case.sizes])
def test_a_run_of_before_goes_on(name: str, size: int, recorded: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    place = recorded / name_of(case, size)
    ends = ranks.run(size, partial(train, place, case, resumes=True))
    assert [end.code for end in ends] == [0] * size

    before = json.loads((recorded / LOSSES).read_text())[place.name]
    for end, losses in zip(ends, before, strict=True):
        now = {str(step): loss for step, loss in end.result.items()}
        if losses is not None:
            assert list(now) == list(losses)
        if losses is not None and case.is_exact:
            assert now == losses
    assert case.told in capfd.readouterr().err
