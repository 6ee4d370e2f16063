"""What is remembered of the trainers' reports, how much, and when a pass is worth it."""

from piton.contract.progress import StopAt, TrainerRequests
from piton.contract.termination import Limit
from piton.kube.report_store import RUNS_MAX, URGENT_SECONDS, Reports, Sender
from support.builders import NOW, a_progress
from support.pilot import FakeTimer

KEY = ("team", "ragcun")


def sender(attempt: int = 1, *, run: str = "ragcun", uid: str = "uid-of-the-run") -> Sender:
    return Sender(namespace="team", run=run, run_uid=uid, attempt=attempt)


def look(reports: Reports, attempt: int = 1) -> int | None:
    found = reports.look(KEY, run_uid="uid-of-the-run", attempt=attempt)
    return found.step if found else None


def test_each_attempt_speaks_for_itself() -> None:
    reports = Reports(FakeTimer(), pass_seconds=10)
    reports.take(sender(2), a_progress(20))
    reports.take(sender(1), a_progress(19))
    reports.take(sender(2, uid="uid-of-an-earlier-run"), a_progress(500))
    assert [look(reports, attempt) for attempt in (1, 2, 3)] == [19, 20, None]


def test_the_first_report_is_worth_a_pass_and_mere_steps_wait() -> None:
    timer = FakeTimer()
    reports = Reports(timer, pass_seconds=10)
    assert reports.take(sender(), a_progress(1)) == 0
    look(reports)
    timer.advance(4)
    assert reports.take(sender(), a_progress(2)) == 6
    timer.advance(20)
    assert reports.take(sender(), a_progress(3)) == 0


def test_a_checkpoint_is_news_but_not_more_often_than_once_a_second() -> None:
    timer = FakeTimer()
    reports = Reports(timer, pass_seconds=10)
    reports.take(sender(), a_progress(1))
    look(reports)
    assert reports.take(sender(), a_progress(2, checkpoint=2)) == URGENT_SECONDS
    timer.advance(URGENT_SECONDS)
    assert reports.take(sender(), a_progress(3, checkpoint=3)) == 0


def test_the_first_word_of_the_next_attempt_is_news() -> None:
    timer = FakeTimer()
    reports = Reports(timer, pass_seconds=10)
    reports.take(sender(), a_progress(9))
    look(reports)
    look(reports, attempt=2)
    timer.advance(URGENT_SECONDS)
    assert reports.take(sender(2), a_progress(9)) == 0


def test_what_is_remembered_is_bounded() -> None:
    reports = Reports(FakeTimer(), pass_seconds=10)
    reports.take(sender(), a_progress(1))
    for number in range(RUNS_MAX - 1):
        reports.take(sender(run=f"run-{number}"), a_progress(1))
    assert (len(reports), look(reports)) == (RUNS_MAX, 1)
    reports.take(sender(run="one-more"), a_progress(1))
    assert (len(reports), look(reports)) == (RUNS_MAX, None)


def test_attempts_of_one_name_are_bounded_too() -> None:
    reports = Reports(FakeTimer(), pass_seconds=10)
    for attempt in range(1, 11):
        reports.take(sender(attempt), a_progress(attempt))
    assert [look(reports, attempt) for attempt in (1, 6, 7, 10)] == [None, None, 7, 10]
    reports.forget(KEY)
    assert (len(reports), look(reports, 10)) == (0, None)


def test_what_a_pass_asks_is_the_answer_to_the_next_report() -> None:
    reports = Reports(FakeTimer(), pass_seconds=10)
    reports.take(sender(), a_progress(1))
    assert reports.answer(sender()) == TrainerRequests()

    request(reports, TrainerRequests(stop=True))

    assert reports.answer(sender()) == TrainerRequests(stop=True)
    assert reports.answer(sender(2)) == TrainerRequests(), "another attempt is asked nothing"
    assert reports.answer(sender(uid="uid-of-an-earlier-run")) == TrainerRequests()


def test_a_save_is_asked_for_once_for_each_text() -> None:
    reports = Reports(FakeTimer(), pass_seconds=10)
    reports.take(sender(), a_progress(1))

    def saves(save: str) -> bool:
        request(reports, TrainerRequests(), save=save)
        request(reports, TrainerRequests(), save=save)  # passes follow each other before the trainer reports
        return [reports.answer(sender()).checkpoint for _ in range(2)] == [True, False]

    assert not saves("monday"), "that was there when the attempt was first looked at"
    assert saves("tuesday")
    assert not saves("tuesday")
    assert saves("monday")
    assert not saves("")


def request(reports: Reports, requests: TrainerRequests, *, save: str = "") -> None:
    reports.request(KEY, run_uid="uid-of-the-run", attempt=1, requests=requests, save=save)


def test_the_seconds_until_a_limit_pass_between_the_pass_and_the_answer() -> None:
    timer = FakeTimer()
    reports = Reports(timer, pass_seconds=10)
    reports.take(sender(), a_progress(1))
    stop_at = StopAt(time=NOW, limit=Limit.DEADLINE, seconds=100.0)
    reports.request(KEY, run_uid="uid-of-the-run", attempt=1, requests=TrainerRequests(stop_at=stop_at), save="")
    timer.advance(40)

    answer = reports.answer(sender()).stop_at

    assert answer is not None
    assert (answer.seconds, answer.time) == (60.0, NOW)


def test_how_long_an_attempt_has_been_silent() -> None:
    timer = FakeTimer()
    timer.advance(1000)
    reports = Reports(timer, pass_seconds=10)
    timer.advance(30)

    def silent(attempt: int) -> float:
        return reports.silent_seconds(KEY, run_uid="uid-of-the-run", attempt=attempt)

    assert silent(1) == 30, "nobody listened before"
    reports.take(sender(1), a_progress(1))
    timer.advance(5)
    assert (silent(1), silent(2)) == (5, 35)
