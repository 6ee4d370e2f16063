"""The folder of a local sweep: what one command leaves for the next, and when it is refused."""

from datetime import datetime
from pathlib import Path

import pytest

from piton.api.conditions import FAILED
from piton.api.reasons import Reason
from piton.api.status_base import Condition, ConditionStatus, Phase
from piton.local import sweep_folder
from piton.local.own_files import SWEEP
from piton.local.run_folder import taken
from piton.local.sweep_folder import SweepState
from piton.sweep.expand import digest
from piton.sweep.parse import ParsedSweep
from piton.sweep.status import Row, SweepStatus
from support.builders import NOW
from support.sweeps import parsed


class Clock:
    def now(self) -> datetime:
        return NOW


def saved(root: Path, sweep: ParsedSweep, *, failed: bool = False, rows: tuple[Row, ...] = ()) -> SweepState:
    """What a command has left in this folder."""
    assert sweep.spec is not None
    condition = Condition(
        type=FAILED,
        status=ConditionStatus.TRUE if failed else ConditionStatus.FALSE,
        reason=Reason.NOT_YET,
        last_transition_time=NOW,
    )
    status = SweepStatus(plan=digest(sweep.spec), runs=rows, conditions=(condition,))
    state = SweepState(name=sweep.meta.name, created=NOW, status=status)
    sweep_folder.save(root, state)
    return state


def test_the_first_command_begins_and_the_next_goes_on(tmp_path: Path) -> None:
    sweep = parsed()

    assert sweep_folder.state_of(tmp_path, sweep, Clock()) == SweepState(name="ragcun", created=NOW)
    assert sweep_folder.state_of(tmp_path, sweep, Clock()).status == SweepStatus()
    left = saved(tmp_path, sweep, rows=(Row(name="ragcun-a", variant="a", phase=Phase.TRAINING),))
    assert sweep_folder.state_of(tmp_path, sweep, Clock()) == left


def test_a_failed_sweep_keeps_what_has_succeeded_and_what_was_spent(tmp_path: Path) -> None:
    good = Row(name="ragcun-a", variant="a", phase=Phase.SUCCEEDED, step=9, cost="1.50")
    bad = Row(name="ragcun-b", variant="b", phase=Phase.FAILED, step=5, preemptions=2, cost="0.70")
    saved(tmp_path, parsed(), failed=True, rows=(good, bad))

    found = sweep_folder.state_of(tmp_path, parsed(), Clock()).status
    assert found.runs == (good, Row(name="ragcun-b", variant="b", cost="0.70"))
    assert not found.is_true(FAILED)


def test_another_sweep_and_an_edited_one_are_refused_with_what_to_do(tmp_path: Path) -> None:
    saved(tmp_path, parsed())

    refusal = pytest.raises(ValueError, match="holds the sweep ragcun, not other; name another folder with --dir")
    with refusal, taken(tmp_path, SWEEP, "other"):
        pass
    with pytest.raises(ValueError, match="put them back, say --fresh to start over, or give the sweep another name"):
        sweep_folder.state_of(tmp_path, parsed(variants=[{"name": "only"}]), Clock())


KNOWN = b'{"name": "ragcun", "created": "never", "status": {}}'


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        *((damaged, "name another folder with --dir") for damaged in (b"", b"{}", b"\xff", b'{"name": 3}')),
        (KNOWN, "say --fresh to start over"),
    ],
)
def test_a_damaged_state_is_named(content: bytes, advice: str, tmp_path: Path) -> None:
    (tmp_path / SWEEP.state_file).write_bytes(content)

    with pytest.raises(ValueError, match=rf"sweep\.json cannot be read \(\w+\); {advice}"):
        sweep_folder.load(tmp_path)


def test_a_run_lies_in_a_folder_of_its_short_name(tmp_path: Path) -> None:
    run = parsed().plan[0]

    assert sweep_folder.folder_of(tmp_path, run, "ragcun").root == tmp_path / "baseline"
    assert sweep_folder.summaries(tmp_path, parsed(), {}) == ()
