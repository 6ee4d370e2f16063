"""Every variable that the docs name works in a spec and in the environment of `piton run`, or is Piton's own."""

import json
import re
from pathlib import Path

import pytest

from local.helpers import fake_parts, spec_of, train
from local.test_processes import SHOW
from piton.api.spec import Spec
from piton.api.status_base import Phase
from piton.api.validation_env import is_reserved
from piton.contract import names

DOCS = Path(__file__).parents[2] / "docs"
SET_BY_PITON = {
    "PITON_ALLOW_FRESH_START": "the annotation piton.dev/allow-fresh-start; docs name it for scripts outside Piton",
    "PITON_CHECKPOINT": "of an evaluation",
    "PITON_METRICS_PORT": "by the operator",
    "PITON_REPORT_SECONDS": "by `piton run`",
    "PITON_STOP_AT": "limits.deadline and limits.budget",
    "PITON_TERMINATION_LOG": "by the operator",
}
OPERATORS = "PITON_OPERATOR_"


def documented() -> set[str]:
    files = [*DOCS.glob("*.md"), *(DOCS / "systems").glob("*.md"), DOCS.parent / "README.md"]
    return {name for file in files for name in re.findall(r"\bPITON_[A-Z][A-Z_]*[A-Z]\b", file.read_text())}


def test_every_variable_of_the_docs_is_the_users_the_operators_or_pitons() -> None:
    own = {name for name in documented() if not name.startswith(OPERATORS)} - SET_BY_PITON.keys()

    assert own == {*names.USER_ENV} & own, "let the user set it (names.USER_ENV), or say who sets it"
    assert names.ENV_DATA_CACHE in own
    assert {name for name in SET_BY_PITON if not is_reserved(name)} == set()


@pytest.mark.parametrize("variable", names.USER_ENV)
def test_a_variable_of_the_users_is_good_in_a_spec(variable: str) -> None:
    assert [entry.name for entry in with_env({variable: "1"}).trainer.env] == [variable]


@pytest.mark.parametrize("given", ["spec", "shell", "both"])
def test_a_trainer_gets_what_the_user_has_set(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The word of the spec wins, as on a cluster."""
    for name in (*names.USER_ENV, *SET_BY_PITON):
        monkeypatch.setenv(name, "of the shell") if given != "spec" else monkeypatch.delenv(name, raising=False)
    ending, _ = train(tmp_path, spec=with_env({} if given == "shell" else dict.fromkeys(names.USER_ENV, "of the spec")))

    assert ending.summary.phase == Phase.SUCCEEDED
    env = json.loads((tmp_path / "logs/attempt-1/trainer-0/output.log").read_text())["env"]
    word = "of the shell" if given == "shell" else "of the spec"
    assert {name: env[name] for name in names.USER_ENV} == dict.fromkeys(names.USER_ENV, word)
    assert "of the shell" not in {env.get(name) for name in SET_BY_PITON}


def with_env(env: dict[str, str]) -> Spec:
    trainer = {"image": "none", "command": ["python", "-c", SHOW]}
    return spec_of(fake_parts(trainer=trainer | {"env": [{"name": name, "value": env[name]} for name in env]}))
