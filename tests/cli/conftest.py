"""The command line in this process: quick, and everything that it prints."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from piton.cli import main


@dataclass(frozen=True)
class Result:
    """What a command left."""

    code: int
    out: str
    err: str


Piton = Callable[..., Result]


@pytest.fixture
def piton(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Piton:
    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["piton", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return Result(exit_.value.code, captured.out, captured.err)

    return call
