"""The environment, parsed once: what is understood, and what is refused with which sentence."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from piton.contract import names
from piton.contract.assignment import Assignment, SavePolicy
from piton_trainer.config import Config, Server
from piton_trainer.runtime.process_group import Ranks


def test_outside_piton_nothing_has_to_be_set(tmp_path: Path) -> None:
    config = Config.from_env({})
    assert config == Config(checkpoint_dir=tmp_path / "checkpoints")
    assert config.attempt is None


def test_everything_is_understood(tmp_path: Path) -> None:
    orders = Assignment(recipe="charlm", save=SavePolicy(every_steps=7), training_seconds=60.0)
    (tmp_path / "config.json").write_text(orders.to_json())
    env = {
        names.ENV_RUN: "run",
        names.ENV_NAMESPACE: "team",
        names.ENV_ATTEMPT: "3",
        names.ENV_CHECKPOINT_DIR: "/checkpoints",
        names.ENV_CONFIG: str(tmp_path / "config.json"),
        names.ENV_STOP_AT: "2026-01-31T12:00:00Z",
        names.ENV_TERMINATION_LOG: "/tmp/log",
        names.ENV_REPORT_SECONDS: "0.5",
        names.ENV_METRICS_PORT: "9401",
        names.ENV_SAVES: "blocking",
        names.ENV_COLLECTIVE_SECONDS: "90",
        names.ENV_SERVER_URL: "https://piton/status",
        names.ENV_SERVER_CA_CERT: "/ca.crt",
        names.ENV_SERVER_TOKEN: "/token",
    }
    assert Config.from_env(env) == Config(
        checkpoint_dir=Path("/checkpoints"),
        assignment=orders,
        run="run",
        namespace="team",
        attempt=3,
        stop_at=datetime(2026, 1, 31, 12, tzinfo=UTC),
        report_seconds=0.5,
        server=Server(url="https://piton/status", ca_cert=Path("/ca.crt"), token_file=Path("/token")),
        termination_log=Path("/tmp/log"),
        metrics_port=9401,
        background_saves=False,
        collective_seconds=90.0,
    )


@pytest.mark.parametrize(
    ("text", "zone"), [("2026-01-31T12:00:00", UTC), ("2026-01-31T12:00:00+02:00", timezone(timedelta(hours=2)))]
)
def test_a_time_without_a_zone_is_utc(text: str, zone: timezone) -> None:
    assert Config.from_env({names.ENV_STOP_AT: text}).stop_at == datetime(2026, 1, 31, 12, tzinfo=zone)


@pytest.mark.parametrize("port", ["http", "65536", "0", "tcp://10.96.0.1:9401"])
def test_a_port_that_is_none_costs_the_metrics_and_not_the_training(
    port: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The last one is what the kubelet sets for a Service named piton-metrics, in a pod with service links."""
    assert Config.from_env({names.ENV_METRICS_PORT: port}).metrics_port is None
    assert f"PITON_METRICS_PORT has to be a port, 1 to 65535, not '{port}'; metrics are not served" in caplog.text


REFUSED = {
    "PITON_ATTEMPT has to be a whole number above 0, not '0'": {names.ENV_ATTEMPT: "0"},
    "PITON_ATTEMPT has to be a whole number above 0, not '-1'": {names.ENV_ATTEMPT: "-1"},
    "PITON_STOP_AT has to be a time such as 2026-01-31T12:00:00Z, not 'soon'": {names.ENV_STOP_AT: "soon"},
    "PITON_REPORT_SECONDS has to be a number of seconds, 0 or more, not 'nan'": {names.ENV_REPORT_SECONDS: "nan"},
    "PITON_REPORT_SECONDS has to be a number of seconds, 0 or more, not '-2'": {names.ENV_REPORT_SECONDS: "-2"},
    "PITON_SAVES has to be background or blocking, not 'never'": {names.ENV_SAVES: "never"},
    "PITON_COLLECTIVE_SECONDS has to be a whole number above 0, not '10m'": {names.ENV_COLLECTIVE_SECONDS: "10m"},
    "KUBEFLOW_TRAINER_SERVER_URL has to start with https:// or http://, not be 'ftp://x'": {
        names.ENV_SERVER_URL: "ftp://x"
    },
    "PITON_CONFIG names /nowhere, which cannot be read: No such file or directory": {names.ENV_CONFIG: "/nowhere"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_value_that_makes_no_sense_is_refused_with_a_sentence(sentence: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole sentence is compared below
        Config.from_env(REFUSED[sentence])
    assert str(refused.value) == sentence


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"save": {"every_steps": 5}}'])
def test_orders_that_are_none_are_refused_with_the_name_of_their_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"PITON_CONFIG names .*/config\.json, which is wrong: "):
        Config.from_env({names.ENV_CONFIG: str(tmp_path / "config.json")})


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
def test_a_world_that_makes_no_sense_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv(name, "two")
    with pytest.raises(ValueError, match=f"{name} has to be a whole number, not 'two'"):
        Ranks.join()
