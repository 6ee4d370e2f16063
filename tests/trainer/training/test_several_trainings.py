"""Several trainings in one script: the second never takes the first one's weights without a word."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

import piton_trainer
from piton.contract import names
from piton.contract.progress import TrainerRequests
from piton_trainer.checkpoint.format import layout
from piton_trainer.config import Config, Server
from piton_trainer.errors import BadConfig, Stopped
from piton_trainer.training import earlier_sessions
from support import resume, tiny
from support.mirrored import wait_for
from support.status_server import StatusServer

STEPS = 4


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(earlier_sessions, "_finished", {})
    return tmp_path / "checkpoints"


def another_process() -> None:
    """Forget what a process remembers: this one goes on as the next attempt."""
    earlier_sessions._finished.clear()


def built() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    model = torch.nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    total: int = STEPS,
    batches: int = 1,
    later: Callable[[piton_trainer.Session], object] = lambda session: None,
    **options: object,
) -> int:
    """Train with a session as the environment describes it; return the steps that were taken."""
    taken = 0
    with piton_trainer.session(**options) as session:  # type: ignore[arg-type]
        session.restore(model=model, optimizer=optimizer)
        later(session)
        for x in session.steps([torch.ones(3, 2)] * batches, total=total):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            taken += 1
    return taken


@resume.refused("scripts: a second training without a name", "it would begin with the first one's weights")
@pytest.mark.parametrize("total", [STEPS - 1, STEPS, STEPS + 1, 2 * STEPS])
@pytest.mark.parametrize("what", ["another model", "another optimizer"])
def test_a_second_training_in_the_folder_of_the_first_is_refused(
    what: str, total: int, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = built()
    train(model, optimizer)
    again = built() if what == "another model" else (model, torch.optim.SGD(model.parameters(), lr=0.1))

    with pytest.raises(SystemExit) as refusal:
        train(*again, total=total)
    assert refusal.value.code == 78
    assert 'piton_trainer.session(name="fold-1"), or PitonCallback(name="fold-1")' in capsys.readouterr().err


def test_a_name_that_is_used_for_two_trainings_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Somebody has forgotten the number of the fold, or goes on with new objects: nobody can tell."""
    train(*built(), name="fold")
    assert train(*built(), name="fold", total=STEPS + 1) == 1
    assert "this one is of another model or optimizer" in caplog.text
    assert "name each training" in caplog.text


def train_by_trainer(trainer: object, model: torch.nn.Module, *, total: int = STEPS) -> int:
    """Train in the loop of a framework, which builds its optimizers anew; return the steps that were taken."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with piton_trainer.session() as session:
        session.restore(model=model, optimizer=optimizer)
        first = session.step
        is_over = session.begin(total=total, trainer=trainer) is None
        while not is_over:
            optimizer.step()
            is_over = session.boundary()
        return session.step - first


class Trainer:
    """A framework's."""


@pytest.mark.parametrize("total", [STEPS + 1, STEPS + 3])
def test_a_second_trainer_of_the_same_model_is_told_of(total: int, caplog: pytest.LogCaptureFixture) -> None:
    """It may be a longer training, or a fine-tuning that begins at the step of the first."""
    model, _ = built()
    first = Trainer()
    assert train_by_trainer(first, model) == STEPS
    assert train_by_trainer(first, model, total=STEPS + 1) == 1
    assert "another Trainer" not in caplog.text
    assert train_by_trainer(Trainer(), model, total=total) == total - STEPS - 1
    assert "this one is by another Trainer" in caplog.text
    assert ("left nothing to train" in caplog.text) == (total == STEPS + 1)


def test_a_training_that_an_earlier_one_has_left_nothing_to_do_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can tell whether it is the same once more, or the same model on other data."""
    model, optimizer = built()
    train(model, optimizer)
    assert caplog.text == ""
    assert train(model, optimizer) == 0
    assert "left nothing to train; if this is another one, name each training" in caplog.text


def test_a_second_training_that_does_not_fit_is_told_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused for its data, or a schedule, and that is not what is wrong."""
    model, optimizer = built()
    train(model, optimizer, batches=3)
    with pytest.raises(SystemExit):
        train(model, optimizer, batches=7, total=2 * STEPS)
    said = capsys.readouterr().err
    assert "data_length was 3" in said
    assert "name each training" in said


