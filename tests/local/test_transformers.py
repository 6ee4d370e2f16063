"""An unmodified transformers.Trainer on this machine: what it reports by itself is progress, and drills go by it."""

from pathlib import Path

import pytest

from local.helpers import spec_of, train
from piton.api.status_base import Phase
from piton.local.run_folder import RunFolder

SCRIPT = Path(__file__).with_name("plain_transformers.py")


@pytest.mark.timeout(300)  # torch and transformers are imported twice, and transformers reports every 5 s
def test_its_progress_is_seen_and_a_drill_at_a_percentage_fires(tmp_path: Path) -> None:
    """It saves at steps 5, 10, 15 and 20, and reports in the middle once: at step 8."""
    parts = {
        "trainer": {"image": "none", "command": ["python", str(SCRIPT), str(tmp_path / "out")]},
        "workers": {"nodes": 1, "gpusPerNode": 0},
    }
    ending, listener = train(tmp_path / "run", spec=spec_of(parts), drills=("preempt@35%",))

    summary = ending.summary
    assert (summary.phase, summary.attempts, summary.preemptions, summary.failures) == (Phase.SUCCEEDED, 2, 1, 0)
    assert summary.drills_not_fired == ()
    assert "Drill preempt@35% at step 8: the machine goes in 30s" in listener.said
    seen = [view.progress for view in listener.views if view.progress and view.progress.step]
    assert (seen[0].step, seen[0].total_steps, seen[0].percentage) == (8, 20, 40)
    state = RunFolder(tmp_path / "run").load()
    assert state is not None
    assert state.status.progress is not None
    assert state.status.progress.progress_percentage == 100
    log = (tmp_path / "run/logs/attempt-2/trainer-0/output.log").read_text()
    assert "at step 20, 15 of them in this life" in log
