import json
import signal
import sys
from pathlib import Path

import pytest
from torchx import specs

from local.helpers import eventually, fake_parts, spec_of, train
from piton.api.status_base import Phase
from piton.contract import names
from piton.local import environment, processes
from piton.local.run_folder import RunFolder

SHOW = (
    "import json, os, sys; print(json.dumps({'env': dict(os.environ), 'args': sys.argv[1:], 'in': sys.stdin.read()}))"
)


def an_app(tmp_path: Path, *command: str, replicas: int = 1, gpus: int = 0, **env: str) -> specs.AppDef:
    entrypoint, *args = command
    role = specs.Role(
        name="trainer",
        image="none",
        entrypoint=entrypoint,
        args=[processes.literal(argument) for argument in args],
        env={names.ENV_TERMINATION_LOG: f"{tmp_path}/termination-${{replica_id}}.json", **env},
        num_replicas=replicas,
        resource=specs.Resource(cpu=-1, gpu=gpus, memMB=-1),
    )
    return specs.AppDef(name="fake-1", roles=[role])


def ended(replicas: tuple[processes.Replica, ...]) -> list[int]:
    eventually(lambda: all(replica.exit_code is not None for replica in replicas))
    return [replica.exit_code for replica in replicas if replica.exit_code is not None]


def test_each_replica_gets_its_rank_its_devices_and_its_arguments_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "7")
    app = an_app(tmp_path, "python", "-c", SHOW, "$HOME ${replica_id} $$", replicas=2, gpus=2, RANK="${replica_id}")
    replicas = processes.start(app, logs=tmp_path / "logs", devices=["4", "5", "6", "7"])

    assert ended(replicas) == [0, 0]
    shown = [json.loads(replica.log.read_text()) for replica in replicas]
    assert [one["env"]["RANK"] for one in shown] == ["0", "1"]
    assert [one["env"]["CUDA_VISIBLE_DEVICES"] for one in shown] == ["4,5", "6,7"]
    assert [one["args"] for one in shown] == [["$HOME ${replica_id} $$"]] * 2
    assert all("LOCAL_RANK" not in one["env"] and one["in"] == "" for one in shown)


def test_python_is_this_interpreter(tmp_path: Path) -> None:
    (replica,) = processes.start(
        an_app(tmp_path, "python", "-c", "import sys; print(sys.prefix)"), logs=tmp_path / "logs", devices=[]
    )

    assert ended((replica,)) == [0]
    assert replica.log.read_text().strip() == sys.prefix


def test_an_exit_code_reads_like_a_shells(tmp_path: Path) -> None:
    endless = an_app(tmp_path, "python", "-c", "while True: pass", replicas=2)
    replicas = processes.start(endless, logs=tmp_path / "logs", devices=[])
    replicas[0].terminate()
    processes.kill(replicas[1:])

    assert ended(replicas) == [143, 137]


def test_the_scheduler_leaves_our_signals_alone(tmp_path: Path) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    replicas = processes.start(an_app(tmp_path, "true"), logs=tmp_path / "logs", devices=[])

    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
    assert ended(replicas) == [0]


def test_a_program_that_is_not_there_leaves_nothing_running(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        processes.start(an_app(tmp_path, "no-such-program"), logs=tmp_path / "logs", devices=[])


def test_a_trainer_finds_what_the_controller_of_a_cluster_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cr$t")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv(names.ENV_INDUCTOR_CACHE, raising=False)
    monkeypatch.setenv(names.ENV_TRITON_CACHE, "/scratch/$me")
    secret = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    plain = {"name": "GREETING", "value": "$HOME"}
    parts = fake_parts()
    parts["trainer"] = {"image": "none", "command": ["python", "-c", SHOW], "env": [secret, plain]}
    ending, _ = train(tmp_path / "ru$n", spec=spec_of(parts))

    assert ending.summary.phase == Phase.SUCCEEDED
    folder = RunFolder(tmp_path / "ru$n")
    env = json.loads((folder.root / "logs/attempt-1/trainer-0/output.log").read_text())["env"]
    assert (env["WORLD_SIZE"], env["RANK"], env["MASTER_ADDR"]) == ("1", "0", "127.0.0.1")
    assert (env["PET_NNODES"], env["PET_NODE_RANK"], env["PET_NPROC_PER_NODE"]) == ("1", "0", "1")
    assert env["MASTER_PORT"] == env["PET_MASTER_PORT"]
    assert (env["HF_TOKEN"], env["GREETING"]) == ("s3cr$t", "$HOME")
    assert env[names.ENV_CHECKPOINT_DIR] == str(folder.checkpoints)
    assert env[names.ENV_TERMINATION_LOG] == str(folder.attempt(1) / "termination-0.json")
    assert int(env["OMP_NUM_THREADS"]) >= 1
    assert env[names.ENV_INDUCTOR_CACHE] == str(folder.checkpoints / ".cache/inductor")
    assert env[names.ENV_TRITON_CACHE] == "/scratch/$me"
    assert "s3cr$t" not in (folder.root / "state.json").read_text()


def test_a_secret_that_is_nowhere_is_told_with_the_fix() -> None:
    spec = spec_of(
        {"trainer": {"image": "none", "command": ["true"], "env": [
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]}}
    )  # fmt: skip

    with pytest.raises(ValueError, match=r"HF_TOKEN .* say export HF_TOKEN="):
        environment.secrets(spec, {})
