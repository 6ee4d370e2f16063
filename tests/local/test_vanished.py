"""`piton run` is killed, as by the machine's own memory killer, and its trainers are not."""

import signal
from pathlib import Path
from typing import Any

from local.helpers import (
    a_command,
    eventually,
    fake_parts,
    make_sure_dead,
    spec_of,
    text_of,
    train,
    write_manifest,
)
from piton.api.status import Verdict
from piton.api.status_base import Phase
from piton.local.run_folder import RunFolder
from support.processes import is_running


def vanish(tmp_path: Path, parts: dict[str, Any]) -> int:
    """Kill a command whose trainer waits at step 7; the trainer's process id."""
    held = tmp_path / "run/checkpoints/held-7"
    file = write_manifest(tmp_path / "run.yaml", **parts)
    with a_command("run", str(file), "--dir", "run", cwd=tmp_path) as command:
        pid = int(eventually(lambda: text_of(held)))
        command.send_signal(signal.SIGKILL)
    return pid


def test_its_trainers_save_and_leave(tmp_path: Path) -> None:
    trainer = vanish(tmp_path, fake_parts("--hold-at", "7"))

    try:
        eventually(lambda: not is_running(trainer))
    finally:
        make_sure_dead(trainer)
    assert (tmp_path / "run/checkpoints/step-000000007/MANIFEST.json").exists()


def test_the_next_command_kills_those_that_stayed_and_goes_on(tmp_path: Path) -> None:
    parts = fake_parts("--hold-at", "7", "--deaf")
    trainer = vanish(tmp_path, parts)

    try:
        ending, listener = train(tmp_path / "run", spec=spec_of(parts))
        assert not is_running(trainer)
    finally:
        make_sure_dead(trainer)
    assert "Killed 1 process(es) that an earlier command had left behind" in listener.said
    assert (ending.summary.phase, ending.summary.final_step) == (Phase.SUCCEEDED, 20)
    state = RunFolder(tmp_path / "run").load()
    assert state is not None
    assert [attempt.verdict for attempt in state.status.attempts] == [Verdict.INFRASTRUCTURE, Verdict.FINISHED]
    assert state.status.failures == 0
