"""How a run ends, what it leaves behind, and what it tells whom."""

import contextlib
import math
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import piton_trainer
from piton.contract import names
from piton.contract.assignment import Assignment, Objective, SavePolicy
from piton.contract.manifest import Complete
from piton.contract.termination import Limit, Outcome, PreviousEnd, ScriptEnd, Termination
from piton_trainer.checkpoint.format import layout
from piton_trainer.config import Server
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.telemetry import metrics
from support import tiny
from support.clocks import FakeClock
from support.status_server import StatusServer

VAL = Objective(metric="val", goal="Minimize", target=0.1, patience=3)


def at_each_step(event: Callable[[piton_trainer.Session], object]) -> dict[int, tiny.Event]:
    return dict.fromkeys(range(1, tiny.STEPS + 1), event)


def reports(**values: dict[int, float]) -> dict[int, tiny.Event]:
    """Events that report metrics at steps: reports(val={2: 0.5})."""

    def event(session: piton_trainer.Session) -> None:
        found = {name: by_step[session.step + 1] for name, by_step in values.items() if session.step + 1 in by_step}
        session.report(**found)

    return at_each_step(event)


def steps_in(directory: Path) -> list[int]:
    return [step for step, _ in layout.step_folders(directory)]


def termination(path: Path) -> Termination:
    message = Termination.from_json(path.read_text(encoding="utf-8"))
    assert message is not None
    return message


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "termination-log"


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def test_a_finished_run_proves_it_twice(checkpoints: Path, log: Path) -> None:
    ran = tiny.train(checkpoints, termination_log=log, attempt=4)
    assert ran.complete is not None
    assert (ran.complete.attempt, ran.complete.step, ran.complete.reason) == (4, tiny.STEPS, "all steps are done")
    assert termination(log) == Termination(
        outcome=Outcome.FINISHED,
        step=tiny.STEPS,
        checkpoint_step=tiny.STEPS,
        weights_digest=ran.complete.weights_digest,
        script=ScriptEnd.RUNNING,
        detail="all steps are done",
    )


def test_a_stopped_run_says_where_it_stands(checkpoints: Path, log: Path) -> None:
    tiny.train(checkpoints, at={6: tiny.terminate})
    ran = tiny.train(checkpoints, termination_log=log, at={9: tiny.terminate})
    assert ran.complete is None
    assert termination(log) == Termination(
        outcome=Outcome.STOPPED,
        step=9,
        checkpoint_step=9,
        resumed_from=6,
        detail="told to stop by SIGTERM; step 9 is saved",
    )


def test_the_next_attempt_reports_how_the_one_before_ended(checkpoints: Path) -> None:
    with StatusServer() as status:
        to = Server(url=status.url)
        tiny.train(checkpoints, attempt=3, server=to, at={6: tiny.terminate})
        reported = [status.reports[-1].previous]
        with pytest.raises(tiny.LostError):
            tiny.train(checkpoints, attempt=4, server=to, at={9: tiny.vanish})
        reported.append(status.reports[-1].previous)
        tiny.train(checkpoints, attempt=5, server=to)
        reported.append(status.reports[-1].previous)
    assert reported == [
        None,
        PreviousEnd(attempt=3, outcome=Outcome.STOPPED),
        PreviousEnd(attempt=4, outcome=Outcome.FAILED),
    ]


def test_an_end_that_another_rank_has_caused_does_not_hide_that_ranks_own(checkpoints: Path) -> None:
    tiny.train(checkpoints, attempt=3, at={6: tiny.terminate})
    (checkpoints / names.END_FILE).write_text(PreviousEnd(attempt=4, outcome=Outcome.DEVICE_LOST).to_json())
    tiny.train(checkpoints, attempt=4, at={9: tiny.terminate})
    assert PreviousEnd.from_json((checkpoints / names.END_FILE).read_text()) == PreviousEnd(
        attempt=4, outcome=Outcome.DEVICE_LOST
    )