def test_objects_of_a_second_restore_are_added() -> None:
    """Else the checkpoint would have only those, and no attempt could resume from it."""

    def restore_schedule(session: piton_trainer.Session) -> None:
        schedules.append(StepLR(optimizer, 1, 0.5))
        session.restore(scheduler=schedules[-1])
        optimizer.register_step_post_hook(lambda *_: schedules[-1].step())

    schedules: list[StepLR] = []
    for total, taken in ((3, 3), (4, 1)):
        model, optimizer = built()
        assert train(model, optimizer, total=total, later=restore_schedule) == taken
        another_process()
    assert schedules[-1].last_epoch == 4
    assert optimizer.param_groups[0]["lr"] == 0.1 / 16


def restore_after_a_step() -> None:
    model, optimizer = built()
    with piton_trainer.session() as session:
        session.restore(model=model, optimizer=optimizer)
        for _ in session.steps([torch.ones(3, 2)]):
            session.restore(scheduler=StepLR(optimizer, 1))


def test_objects_are_named_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="training has begun"):
        restore_after_a_step()


def test_a_model_that_is_gone_is_another_one() -> None:
    train(*built())

    with pytest.raises(SystemExit):
        train(*built())


def test_the_same_training_goes_on_and_a_look_at_it_is_allowed() -> None:
    model, optimizer = built()
    assert [train(model, optimizer, total=total) for total in (3, 5, 5)] == [3, 2, 0]
    other, _ = built()
    with piton_trainer.session() as session:
        session.restore(model=other)
    assert torch.equal(other.weight, model.weight)


def test_a_training_that_failed_may_be_tried_again_with_new_objects() -> None:
    model, optimizer = built()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    optimizer.register_step_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        train(model, optimizer)

    assert train(*built()) == STEPS


def test_a_folder_that_the_script_has_chosen_is_on_purpose(tmp_path: Path) -> None:
    assert train(*built(), total=3, config=tiny.config(tmp_path / "mine")) == 3
    assert train(*built(), total=5, config=tiny.config(tmp_path / "mine")) == 2


def test_other_folders_are_other_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        monkeypatch.setenv(names.ENV_CHECKPOINT_DIR, str(tmp_path / name))
        assert train(*built()) == STEPS


@resume.exact("scripts: several trainings with names")
def test_names_tell_trainings_apart_and_each_resumes_its_own(here: Path) -> None:
    weights = {}
    for name in ("fold-0", "fold-1"):
        model, optimizer = built()
        assert train(model, optimizer, name=name) == STEPS
        weights[name] = model.weight.detach().clone()
    another_process()
    for name, weight in weights.items():
        model, optimizer = built()
        assert train(model, optimizer, name=name) == 0
        assert torch.equal(model.weight, weight)
        assert [step for step, _ in layout.step_folders(here / "sessions" / name)] == [STEPS]
    assert not (here / names.COMPLETE_FILE).exists()


def test_a_training_with_a_name_leaves_no_proof_that_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv(names.ENV_TERMINATION_LOG, str(log))
    train(*built(), name="fold-0")

    assert not log.exists() or log.read_text() == ""


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a" * 64])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(BadConfig, match="is no name"):
        train(*built(), name=name)


def train_until_told(config: Config) -> None:
    model, optimizer = built()
    with piton_trainer.session(config, name="fold-1") as session:
        session.restore(model=model, optimizer=optimizer)
        operator = session._services.telemetry.operator
        assert operator is not None
        for _ in session.steps([torch.ones(3, 2)], total=9):
            assert session.step == 0 or wait_for(lambda: operator.stop_requested)


def test_a_named_training_reports_itself_and_obeys(tmp_path: Path) -> None:
    with StatusServer(lambda report: TrainerRequests(stop=report.session == "fold-1 step 1/9")) as server:
        config = tiny.config(tmp_path, server=Server(url=server.url), report_seconds=0.0)
        assert train(*built(), name="fold-0", config=config) == STEPS
        with pytest.raises(Stopped):
            train_until_told(config)
    said = [(report.session, report.step, report.complete) for report in server.reports]
    assert (f"fold-0 step {STEPS}/{STEPS}", None, None) in said
    assert all(step is None for _, step, _ in said)


def test_a_run_that_began_without_the_rule_is_warned_only(caplog: pytest.LogCaptureFixture) -> None:
    """As checkpoints of older trainers are: they do not say that sessions are told apart."""
    model, optimizer = built()
    with piton_trainer.session() as session:
        session.restore(model=model, optimizer=optimizer)
        session._opened.state.tells_sessions_apart = False
        for _ in session.steps([torch.ones(3, 2)], total=2):
            pass

    assert train(*built(), total=5) == 3
    assert "a training of this script has finished in" in caplog.text
