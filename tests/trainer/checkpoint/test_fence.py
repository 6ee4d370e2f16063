"""Of two attempts that are alive at once, only the newer one commits."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import piton_trainer
from piton.contract import names
from piton.contract.assignment import SavePolicy
from piton.contract.termination import Outcome, Termination
from piton_trainer.checkpoint import Snapshot
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.fence import Fence, Holder, read
from piton_trainer.checkpoint.save.blocking_save import BlockingCheckpointer
from piton_trainer.clock import Clock
from piton_trainer.errors import Fenced
from piton_trainer.runtime.process_group import Ranks
from support import tiny


def fence(directory: Path, attempt: int | None, disk: layout.Disk | None = None) -> Fence:
    made = Fence(directory, disk=disk or layout.Disk(), attempt=attempt)
    made.claim()
    return made


def saver(fence: Fence, directory: Path, disk: layout.Disk | None = None) -> BlockingCheckpointer:
    return BlockingCheckpointer(
        directory, ranks=Ranks(), fence=fence, policy=SavePolicy(), disk=disk or layout.Disk(), clock=Clock()
    )


def snapshot(step: int) -> Snapshot:
    return Snapshot(step=step, tensors={"a": torch.ones(3)})


def steps_in(directory: Path) -> list[int]:
    return [checkpoint.manifest.step for checkpoint in layout.committed(directory)]


def test_a_lower_attempt_cannot_claim(tmp_path: Path) -> None:
    fence(tmp_path, 3)
    with pytest.raises(Fenced, match=r"attempt 3 has claimed .* attempt 2 may not save any more"):
        fence(tmp_path, 2)


def test_an_attempt_that_was_overtaken_cannot_commit(tmp_path: Path) -> None:
    zombie = fence(tmp_path, 2)
    fence(tmp_path, 3)
    with pytest.raises(Fenced):
        saver(zombie, tmp_path).save(snapshot(8))
    assert steps_in(tmp_path) == []


def test_of_two_processes_of_one_attempt_the_later_may_commit(tmp_path: Path) -> None:
    earlier, later = fence(tmp_path, 2), fence(tmp_path, 2)
    later.check()
    with pytest.raises(Fenced, match="another process of attempt 2"):
        earlier.check()


def test_outside_piton_the_next_process_is_the_next_attempt(tmp_path: Path) -> None:
    assert [fence(tmp_path, None).attempt for _ in range(3)] == [1, 2, 3]


def test_a_higher_attempt_that_was_overwritten_claims_again(tmp_path: Path) -> None:
    lower, higher = fence(tmp_path, 2), fence(tmp_path, 3)
    # As if both had looked at the same moment, and the lower one had written last.
    (tmp_path / names.FENCE_FILE).write_text(json.dumps({"attempt": 2, "owner": lower.owner}))
    higher.check()
    assert read(tmp_path) == Holder(attempt=3, owner=higher.owner)
    with pytest.raises(Fenced):
        lower.check()


def test_a_claim_sweeps_what_others_left_in_flight_and_nothing_else(tmp_path: Path) -> None:
    saver(fence(tmp_path, 1), tmp_path).save(snapshot(4))
    (layout.saving_folder(tmp_path, step=8, attempt=1, owner="f" * 32)).mkdir()
    (tmp_path / f"{layout.SWEPT_PREFIX}half-deleted").mkdir()
    (tmp_path / "mine.txt").write_text("a user's own file")
    fence(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        names.FENCE_FILE,
        "mine.txt",
        names.step_folder(4),
    ]


class Interrupted(layout.Disk):
    """A disk on which something happens just before a file of a save is written."""

    def __init__(self, file: str, event: Callable[[], object]) -> None:
        self.file, self.event = file, event

    def write(self, path: Path, text: str) -> None:
        if path.name == self.file and path.parent.name.startswith(names.SAVING_PREFIX):
            self.event()
        super().write(path, text)


@pytest.mark.parametrize("file", [layout.STATE_FILE, names.MANIFEST_FILE])
def test_a_zombie_that_is_overtaken_in_the_middle_of_a_save_is_fenced(file: str, tmp_path: Path) -> None:
    zombie = fence(tmp_path, 1)
    disk = Interrupted(file, lambda: fence(tmp_path, 2))
    with pytest.raises(Fenced, match="attempt 2 has claimed"):
        saver(zombie, tmp_path, disk).save(snapshot(8))
    assert [path.name for path in tmp_path.iterdir()] == [names.FENCE_FILE]


def test_a_zombie_that_passed_its_check_fails_at_the_rename(tmp_path: Path) -> None:
    """The last moment: the zombie has looked at FENCE and is about to rename, when the claim comes."""

    class Zombie(Fence):
        checks = 0

        def check(self) -> None:
            super().check()
            self.checks += 1
            if self.checks == 2:
                fence(tmp_path, 2)

    zombie = Zombie(tmp_path, disk=layout.Disk(), attempt=1)
    zombie.claim()
    with pytest.raises(Fenced):
        saver(zombie, tmp_path).save(snapshot(8))
    assert zombie.checks == 2
    assert steps_in(tmp_path) == []


def test_a_session_that_is_overtaken_ends_with_its_code_and_commits_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def overtake(_: piton_trainer.Session) -> None:
        fence(tmp_path, 9)

    log = tmp_path / "termination-log"
    ran = tiny.train(tmp_path, attempt=8, at={6: overtake}, termination_log=log)
    assert ran.code == 81
    words = Termination.from_json(log.read_text())
    assert words is not None
    assert (words.outcome, words.fence) == (Outcome.FENCED, 9)
    assert ran.complete is None
    assert steps_in(tmp_path) == [4]
    assert "attempt 9 has claimed" in capsys.readouterr().err


def test_a_session_that_is_overtaken_after_its_last_save_does_not_call_the_run_finished(tmp_path: Path) -> None:
    session = piton_trainer.session(tiny.config(tmp_path, attempt=1))
    with pytest.raises(Fenced), session:
        train_and_be_overtaken(session, tmp_path)
    assert not (tmp_path / names.COMPLETE_FILE).exists()


def train_and_be_overtaken(session: piton_trainer.Session, directory: Path) -> None:
    session.restore(model=tiny.build())
    assert list(session.steps([0])) == [0]
    assert steps_in(directory) == [1]
    fence(directory, 2)


def test_a_damaged_fence_is_named(tmp_path: Path) -> None:
    (tmp_path / names.FENCE_FILE).write_text("{")
    ran = tiny.train(tmp_path)
    assert ran.code == 78
    assert f"{tmp_path / names.FENCE_FILE} is damaged" in ran.error


def test_deleting_a_folder_twice_is_no_error(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    layout.discard(folder)
    layout.discard(folder)
    assert list(tmp_path.iterdir()) == []
