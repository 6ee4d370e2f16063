"""The operator's settings."""

from pathlib import Path

import pytest

from piton.kube.settings import Engine, LeaseSettings, PitonSettings
from piton.timing import Timing


def test_an_empty_environment_gives_the_defaults() -> None:
    assert PitonSettings.from_env({}) == PitonSettings()


def test_the_environment_is_read() -> None:
    env = {
        "PITON_OPERATOR_METRICS_PORT": "0",
        "PITON_OPERATOR_NAMESPACES": "team-a, team-b",
        "PITON_OPERATOR_RESYNC_SECONDS": "30",
        "PITON_OPERATOR_WORKERS": "2",
        "PITON_OPERATOR_PROBE_PORT": "0",
        "PITON_OPERATOR_ENGINE": "bundled",
        "PITON_OPERATOR_STATUS_SECONDS": "30",
    }
    wanted = PitonSettings(
        namespaces=("team-a", "team-b"),
        resync_seconds=30,
        workers=2,
        probe_port=None,
        metrics_port=None,
        engine=Engine.BUNDLED,
        timing=Timing(progress_seconds=30),
    )
    assert PitonSettings.from_env(env) == wanted


def test_the_receiver_of_progress_is_there_when_it_has_an_address() -> None:
    env = {
        "PITON_OPERATOR_PROGRESS_URL": "https://piton-operator.piton-system.svc:8443/",
        "PITON_OPERATOR_PROGRESS_PORT": "9443",
        "PITON_OPERATOR_TLS_DIR": "/etc/piton/tls",
    }
    settings = PitonSettings.from_env(env)
    assert settings.progress_url == "https://piton-operator.piton-system.svc:8443"
    assert (settings.progress_port, settings.tls_dir) == (9443, Path("/etc/piton/tls"))
    assert PitonSettings.from_env({"PITON_OPERATOR_PROGRESS_URL": ""}).progress_url is None


def test_replicas_elect_a_leader_where_a_lease_is_named() -> None:
    env = {
        "PITON_OPERATOR_LEASE": "piton-operator",
        "PITON_OPERATOR_POD_NAME": "piton-operator-1",
        "PITON_OPERATOR_POD_NAMESPACE": "piton-system",
    }
    wanted = LeaseSettings(name="piton-operator", namespace="piton-system", pod="piton-operator-1")
    assert PitonSettings.from_env(env).lease == wanted
    assert PitonSettings.from_env({**env, "PITON_OPERATOR_LEASE": ""}).lease is None


def test_a_leader_stops_before_its_lease_ends() -> None:
    lease = LeaseSettings(name="piton", namespace="piton-system", pod="a")
    assert lease.renew_deadline_seconds + PitonSettings().stop_seconds < lease.lease_seconds
    with pytest.raises(ValueError, match="before the lease does"):
        PitonSettings(lease=lease, stop_seconds=5)
    with pytest.raises(ValueError, match="retry_seconds < renew_deadline_seconds < lease_seconds"):
        LeaseSettings(name="piton", namespace="piton-system", pod="a", renew_deadline_seconds=15)


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"PITON_OPERATOR_LEASE": "piton"}, "PITON_OPERATOR_POD_NAME and PITON_OPERATOR_POD_NAMESPACE have to be set"),
        ({"PITON_OPERATOR_WORKERS": "many"}, "PITON_OPERATOR_WORKERS: 'many' is not a number"),
        ({"PITON_OPERATOR_WORKERS": "0"}, "at least one"),
        ({"PITON_OPERATOR_RESYNC_SECONDS": "-1"}, "above 0"),
        ({"PITON_OPERATOR_PROGRESS_URL": "https://piton:8443"}, "PITON_OPERATOR_TLS_DIR is not"),
        ({"PITON_OPERATOR_PROGRESS_URL": "http://piton:8443"}, "has to start with https://"),
        ({"PITON_OPERATOR_PROGRESS_PORT": "70000"}, "PITON_OPERATOR_PROGRESS_PORT: 70000 is no port"),
        ({"PITON_OPERATOR_PRICES": '{"p4d": {"Spot": 12.5}}'}, "PITON_OPERATOR_PRICES: 12.5 is no amount of dollars"),
        ({"PITON_OPERATOR_PRICES": '{"p4d": {"Cheap": "1"}}'}, "PITON_OPERATOR_PRICES: 'Cheap' is not a valid Tier"),
        ({"PITON_OPERATOR_DEVICE_TAINT_HOURS": "-1"}, "-1 is not between 0 and 8760"),
        ({"PITON_OPERATOR_STATUS_SECONDS": "0"}, "PITON_OPERATOR_STATUS_SECONDS: 0 is not between 1 and 300"),
        ({"PITON_OPERATOR_PRICES": "12.50"}, "write prices like"),
        ({"PITON_OPERATOR_ENGINE": "volcano"}, "PITON_OPERATOR_ENGINE: 'volcano' is none of bundled, kubeflow"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(env: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PitonSettings.from_env(env)