def test_a_run_that_is_stopped_before_its_first_step_trains_nothing(checkpoints: Path) -> None:
    session = piton_trainer.session(tiny.config(checkpoints))

    def told_to_stop_while_it_gets_ready() -> None:
        with session:
            session.restore(model=tiny.build())
            tiny.terminate(session)
            for _ in session.steps([1, 2]):
                pytest.fail("a step was taken")

    with pytest.raises(Stopped, match="nothing was trained yet"):
        told_to_stop_while_it_gets_ready()
    assert steps_in(checkpoints) == []


def test_ctrl_c_stops_like_sigterm(checkpoints: Path) -> None:
    ran = tiny.train(checkpoints, at={5: lambda _: signal.raise_signal(signal.SIGINT)})
    assert (ran.code, ran.error) == (143, "told to stop by SIGINT; step 5 is saved")


def test_a_script_that_catches_its_end_is_not_finished_for_that(checkpoints: Path) -> None:
    def a_script() -> None:
        with piton_trainer.session(tiny.config(checkpoints)) as session:
            session.restore(model=tiny.build())
            with contextlib.suppress(SystemExit):
                for _ in session.steps([1, 2]):
                    tiny.terminate(session)

    with pytest.raises(Stopped):
        a_script()
    assert not (checkpoints / names.COMPLETE_FILE).exists()


