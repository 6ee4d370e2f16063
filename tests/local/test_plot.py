import json
from pathlib import Path

from piton.api.reasons import Reason
from piton.api.status import AttemptStatus, Verdict
from piton.contract.progress import Progress
from piton.local import metrics, plot
from support.builders import an_ended


def point(step: int, attempt: int = 1, **values: float) -> metrics.Point:
    return metrics.Point(attempt=attempt, step=step, metrics=values)


def test_reports_come_back_as_they_were_written_and_torn_lines_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    metrics.append(file, 1, Progress(updated="now", step=3, metrics={"loss": 2.5}))
    metrics.append(file, 1, Progress(updated="now", metrics={"loss": 9.0}))
    with file.open("a") as torn:
        torn.write('{"attempt": 1, "st\nnull\n[]\n')
    metrics.append(file, 2, Progress(updated="now", step=4, metrics={"loss": 2.0}))

    assert metrics.read(file) == [point(3, loss=2.5), point(4, 2, loss=2.0)]
    assert metrics.read(tmp_path / "none") == []


def test_a_step_that_was_trained_again_counts_as_it_came_out_last() -> None:
    points = [point(1, loss=3.0), point(2, loss=2.0), point(2, 2, loss=1.9), point(3, 2, val_loss=5.0)]

    assert metrics.series(points, "loss") == [(1, 3.0), (2, 1.9)]


def test_a_metric_that_is_repeated_in_every_report_counts_where_it_changed() -> None:
    assert metrics.changes([(5, 2.0), (6, 2.0), (10, 1.5), (11, 1.5)]) == [(5, 2.0), (10, 1.5)]


def test_a_disk_that_takes_nothing_costs_no_more_than_the_point(tmp_path: Path) -> None:
    metrics.append(tmp_path / "no-such-folder/metrics.jsonl", 1, Progress(updated="now", step=3))

    assert not (tmp_path / "no-such-folder").exists()


def test_the_curve_shows_where_machines_were_lost(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.png", tmp_path / "marked.png"
    points = [point(step, loss=3 / step, val_loss=2 / step) for step in range(1, 20)]
    ends = [an_ended(1, Verdict.PREEMPTED, step=7, reason=Reason.NODE_GONE), an_ended(2, Verdict.FINISHED, step=19)]

    def draw(path: Path, attempts: list[AttemptStatus]) -> bool:
        return plot.draw(path, name="fake", points=points, objective=None, attempts=attempts)

    assert draw(plain, ends[1:])
    assert draw(marked, ends)
    assert plain.read_bytes() != marked.read_bytes()


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert not plot.draw(tmp_path / "none.png", name="fake", points=[], objective=None, attempts=[])
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == "[]"
