"""Which node has a broken device: the one of the replica whose own words say so, and nobody else's."""

import pytest

from piton.api.reasons import Reason
from piton.contract.termination import Outcome
from piton.core.decide import decide
from piton.core.effects import Announcement, TaintNode
from piton.observed import ReplicaSeen
from piton.timing import Timing
from support.builders import NOW, a_failed_attempt, a_record, a_status, an_observed, failed, later, said

ECC = "AcceleratorError: CUDA error: uncorrectable ECC error encountered"
GONE = "DistBackendError: NCCL error: ncclRemoteError: A call failed, or a process exited."


def lost(name: str, detail: str, *, at: float = 0, outcome: Outcome = Outcome.DEVICE_LOST) -> ReplicaSeen:
    words = said(outcome, detail=detail)
    return failed(83, name=name, node=f"node-of-{name}", termination=words, ended_at=later(at))


def told(*replicas: ReplicaSeen) -> list[Announcement]:
    """What is announced of a node when the attempt is closed."""
    observed = an_observed(a_failed_attempt(*replicas), status=a_status(a_record()))
    decision = decide(observed, now=NOW)
    assert decision.rule == "close"
    return [news for news in decision.announcements if "broken device" in news.message]


def test_a_broken_device_is_told_with_its_node_its_words_and_what_to_do() -> None:
    (news,) = told(lost("b", GONE, at=1), lost("a", ECC, at=0))

    assert (news.severity, news.reason) == ("Warning", Reason.DEVICE_LOST)
    assert "node node-of-a has a broken device" in news.message
    assert ECC in news.message
    assert "kubectl taint node node-of-a piton.dev/device-fault=ragcun-1:NoSchedule" in news.message
    assert "node-of-b" not in news.message


def test_however_much_is_said_the_command_is_not_cut_off() -> None:
    (news,) = told(lost("a", f"{ECC} {'very long ' * 500}"))

    assert len(news.message) < 900
    assert news.message.endswith(":NoSchedule")


@pytest.mark.parametrize(
    "replica",
    [
        pytest.param(lost("a", GONE), id="a peer that is gone"),
        pytest.param(lost("a", "DistBackendError: Watchdog caught collective operation timeout"), id="a time-out"),
        pytest.param(lost("a", f"RuntimeError: rank 1 failed with {ECC}"), id="the words of another rank"),
        pytest.param(lost("a", ECC, outcome=Outcome.FAILED), id="a failure of the program that says so"),
    ],
)
def test_what_is_no_word_of_a_device_accuses_no_node(replica: ReplicaSeen) -> None:
    assert told(replica) == []


def test_a_program_that_says_so_everywhere_accuses_one_node_only() -> None:
    (news,) = told(*(lost(f"r{n}", ECC, at=9 - n) for n in range(10)))

    assert "node-of-r9 " in news.message


@pytest.mark.parametrize("said_there", [ECC, GONE])
def test_only_a_broken_device_taints_its_node_and_only_where_piton_may(said_there: str) -> None:
    observed = an_observed(a_failed_attempt(lost("a", said_there)), status=a_status(a_record()))
    taint = TaintNode(node="node-of-a", value="ragcun-1", until=later(3600), reason=Reason.DEVICE_LOST)

    assert decide(observed, now=NOW).effects == ()
    wanted = (taint,) if said_there == ECC else ()
    assert decide(observed, now=NOW, timing=Timing(device_taint_seconds=3600)).effects == wanted
