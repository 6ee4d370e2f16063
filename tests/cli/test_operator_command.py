import pytest

from cli.conftest import Piton
from piton.kube import app
from piton.kube.settings import ENV_NAMESPACES, ENV_WORKERS, PitonSettings


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[PitonSettings]:
    """What the operator would be started with."""
    settings: list[PitonSettings] = []
    monkeypatch.setattr(app, "run", settings.append)
    return settings


def test_the_operator_serves_the_namespaces_of_the_command(piton: Piton, served: list[PitonSettings]) -> None:
    result = piton("operator", "--namespace", "team", "--namespace", "lab")

    assert result.code == 0
    assert [settings.namespaces for settings in served] == [("team", "lab")]


def test_the_operator_takes_the_rest_from_the_environment(
    piton: Piton, served: list[PitonSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_NAMESPACES, "team,lab")
    piton("operator")
    piton("operator", "--namespace", "mine")

    assert [settings.namespaces for settings in served] == [("team", "lab"), ("mine",)]


def test_a_setting_that_makes_no_sense_is_one_sentence(
    piton: Piton, served: list[PitonSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_WORKERS, "0")
    result = piton("operator")

    assert (result.code, result.err.count("\n"), served) == (2, 1, [])
