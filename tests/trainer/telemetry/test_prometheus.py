"""The trainer's metrics over real HTTP: what rank 0 shows while it trains, and that nothing about them stops it."""

import logging
import math
import re
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

import piton_trainer
from piton.contract.assignment import Assignment, SavePolicy
from piton.contract.progress import Progress
from piton_trainer.checkpoint import Saved
from piton_trainer.checkpoint.save_interval import SHORTEST_SECONDS
from piton_trainer.config import Server
from piton_trainer.mirror import ERROR_CLASSES, Lag
from piton_trainer.telemetry.prometheus import METRICS_MAX, Exporter
from piton_trainer.training.steps import Steps
from support import ranks, tiny
from support.clocks import FakeClock
from support.ports import free_port
from support.status_server import StatusServer

Samples = dict[str, float]


@pytest.fixture
def port() -> int:
    return free_port()


def scrape(port: int) -> Samples:
    """Every sample; the one label that matters stands in brackets."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {s.name + (f"[{s.labels['name']}]" if "name" in s.labels else ""): s.value for s in samples}


def scraping(port: int, into: dict[int, Samples]) -> tiny.Event:
    """What is shown inside of a step: all that is known of the steps before it."""

    def look(session: piton_trainer.Session) -> None:
        into[session.step] = scrape(port)

    return look


def an_exporter(**fields: Any) -> Exporter:
    return Exporter(**{"world_size": 1, "interval_seconds": 5.0, **fields})


def test_rank_0_shows_how_far_it_is(tmp_path: Path, port: int) -> None:
    seen: dict[int, Samples] = {}

    ran = tiny.train(tmp_path, metrics_port=port, at={11: scraping(port, seen)})

    shown = seen[10]
    assert (shown["piton_trainer_step"], shown["piton_trainer_planned_steps"]) == (10, 15)
    assert shown["piton_trainer_progress_ratio"] == 0.66
    assert shown["piton_trainer_metric[loss]"] == pytest.approx(ran.losses[10])
    assert shown["piton_trainer_step_seconds_count"] == 10
    assert 0 <= shown["piton_trainer_data_wait_seconds_total"] < shown["piton_trainer_step_seconds_sum"]
    assert shown["piton_trainer_checkpoint_seconds_count"] == 2
    assert shown["piton_trainer_checkpoint_step"] == 8
    assert shown["piton_trainer_checkpoint_bytes"] > 100
    assert shown["piton_trainer_world_size"] == 1
    assert "piton_trainer_resumed_from_step" not in shown


def test_a_resumed_attempt_says_from_where_and_counts_its_own_steps(tmp_path: Path, port: int) -> None:
    seen: dict[int, Samples] = {}
    tiny.train(tmp_path, at={6: tiny.terminate})

    tiny.train(tmp_path, metrics_port=port, at={8: scraping(port, seen)})

    assert seen[7]["piton_trainer_resumed_from_step"] == 6
    assert seen[7]["piton_trainer_step"] == 7
    assert seen[7]["piton_trainer_step_seconds_count"] == 1


def test_times_are_those_of_the_sessions_clock(tmp_path: Path, port: int) -> None:
    clock, seen = FakeClock(), dict[int, Samples]()
    slow: dict[int, tiny.Event] = {step: lambda _: clock.pass_seconds(3) for step in range(1, 9)}

    tiny.train(tmp_path, clock=clock, metrics_port=port, at=slow | {9: scraping(port, seen)})

    assert seen[8]["piton_trainer_step_seconds_sum"] == 24
    assert seen[8]["piton_trainer_checkpoint_timestamp_seconds"] == clock.now().timestamp()


def test_an_interval_that_was_chosen_is_shown_with_its_reasons(tmp_path: Path, port: int) -> None:
    clock, seen, fixed = FakeClock(), dict[int, Samples](), dict[int, Samples]()
    slow: dict[int, tiny.Event] = {step: lambda _: clock.pass_seconds(30) for step in range(1, 9)}
    orders = Assignment(save=SavePolicy(auto=True))

    tiny.train(tmp_path, assignment=orders, clock=clock, metrics_port=port, at=slow | {9: scraping(port, seen)})
    tiny.train(tmp_path / "fixed", metrics_port=port, at={9: scraping(port, fixed)})

    assert seen[8]["piton_trainer_checkpoint_interval_seconds"] == SHORTEST_SECONDS
    assert seen[8]["piton_trainer_checkpoint_cost_seconds"] == 0
    assert seen[8]["piton_trainer_checkpoint_durable_seconds"] == 0
    assert seen[8]["piton_trainer_interruption_interval_seconds"] == pytest.approx(3600 + 240, rel=0.01)
    assert not {name for name in fixed[8] if "interval" in name or "cost" in name}


def test_the_port_is_free_again_when_the_session_ends(tmp_path: Path, port: int) -> None:
    tiny.train(tmp_path, metrics_port=port)

    with pytest.raises(URLError):
        scrape(port)


def test_metrics_change_nothing_about_the_weights(tmp_path: Path, port: int) -> None:
    plain, shown = tiny.train(tmp_path / "plain"), tiny.train(tmp_path / "shown", metrics_port=port)

    assert shown.digest() == plain.digest()


def test_a_port_that_is_taken_is_a_warning_and_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        ran = tiny.train(tmp_path, metrics_port=taken.getsockname()[1])

    assert ran.complete is not None
    (warning,) = [r for r in caplog.records if r.name == "piton_trainer.telemetry.prometheus"]
    assert warning.levelno == logging.WARNING
    assert "metrics are not served on port" in warning.getMessage()


def test_an_image_without_the_library_trains_without_metrics(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "piton_trainer.telemetry.prometheus")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    ran = tiny.train(tmp_path, metrics_port=port)

    assert ran.complete is not None
    assert "piton: metrics are not served: " in capsys.readouterr().err


def test_of_several_ranks_only_the_first_serves(tmp_path: Path, port: int) -> None:
    def whether(into: Path) -> tiny.Event:
        def tell(session: piton_trainer.Session) -> None:
            serves = any(isinstance(callback, Exporter) for callback in session._services.telemetry.callbacks.members)
            (into / f"rank{session.rank}").write_text(f"{serves} {scrape(port)['piton_trainer_world_size']:g}")

        return tell

    ranks.run(2, partial(tiny.train, tmp_path / "run", metrics_port=port, at={3: whether(tmp_path)}))

    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["True 2", "False 2"]


def test_a_report_is_read_once_for_the_server_and_for_the_metrics(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Progress] = []
    make: Callable[..., Progress] = Steps.progress

    def counted(*args: Any, **options: Any) -> Progress:
        made.append(make(*args, **options))
        return made[-1]

    monkeypatch.setattr(Steps, "progress", counted)
    with StatusServer() as server:
        tiny.train(tmp_path, server=Server(url=server.url), metrics_port=port)

    assert len(made) == tiny.STEPS, "one for each step but the last, and one for the end"


def test_only_so_many_reported_metrics_get_a_series() -> None:
    exporter = an_exporter()
    exporter.report(Progress(updated="", metrics={f"m{n:03}": float(n) for n in range(100)}), now=0.0)

    (family,) = [f for f in exporter.registry.collect() if f.name == "piton_trainer_metric"]

    assert [s.labels["name"] for s in family.samples] == [f"m{n:03}" for n in range(METRICS_MAX)]


def test_reports_keep_their_distance() -> None:
    exporter = an_exporter(interval_seconds=5.0)
    assert exporter.is_due(100.0)
    exporter.report(Progress(updated=""), now=100.0)
    assert not exporter.is_due(104.9)
    assert exporter.is_due(105.0)


def test_what_is_not_known_has_no_series() -> None:
    exporter = an_exporter()
    assert exporter.registry.get_sample_value("piton_trainer_step") is None

    exporter.on_save(stall_seconds=0.2)
    exporter.on_saved(Saved(step=7, folder=Path(), size=99), timestamp=1e9)

    assert exporter.registry.get_sample_value("piton_trainer_checkpoint_step") == 7
    assert exporter.registry.get_sample_value("piton_trainer_step") is None
    assert math.isclose(exporter.registry.get_sample_value("piton_trainer_checkpoint_seconds_sum") or 0, 0.2)


def test_prometheus_sees_how_far_the_mirror_is_behind() -> None:
    counts = {**dict.fromkeys(ERROR_CLASSES, 0), "users": 2}
    exporter = Exporter(
        world_size=1, interval_seconds=5, lag=lambda: Lag(steps=3, seconds=1.5), mirror_errors=lambda: counts
    )

    text = generate_latest(exporter.registry).decode()

    assert "piton_trainer_mirror_lag_steps 3.0" in text
    assert "piton_trainer_mirror_lag_seconds 1.5" in text
    found = dict(re.findall(r'piton_trainer_mirror_errors_total\{class="(\w+)"\} (\S+)', text))
    assert found == {"try_again": "0.0", "new_credentials": "0.0", "users": "2.0", "no_server": "0.0", "other": "0.0"}


def test_a_run_without_a_mirror_counts_none_of_its_errors() -> None:
    text = generate_latest(Exporter(world_size=1, interval_seconds=5).registry).decode()

    assert "piton_trainer_mirror_errors_total{" not in text
