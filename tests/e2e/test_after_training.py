"""What a script does after its training, on a real cluster: it is part of the run, and a notice repeats it alone."""

import pytest

from hack.cluster import drills
from hack.cluster.layout import Node
from support.live import DigestOf, LiveCluster, NewTraining, Training, paced, wait_for

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]

STEPS = 60
EXPORT_SECONDS = 60
EXPORT = f"""
if os.environ["RANK"] == "0":
    folder = Path(os.environ["PITON_CHECKPOINT_DIR"])
    (folder / ("exporting-" + os.environ["PITON_ATTEMPT"])).touch()
    time.sleep({EXPORT_SECONDS})
    torch.save(model.state_dict(), folder / "export.tmp")
    (folder / "export.tmp").rename(folder / "export.pt")
"""
"""After `paced.py`. The worker ends at once."""


def _reason(run: Training) -> str:
    conditions = run.status.get("conditions", [])
    return next((c["reason"] for c in conditions if c["type"] == "Training"), "")


def _ended(run: Training) -> list[str]:
    """The replicas whose scripts have ended, while others go on."""
    return [name for attempt in run.status.get("attempts", []) for name in attempt.get("done") or ()]


def test_a_notice_in_the_middle_of_an_export_repeats_the_export_and_no_step(
    cluster: LiveCluster, drilled: None, training: NewTraining, digest_of: DigestOf
) -> None:
    run, spec = training(), paced(STEPS, 0.0)
    *python, program, steps, seconds = spec["trainer"]["command"]
    spec["trainer"]["command"] = [*python, program + EXPORT, steps, seconds]
    spec["workers"] |= {"nodes": 2}
    run.apply(spec)
    first = Node.named(run.wait_for_node(1))
    wait_for(lambda: _ended(run) == [f"{run.name}-1-worker-0"], "the worker has ended", seconds=120, say=run.say)
    assert (run.phase, _reason(run)) == ("Training", "AfterTraining"), run.say()
    folder, proof = run.folder, run.complete()
    assert folder is not None
    assert (folder / "exporting-1").exists()

    drills.reclaim(first, notice_seconds=10)
    status = run.wait_for_phase("Succeeded", seconds=300)

    assert [(a["number"], a["verdict"]) for a in status["attempts"]] == [(1, "Preempted"), (2, "Finished")], status
    assert (status["preemptions"], status["failures"], status["infrastructureFailures"]) == (1, 0, 0)
    assert status["lost"]["steps"] == 0
    assert run.commits()[STEPS] == 1, "nothing was trained, or saved, again"
    assert status["result"]["weightsDigest"] == proof.weights_digest == digest_of(STEPS)
    assert (folder / "exporting-2").exists()
    assert (folder / "export.pt").exists()