def test_the_signals_are_given_back(checkpoints: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    tiny.train(checkpoints, at={2: tiny.terminate})
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_stop_passes_through_a_users_except(checkpoints: Path) -> None:
    def a_script() -> None:
        with piton_trainer.session(tiny.config(checkpoints)) as session:
            session.restore(model=tiny.build())
            try:
                for _ in session.steps([1, 2]):
                    tiny.terminate(session)
            except Exception:  # noqa: BLE001 - what users write
                pytest.fail("the stop was swallowed")

    with pytest.raises(SystemExit) as end:
        a_script()
    assert end.value.code == 143


NOT_FINITE = [float("nan"), float("inf")]


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_diverged_run_ends_with_its_code_and_is_not_saved(
    value: float, checkpoints: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assignment = Assignment(save=SavePolicy(every_steps=4), objective=Objective(metric="val"))
    ran = tiny.train(checkpoints, assignment=assignment, at=reports(val={8: value}), termination_log=log)
    assert ran.code == 79
    assert steps_in(checkpoints) == [4]
    complaint = "val is not a finite number, at step 8; the newest checkpoint is of step 4"
    assert capsys.readouterr().err.splitlines()[1:] == [f"piton: {complaint}"]
    assert (termination(log).outcome, termination(log).detail) == (Outcome.DIVERGED, complaint)


def losses(*runs: int, value: float = float("nan")) -> list[float]:
    """Losses in which so many in a row are not finite, with a finite one after each row."""
    return [loss for run in runs for loss in (*[value] * run, 1.0)]


def train_with(
    checkpoints: Path, values: list[float], *, spoil: Callable[[torch.nn.Module], object] | None = None, **parts: Any
) -> int:
    """Train with these losses; return the exit code, 0 for a training that is finished."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model.register_buffer("mask", torch.full((2, 2), float("-inf"), device="cpu"))
    try:
        with piton_trainer.session(tiny.config(checkpoints, **parts)) as session:
            session.restore(model=model)
            for loss in session.steps(values):
                session.report(loss=loss)
                if spoil is not None and not math.isfinite(loss):
                    spoil(model)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(("runs", "code"), [((1,), 0), ((19, 19), 0), ((20,), 79), ((3, 25), 79)])
def test_losses_that_are_not_finite_are_metrics_until_there_are_20_in_a_row(
    runs: tuple[int, ...], code: int, value: float, on_device: bool, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_device:  # as if the CPU were one whose tensors are dear to read
        monkeypatch.setattr(metrics, "_kept", lambda _, value: torch.tensor(float(value), device="cpu"))
    assert train_with(checkpoints, losses(*runs, value=value)) == code


SPOILT = {
    "a weight is NaN": lambda model: torch.nn.init.constant_(model[0].weight, float("nan")),
    "a weight is infinite": lambda model: torch.nn.init.constant_(model[0].bias, float("inf")),
    "a statistic is NaN": lambda model: model[1].running_mean.fill_(float("nan")),
}


@pytest.mark.parametrize("at", ["a save", "the end"])
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_one_loss_is_enough_where_the_weights_to_be_saved_are_not_finite(
    spoil: Callable[[torch.nn.Module], object], at: str, checkpoints: Path
) -> None:
    values = [*[1.0] * 7, float("nan")]
    policy = SavePolicy(every_steps=4 if at == "a save" else 1000)

    code = train_with(checkpoints, values, spoil=spoil, assignment=Assignment(save=policy))

    assert code == 79
    assert steps_in(checkpoints) == ([4] if at == "a save" else [])


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ({"val_acc": {4: 0.5}}, "no val_accuracy is reported"),
        ({"val_acc": {1: 0.5}}, "write val_acc if that is meant"),
        ({"score": {4: 0.5}}, "reported are loss, score"),
        ({}, "reported are loss"),
        ({"val_accuracy": {4: 0.5}}, None),
        ({"val_accuracy": {1: 0.5}, "val_loss": {4: 0.5}}, None),
    ],
)
def test_an_objective_that_is_never_reported_is_told_once(
    at: dict[str, dict[int, float]], told: str | None, checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assignment = Assignment(save=SavePolicy(every_steps=4), objective=Objective(metric="val_accuracy", goal="Maximize"))
    every = {"loss": dict.fromkeys(range(1, tiny.STEPS + 1), 1.0)}
    assert tiny.train(checkpoints, assignment=assignment, at=reports(**every, **at)).code == 0

    warnings = [record.message for record in caplog.records if "objective.metric" in record.message]
    assert len(warnings) == (told is not None)
    assert told is None or told in warnings[0]


def test_a_metric_that_is_neither_loss_nor_objective_may_be_anything(checkpoints: Path) -> None:
    assert tiny.train(checkpoints, at=reports(grad_norm={3: float("inf")})).code == 0


def test_an_exception_of_the_users_is_named_and_raised_again(checkpoints: Path, log: Path) -> None:
    def fail(_: piton_trainer.Session) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    with pytest.raises(ZeroDivisionError):
        tiny.train(checkpoints, at={6: fail}, termination_log=log)
    assert termination(log) == Termination(
        outcome=Outcome.FAILED, step=5, checkpoint_step=4, detail="ZeroDivisionError: first line"
    )
    assert steps_in(checkpoints) == [4]


def test_leaving_with_exit_0_is_not_success(checkpoints: Path, log: Path) -> None:
    ran = tiny.train(checkpoints, at={6: lambda _: sys.exit(0)}, termination_log=log)
    assert ran.complete is None
    assert termination(log).detail == "the script called sys.exit(0) before its training was done"


def test_a_new_process_forgets_the_last_words_of_the_one_before(checkpoints: Path, log: Path) -> None:
    log.write_text("what somebody else had to say")
    with pytest.raises(tiny.LostError):
        tiny.train(checkpoints, at={1: tiny.vanish}, termination_log=log)
    assert termination(log).detail == "LostError"


def test_bad_config_costs_one_sentence(checkpoints: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complain(_: piton_trainer.Session) -> None:
        raise BadConfig("data.txt does not exist")

    assert tiny.train(checkpoints, at={1: complain}, termination_log=log).code == 78
    assert capsys.readouterr().err == "piton: data.txt does not exist\n"
    assert termination(log).outcome is Outcome.BAD_CONFIG


def test_a_directory_that_cannot_be_written_to_costs_one_sentence(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    ran = tiny.train(tmp_path / "file" / "checkpoints", termination_log=log)
    assert ran.code == 78
    assert capsys.readouterr().err.startswith(f"piton: checkpoints cannot be kept in {tmp_path}/file/checkpoints: ")
    assert termination(log).outcome is Outcome.BAD_CONFIG


def test_an_environment_that_makes_no_sense_costs_one_sentence(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(names.ENV_ATTEMPT, "many")
    monkeypatch.setenv(names.ENV_TERMINATION_LOG, str(log))
    with pytest.raises(BadConfig):
        piton_trainer.session()
    assert capsys.readouterr().err == "piton: PITON_ATTEMPT has to be a whole number above 0, not 'many'\n"
    assert termination(log).outcome is Outcome.BAD_CONFIG


def test_training_ends_when_the_target_is_reached(checkpoints: Path) -> None:
    values = reports(val={2: 0.5, 4: 0.1, 6: 0.01})
    ran = tiny.train(checkpoints, assignment=Assignment(objective=VAL), at=values)
    assert ran.complete is not None
    assert (ran.complete.step, ran.complete.reason) == (4, "val reached its target of 0.1")
    assert (ran.complete.best_step, ran.complete.best_metric) == (4, 0.1)


def test_training_ends_when_patience_is_used_up(checkpoints: Path) -> None:
    values = reports(val={2: 0.5, 4: 0.3, 6: 0.4, 8: 0.3, 10: 0.35, 12: 0.2})
    ran = tiny.train(checkpoints, assignment=Assignment(objective=VAL), at=values)
    assert ran.complete is not None
    assert (ran.complete.step, ran.complete.reason) == (10, "val did not improve in 3 evaluations")
    assert (ran.complete.best_step, ran.complete.best_metric) == (4, 0.3)


def test_patience_is_counted_over_attempts_and_the_end_is_remembered(checkpoints: Path) -> None:
    values = reports(val={2: 0.5, 4: 0.3, 6: 0.4, 8: 0.3, 10: 0.35, 12: 0.2})
    orders = Assignment(objective=VAL, save=SavePolicy(every_steps=4))
    assert tiny.train(checkpoints, assignment=orders, at=values | {7: tiny.terminate}).code == 143
    ended = tiny.train(checkpoints, assignment=orders, at=values)
    again = tiny.train(checkpoints, assignment=orders, at=values)
    assert ended.complete is not None
    assert ended.complete.step == 10
    assert again.losses == {}
    assert again.digest() == ended.digest()


def test_each_new_best_is_saved(checkpoints: Path) -> None:
    values = reports(val={2: 0.5, 3: 0.6, 5: 0.4})
    orders = Assignment(objective=Objective(metric="val"), save=SavePolicy(keep_last=9))
    tiny.train(checkpoints, assignment=orders, at=values)
    assert steps_in(checkpoints) == [tiny.STEPS, 5, 2]


def test_the_loss_of_a_batch_is_judged_only_where_a_save_is_due(checkpoints: Path) -> None:
    orders = Assignment(objective=Objective(metric="loss"), save=SavePolicy(every_steps=4, keep_last=9))
    ran = tiny.train(checkpoints, assignment=orders)
    judged = {step: ran.losses[step] for step in (4, 8, 12, tiny.STEPS)}
    assert steps_in(checkpoints) == [tiny.STEPS, 12, 8, 4]
    assert ran.complete is not None
    assert ran.complete.best_metric == min(judged.values())
    assert min(judged.values()) > min(ran.losses.values())


def test_training_ends_when_its_time_is_spent_over_attempts(checkpoints: Path) -> None:
    clock = FakeClock()
    orders = Assignment(training_seconds=60, save=SavePolicy(every_steps=2))
    ten_seconds = at_each_step(lambda _: clock.pass_seconds(10))

    def stop(session: piton_trainer.Session) -> None:
        clock.pass_seconds(10)
        tiny.terminate(session)

    assert tiny.train(checkpoints, assignment=orders, clock=clock, at=ten_seconds | {4: stop}).code == 143
    clock.pass_seconds(1000)  # between two attempts nothing is trained
    ran = tiny.train(checkpoints, assignment=orders, clock=clock, at=ten_seconds)
    assert ran.complete is not None
    assert (ran.complete.step, ran.complete.reason) == (6, "the training time of 1m is spent")


def test_a_budget_stops_a_run_when_it_is_spent_and_waiting_for_a_machine_is_free(checkpoints: Path, log: Path) -> None:
    clock = FakeClock()
    clock.pass_seconds(7200)  # waiting for a machine
    settings = tiny.config(checkpoints, stop_after=25.0, stop_at=clock.now() + timedelta(days=1), termination_log=log)
    session = piton_trainer.session(settings, clock=clock)

    def ten_seconds_a_step() -> None:
        with session:
            session.restore(model=tiny.build())
            for _ in session.steps(range(9), total=9):
                clock.pass_seconds(10)

    with pytest.raises(Stopped, match="budget is reached"):
        ten_seconds_a_step()
    assert session.step == 3
    assert termination(log).limit is Limit.BUDGET


@pytest.mark.parametrize("hours", [-24, -2, 2, 24])
@pytest.mark.parametrize("own", [{"stop_after": 60.0}, {"stop_at": datetime(2026, 1, 31, 12, 1, tzinfo=UTC)}])
def test_a_limit_is_kept_though_the_nodes_clock_is_set_right_meanwhile(
    checkpoints: Path, own: dict[str, Any], hours: int
) -> None:
    clock = FakeClock()
    session = piton_trainer.session(tiny.config(checkpoints, **own), clock=clock)

    def a_script() -> None:
        with session:
            session.restore(model=tiny.build())
            for step in session.steps(range(9), total=9):
                clock.pass_seconds(25)
                clock.set_time(3600 * hours if step == 1 else 0)

    with pytest.raises(Stopped, match="is reached"):
        a_script()
    assert session.step == 3


def test_a_save_is_due_when_enough_time_has_passed(checkpoints: Path) -> None:
    clock = FakeClock()
    orders = Assignment(save=SavePolicy(every_seconds=25, keep_last=9))
    tiny.train(checkpoints, assignment=orders, clock=clock, at=at_each_step(lambda _: clock.pass_seconds(10)))
    assert steps_in(checkpoints) == [15, 12, 9, 6, 3]


def test_the_clock_stops_a_run_at_the_time_it_was_told(checkpoints: Path) -> None:
    clock = FakeClock()
    settings = tiny.config(checkpoints, stop_at=datetime(2026, 1, 31, 12, 1, tzinfo=UTC))

    def a_script() -> None:
        with piton_trainer.session(settings, clock=clock) as session:
            session.restore(model=tiny.build())
            for _ in session.steps(range(9)):
                clock.pass_seconds(25)

    with pytest.raises(Stopped):
        a_script()
    assert steps_in(checkpoints) == [3]


def test_the_fraction_is_that_of_steps_or_of_time_whichever_is_further(checkpoints: Path) -> None:
    clock = FakeClock()
    seen: list[float] = []

    def look(session: piton_trainer.Session) -> None:
        seen.append(session.fraction)
        clock.pass_seconds(30 if session.step < 3 else 0)

    orders = Assignment(training_seconds=300)
    tiny.train(checkpoints, assignment=orders, clock=clock, at=at_each_step(look))
    assert seen[:4] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert seen[-1] == pytest.approx((tiny.STEPS - 1) / tiny.STEPS)


def breaks(checkpoints: Path, at: int | None, *, is_meant: bool = False, **changes: Any) -> tuple[list[int], Complete]:
    """An attempt that leaves its loop in the step with this number: the numbers that it trained, and its proof."""
    trained = []
    with piton_trainer.session(tiny.config(checkpoints, **changes)) as session:
        session.restore(model=tiny.build())
        for number in session.steps(range(9)):
            trained.append(number)
            if number == at:
                if is_meant:
                    session.finish()
                break
    return trained, Complete.from_json((checkpoints / names.COMPLETE_FILE).read_text())


def test_a_loop_left_by_break_is_finished_for_piton_and_goes_on_when_it_is_started_by_hand(checkpoints: Path) -> None:
    first, proof = breaks(checkpoints, 2, attempt=1)
    repeated, again = breaks(checkpoints, None, attempt=2)
    by_hand, last = breaks(checkpoints, None)

    assert (first, proof.step, proof.reason) == ([0, 1, 2], 3, "left by break")
    assert (repeated, again.step, again.weights_digest) == ([], 3, proof.weights_digest)
    assert (by_hand, last.step, last.reason) == ([3, 4, 5, 6, 7, 8], 9, "all steps are done")


@pytest.mark.parametrize("attempt", [None, 2])
def test_a_loop_that_is_left_on_purpose_stays_finished(checkpoints: Path, attempt: int | None) -> None:
    breaks(checkpoints, 2, is_meant=True, attempt=1)
    trained, proof = breaks(checkpoints, None, attempt=attempt, go_on_after=1)

    assert (trained, proof.step, proof.reason) == ([], 3, "the script finished the training")


def test_an_attempt_that_is_told_to_go_on_does_so_until_the_next_break(checkpoints: Path) -> None:
    """A repeat of the attempt that has left its loop the second time finds the training finished again."""
    breaks(checkpoints, 2, attempt=1)
    second, _ = breaks(checkpoints, 5, attempt=2, go_on_after=1)
    third, proof = breaks(checkpoints, None, attempt=3, go_on_after=1)

    assert (second, third, proof.step) == ([3, 4, 5], [], 6)


def test_a_checkpoint_of_an_older_trainer_goes_on_too(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot tell whether the end was meant."""
    monkeypatch.setattr("piton_trainer.training.steps.LEFT_BY_BREAK", "the script ended its loop")
    breaks(checkpoints, 2, attempt=1)
    repeated, _ = breaks(checkpoints, None, attempt=2)
    by_hand, proof = breaks(checkpoints, None)

    assert (repeated, by_hand, proof.step) == ([], [3, 4, 5, 6, 7, 8], 9)


def test_a_session_that_trains_nothing_claims_nothing(checkpoints: Path, log: Path) -> None:
    with piton_trainer.session(tiny.config(checkpoints, termination_log=log)) as session:
        session.restore(model=tiny.build())
    assert not (checkpoints / names.COMPLETE_FILE).exists()
    assert not log.exists()


def test_steps_are_asked_for_once(checkpoints: Path) -> None:
    with piton_trainer.session(tiny.config(checkpoints)) as session:
        session.restore(model=tiny.build())
        assert list(session.steps([1])) == [1]
        with pytest.raises(ValueError, match=r"session\.steps\(\) is called once"):
            list(session.steps([1]))


def test_what_is_not_one_number_is_no_metric(checkpoints: Path) -> None:
    with pytest.raises(ValueError, match=r"loss has to be one number, not a tensor of shape \(2,\)"):
        tiny.train(checkpoints, at={1: lambda session: session.report(loss=torch.ones(2))})


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(1 << 60, dtype=torch.uint8), lambda: _raise(torch.OutOfMemoryError("CUDA out of memory"))],
)
def test_what_needs_more_memory_than_there_is_says_what_helps(
    allocate: Callable[[], object], checkpoints: Path, log: Path
) -> None:
    with pytest.raises(RuntimeError):
        tiny.train(checkpoints, at={6: lambda _: allocate()}, termination_log=log)
    assert "deviceBatchSize" in termination(log).detail


def _raise(error: Exception) -> None:
    raise error
