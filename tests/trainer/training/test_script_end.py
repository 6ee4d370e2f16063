"""The last words of a script that goes on after its session, in interpreters that really end."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piton.contract.termination import Outcome, ScriptEnd, Termination
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.termination import TerminationLog

PROOF = Termination(outcome=Outcome.FINISHED, step=9, weights_digest="sha256:1", detail="all steps are done")
SCRIPT = """
import atexit, gc, json, os, resource, sys
from dataclasses import replace
from pathlib import Path
from piton.contract.termination import ScriptEnd, Termination
from piton_trainer import script_end
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.termination import TerminationLog

gc.freeze()  # each ends sooner
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
cases, proof, codes = json.loads(sys.argv[1]), sys.argv[2], {}
for name, body in cases.items():
    child = os.fork()
    if not child:
        break
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
else:
    print(json.dumps(codes), flush=True)
    os._exit(0)

before, _, after = body.rpartition("---")
exec(before)
log = TerminationLog(Path(name), Ranks())
log.leave(replace(Termination.from_json(proof), script=ScriptEnd.RUNNING, launched=script_end.is_launched()))
script_end.watch(log)
exec(after)
"""
CASES = {
    "ends": "",
    "exits": "sys.exit()",
    "exits with 0": "sys.exit(0)",
    "aborted by a library at the end": "atexit.register(os.abort)---pass",
    "raises": "raise RuntimeError('the export failed\\nat line 2')",
    "raises behind a hook of a framework": "sys.excepthook = lambda *_: None\nraise ValueError",
    "exits with 3": "sys.exit(3)",
    "exits with a sentence": "sys.exit('accuracy is too low')",
    "exits by another name": "from sys import exit as leave---leave(3)",
    "exits with a builtin": "exit(3)",
    "quits": "quit(code=4)",
    "quits well": "quit()",
    "raises its status": "raise SystemExit(3)",
    "raises its status inside": "with open(os.devnull): raise SystemExit('too low')",
    "survives an exit": "try: sys.exit(3)\nexcept SystemExit: pass",
    "aborts in the middle": "os.abort()",
    "is told to stop": "os.kill(os.getpid(), 15)",
    "leaves without a word": "os._exit(1)",
    "begins another session": "script_end.forget()\nsys.exit(3)",
    "has a child that fails": "child = os.fork()\nif not child: sys.exit(4)\nos.waitpid(child, 0)",
}
LAUNCHED_ALONE = (
    "exits with 3",
    "exits with a sentence",
    "exits by another name",
    "exits with a builtin",
    "quits",
    "raises its status",
    "raises its status inside",
)
"""Without torchrun their exit code says it."""


def test_the_script_has_ended_with_its_last_process_and_has_failed_with_any(tmp_path: Path) -> None:
    """torchrun's exit code says the same of a process that is killed and of one that has nothing left to do."""
    log, other = (TerminationLog(tmp_path / "log", Ranks(local_rank=rank)) for rank in (0, 1))

    def words() -> tuple[ScriptEnd | None, str | None]:
        found = Termination.from_json((tmp_path / "log").read_text())
        assert found is not None
        return found.script, found.script_error

    log.leave(replace(PROOF, script=ScriptEnd.RUNNING, scripts_left=2))
    log.note_script(ScriptEnd.ENDED, None)
    assert words() == (ScriptEnd.RUNNING, None)
    other.note_script(ScriptEnd.ENDED, None)
    assert words() == (ScriptEnd.ENDED, None)

    log.leave(replace(PROOF, script=ScriptEnd.RUNNING, scripts_left=2))
    other.note_script(ScriptEnd.FAILED, "boom")
    log.note_script(ScriptEnd.ENDED, None)
    assert words() == (ScriptEnd.FAILED, "boom")


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "torchrun"])
def ends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The exit code and the message of each case, of one process that has imported torch."""
    folder: Path = tmp_path_factory.mktemp("ends")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PITON_", "TORCHELASTIC_"))}
    env |= {"TORCHELASTIC_RUN_ID": "1"} if request.param else {}
    command = [sys.executable, "-c", SCRIPT, json.dumps(CASES), PROOF.to_json()]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    codes = json.loads(done.stdout.splitlines()[-1])
    words = {name: Termination.from_json((folder / name).read_text()) for name in CASES}
    return {name: (codes[name], words[name]) for name in CASES} | {"launched": request.param}


@pytest.mark.parametrize(
    ("name", "code", "script", "error"),
    [
        ("ends", 0, ScriptEnd.ENDED, None),
        ("exits", 0, ScriptEnd.ENDED, None),
        ("exits with 0", 0, ScriptEnd.ENDED, None),
        ("aborted by a library at the end", -6, ScriptEnd.ENDED, None),
        ("raises", 1, ScriptEnd.FAILED, "RuntimeError: the export failed"),
        ("raises behind a hook of a framework", 1, ScriptEnd.FAILED, "ValueError"),
        ("exits with 3", 3, ScriptEnd.FAILED, "sys.exit(3)"),
        ("exits with a sentence", 1, ScriptEnd.FAILED, "sys.exit('accuracy is too low')"),
        ("exits by another name", 3, ScriptEnd.FAILED, "SystemExit"),
        ("exits with a builtin", 3, ScriptEnd.FAILED, "sys.exit(3)"),
        ("quits", 4, ScriptEnd.FAILED, "sys.exit(4)"),
        ("quits well", 0, ScriptEnd.ENDED, None),
        ("raises its status", 3, ScriptEnd.FAILED, "SystemExit"),
        ("raises its status inside", 1, ScriptEnd.FAILED, "SystemExit"),
        ("survives an exit", 0, ScriptEnd.ENDED, None),
        ("aborts in the middle", -6, ScriptEnd.RUNNING, None),
        ("is told to stop", -15, ScriptEnd.RUNNING, None),
        ("leaves without a word", 1, ScriptEnd.RUNNING, None),
        ("begins another session", 3, ScriptEnd.RUNNING, None),
        ("has a child that fails", 0, ScriptEnd.ENDED, None),
    ],
)
def test_the_message_says_what_became_of_the_script(
    ends: dict[str, Any], name: str, code: int, script: ScriptEnd, error: str | None
) -> None:
    found, words = ends[name]
    if not ends["launched"] and name in LAUNCHED_ALONE:
        script, error = ScriptEnd.ENDED, None

    assert (found, words.script, words.script_error) == (code, script, error)
    assert (words.launched, words.is_proof, words.detail) == (ends["launched"], True, "all steps are done")
