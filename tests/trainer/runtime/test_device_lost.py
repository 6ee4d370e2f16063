"""Faults of GPUs, of their driver and of the connection between ranks are not the program's."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import piton_trainer
from piton.contract.devices import names_own_broken_device
from piton.contract.termination import Outcome, Termination
from piton_trainer import stage
from piton_trainer.config import Config
from piton_trainer.errors import DeviceLost
from piton_trainer.runtime import device_faults
from piton_trainer.runtime.device_faults import require_gpus
from piton_trainer.termination import TerminationLog, outcome_of
from support import ranks, tiny

NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, "
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"
ECC = torch.AcceleratorError(
    "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously reported"
)


@pytest.mark.parametrize(
    "error",
    [
        ECC,
        torch.AcceleratorError("CUDA error: uncorrectable NVLink error detected during the execution"),
        torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        torch.AcceleratorError("CUDA error: unknown error"),
        RuntimeError("CUDA error: no CUDA-capable device is detected"),
        RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"),
        RuntimeError("Unable to determine the device handle for GPU0000:8D:00.0: GPU is lost."),
        RuntimeError("GPU 0000:3b:00.0 has fallen off the bus (Xid 79)"),
        dist.DistBackendError(NCCL + "unhandled system error\nncclSystemError: System call (e.g. socket) failed"),
        dist.DistBackendError(NCCL + "remote process exited\nncclRemoteError: A call failed, or a process exited."),
        dist.DistBackendError(NCCL + "unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed."),
        dist.DistBackendError(
            "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, "
            "Timeout(ms)=600000) ran for 600040 milliseconds before timing out."
        ),
        RuntimeError(GLOO + "pair.cc:553] Connection closed by peer [10.0.0.7]:64647."),
        RuntimeError(GLOO + "unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete"),
        dist.DistStoreError("wait timeout after 1800000ms, keys: /default_pg/0//cpu//0/rank_1"),
        dist.DistNetworkError("The client socket has timed out after 1800000ms while trying to connect"),
        RuntimeError(f"rank 1 failed with AcceleratorError: {ECC}"),
    ],
    ids=lambda error: str(error).partition("\n")[0][-60:],
)
def test_a_fault_of_the_hardware_or_of_the_connection_is_a_device_that_is_lost(error: Exception) -> None:
    outcome, detail = outcome_of(error)
    assert outcome is Outcome.DEVICE_LOST
    assert detail.startswith(f"{type(error).__name__}: ")


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("CUDA error: invalid device ordinal"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        dist.DistBackendError(
            NCCL + "unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed.\n"
            "Last error:\nCuda failure 700 'an illegal memory access was encountered'"
        ),
        dist.DistBackendError(
            NCCL + "unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed.\n"
            "Last error:\nCuda failure 2 'out of memory'"
        ),
        dist.DistBackendError(NCCL + "invalid usage\nncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0"),
        RuntimeError("Found no NVIDIA driver on your system."),
        RuntimeError("No CUDA GPUs are available"),
        RuntimeError(GLOO + "pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4"),
        ConnectionResetError("Connection reset by peer"),
        ValueError("Xid 79"),
    ],
    ids=lambda error: str(error).partition("\n")[0][-60:],
)
def test_what_a_program_can_do_wrong_by_itself_stays_its_failure(error: Exception) -> None:
    assert outcome_of(error)[0] is Outcome.FAILED


def break_gpu(_: piton_trainer.Session) -> None:
    raise ECC


def test_a_session_that_loses_its_gpu_ends_with_a_code_and_a_message_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "termination-log"
    ran = tiny.train(tmp_path, at={6: break_gpu}, termination_log=log)
    detail = "AcceleratorError: CUDA error: uncorrectable ECC error encountered"
    assert (ran.code, ran.error) == (83, detail)
    words = Termination.from_json(log.read_text())
    assert words == Termination(outcome=Outcome.DEVICE_LOST, step=5, checkpoint_step=4, detail=detail)
    assert "in break_gpu" in capsys.readouterr().err, "where it happened is told, though the process ends quietly"


def test_a_gpu_that_fails_while_a_session_begins_or_ends_is_lost_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ECC

    with monkeypatch.context() as patched:
        patched.setattr("piton_trainer.training.session.Ranks.join", fail)
        assert tiny.train(tmp_path).code == 83
    monkeypatch.setattr("piton_trainer.training.steps.Steps.conclude", fail)
    assert tiny.train(tmp_path).code == 83


def test_another_stage_that_loses_its_gpu_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(_: Config) -> Termination:
        raise ECC

    log = tmp_path / "termination-log"
    monkeypatch.setenv("PITON_TERMINATION_LOG", str(log))
    with pytest.raises(DeviceLost) as end:
        stage.run(work)
    assert end.value.code == 83
    words = Termination.from_json(log.read_text())
    assert words is not None
    assert words.outcome is Outcome.DEVICE_LOST


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA shows of a machine with two."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("asked", [None, 0, 1, 2])
def test_a_container_with_the_gpus_that_were_asked_for_begins(asked: int | None) -> None:
    require_gpus(asked)


@pytest.mark.usefixtures("two_gpus")
def test_a_container_with_fewer_gpus_than_asked_for_ends_before_it_waits_for_its_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it waits for its peers")

    monkeypatch.setattr("piton_trainer.training.session.Ranks.join", fail)
    log = tmp_path / "termination-log"
    monkeypatch.setenv("PITON_GPUS", "8")
    monkeypatch.setenv("PITON_CHECKPOINT_DIR", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("PITON_TERMINATION_LOG", str(log))
    with pytest.raises(DeviceLost, match="6 of 8 GPUs are missing: CUDA sees 2"), piton_trainer.session():
        pass
    words = Termination.from_json(log.read_text())
    assert words is not None
    assert words.outcome is Outcome.DEVICE_LOST
    assert names_own_broken_device(words.detail)


@pytest.mark.usefixtures("two_gpus")
def test_whoever_chooses_the_devices_of_a_process_may_choose_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    require_gpus(8)


@pytest.mark.parametrize("has_driver", [True, False])
def test_a_container_without_any_driver_trains_on_the_cpu_and_says_so(
    has_driver: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A node of a test cluster only says that it has GPUs. One with a driver that shows none is broken."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device_faults, "DRIVER", tmp_path / "nvidiactl")
    if has_driver:
        device_faults.DRIVER.touch()
        with pytest.raises(DeviceLost, match="8 of 8 GPUs are missing: CUDA sees 0"):
            require_gpus(8)
        return
    require_gpus(8)
    assert "it trains on the CPU" in caplog.text


def test_a_torch_without_cuda_has_lost_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    require_gpus(8)


def train(directory: Path, *, at: dict[int, tiny.Event]) -> tiny.Ran:
    """One of two ranks of a pod, which share a termination message; what happens, happens on rank 1."""
    rank = int(os.environ["RANK"])
    return tiny.train(directory, at=at if rank == 1 else {}, termination_log=directory / "termination-log")


def kill(_: piton_trainer.Session) -> None:
    signal.raise_signal(signal.SIGKILL)


def crash(_: piton_trainer.Session) -> None:
    raise ZeroDivisionError("a bug")


def test_a_rank_whose_peer_is_gone_without_a_word_says_that_it_has_lost_it(tmp_path: Path) -> None:
    first, second = ranks.run(2, partial(train, tmp_path, at={7: kill}))
    assert (second.code, first.result.code) == (-signal.SIGKILL, 83)
    words = Termination.from_json((tmp_path / "termination-log").read_text())
    assert words is not None
    assert words.outcome is Outcome.DEVICE_LOST
    assert "by peer" in words.detail


def test_of_the_ranks_of_a_pod_the_first_that_fails_is_believed(tmp_path: Path) -> None:
    first, second = ranks.run(2, partial(train, tmp_path, at={7: crash}))
    assert (second.code, first.result.code) == (1, 83)
    words = Termination.from_json((tmp_path / "termination-log").read_text())
    assert words is not None
    assert (words.outcome, words.detail) == (Outcome.FAILED, "ZeroDivisionError: a bug")


def test_a_lost_device_is_told_by_whichever_rank_loses_it(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    first, second = (
        TerminationLog(log, piton_trainer.runtime.process_group.Ranks(local_rank=rank)) for rank in range(2)
    )
    second.leave(Termination(outcome=Outcome.DEVICE_LOST, detail="mine"))
    first.leave(Termination(outcome=Outcome.DEVICE_LOST, detail="the other's is gone"))
    words = Termination.from_json(log.read_text())
    assert words is not None
    assert words.detail == "mine"
