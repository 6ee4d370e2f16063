"""A rehearsal: some steps of the real run, a stop, a resume, as many steps again, an evaluation, and the end."""

from dataclasses import replace
from pathlib import Path

import pytest

import piton_trainer
from piton.contract.manifest import Manifest
from piton.contract.names import MANIFEST_FILE, step_folder
from piton.contract.termination import ExitCode
from piton_trainer.config import Config
from piton_trainer.errors import Stopped
from piton_trainer.recipes.charlm.recipe import Charlm
from piton_trainer.training.loop import train
from support import charlm, ranks, tiny
from support.attempts import completion


def rehearse(directory: Path, steps: int = 3) -> int:
    """One attempt of it; the step that it came to."""
    config = charlm.changed(steps=500, eval_every=100, ema=None)
    settings = Config(checkpoint_dir=directory, rehearsal=steps, background_saves=False)
    with piton_trainer.session(settings) as session:
        train(session, Charlm(config, session))
    return session.step


def test_it_stops_resumes_and_ends_with_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="step 3 is saved"):
        rehearse(tmp_path)
    assert rehearse(tmp_path) == 6

    metrics = Manifest.from_json((tmp_path / step_folder(6) / MANIFEST_FILE).read_text()).metrics
    assert metrics["evaluation_every_steps"] == 100
    assert {"val_loss", "evaluation_seconds", "step_seconds"} <= metrics.keys()
    assert "val_loss" not in Manifest.from_json((tmp_path / step_folder(3) / MANIFEST_FILE).read_text()).metrics
    assert completion(tmp_path).reason == "the rehearsal is over"


def test_the_schedule_is_that_of_the_whole_run(tmp_path: Path) -> None:
    def fractions() -> list[float]:
        with piton_trainer.session(replace(tiny.config(tmp_path), rehearsal=2)) as session:
            session.restore(model=tiny.build())
            return [session.fraction for _ in session.steps([0] * 50, total=100)]

    with pytest.raises(Stopped):
        fractions()
    assert fractions() == [0.02, 0.03]


def test_all_ranks_stop_and_end_together(tmp_path: Path) -> None:
    first, second = (ranks.run(2, lambda: rehearse(tmp_path, 2)) for _ in range(2))
    assert [end.code for end in first] == [ExitCode.STOPPED] * 2
    assert [end.code for end in second] == [0, 0]


def test_a_run_that_is_shorter_ends_by_itself(tmp_path: Path) -> None:
    settings = replace(tiny.config(tmp_path), rehearsal=99)
    with piton_trainer.session(settings) as session:
        session.restore(model=tiny.build())
        assert len(list(session.steps([0] * 5))) == 5
    assert completion(tmp_path).reason == "all steps are done"


def test_a_report_says_what_the_training_takes(tmp_path: Path) -> None:
    with piton_trainer.session(tiny.config(tmp_path, tiny.every(1))) as session:
        session.restore(model=tiny.build())
        for _ in session.steps([0] * 2):
            pass
        metrics = session._opened.progress().metrics
    assert 50e6 < metrics["memory_peak_bytes"] < 100e9
    assert 0 < metrics["checkpoint_stall_seconds"] < 60
    assert "gpu_memory_peak_bytes" not in metrics


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_a_number_of_steps_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="PITON_REHEARSAL has to be a whole number above 0"):
        Config.from_env({"PITON_REHEARSAL": text})
