"""Two ranks act as one: they save, stop, fail and resume together."""

import json
import os
import shutil
import signal
import threading
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import piton_trainer
from piton.contract import names
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.load.loader import newest_good
from piton_trainer.checkpoint.save.async_save import AsyncCheckpointer
from piton_trainer.errors import BadConfig
from piton_trainer.runtime.process_group import Ranks
from support import ranks, tiny
from support.disks import FullDisk


def on_rank(rank: int, event: tiny.Event) -> tiny.Event:
    def only_there(session: piton_trainer.Session) -> None:
        if session.rank == rank:
            event(session)

    return only_there


def digests(exits: list[ranks.Exit]) -> set[str]:
    return {exit_.result.digest() for exit_ in exits}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[ranks.Exit]:
    directory = tmp_path_factory.mktemp("whole")
    return ranks.run(2, partial(tiny.train, directory))


@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_rank_stops_both_at_one_step_and_nothing_is_lost(
    told: int, whole: list[ranks.Exit], tmp_path: Path
) -> None:
    stopped = ranks.run(2, partial(tiny.train, tmp_path, at={7: on_rank(told, tiny.terminate)}))
    resumed = ranks.run(2, partial(tiny.train, tmp_path, seed=9))
    assert [e.result.code for e in stopped] == [143, 143]
    assert [e.result.resumed_from for e in resumed] == [7, 7]
    for rank in range(2):
        assert stopped[rank].result.losses | resumed[rank].result.losses == whole[rank].result.losses
    assert digests(resumed) == digests(whole)


def test_a_rank_that_is_killed_costs_at_most_one_interval(whole: list[ranks.Exit], tmp_path: Path) -> None:
    def kill(_: piton_trainer.Session) -> None:
        signal.raise_signal(signal.SIGKILL)

    killed = ranks.run(2, partial(tiny.train, tmp_path, at={7: on_rank(1, kill)}))
    assert [e.code for e in killed][1] == -signal.SIGKILL
    assert killed[0].result.code == 83
    resumed = ranks.run(2, partial(tiny.train, tmp_path, seed=9))
    assert [e.result.resumed_from for e in resumed] == [4, 4]
    assert digests(resumed) == digests(whole)


def test_a_full_disk_on_one_rank_ends_both(tmp_path: Path) -> None:
    def train() -> tiny.Ran:
        full = os.environ["RANK"] == "1"
        return tiny.train(tmp_path, disk=FullDisk(step=8, file="shard") if full else None)

    ends = ranks.run(2, train)
    assert [e.result.code for e in ends] == [80, 80]
    assert [step for step, _ in layout.step_folders(tmp_path)] == [4]


def test_rank_0_may_take_longer_than_a_collective_and_its_failure_is_everybodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dist, "new_group", partial(dist.new_group, timeout=timedelta(seconds=5)))

    def wait_and(say: Any) -> Any:
        threading.Event().wait(7)
        return say()

    def refuse() -> str:
        raise BadConfig("it cannot be")

    def body() -> tuple[str, str]:
        joined = Ranks.join()
        said = joined.await_main(partial(wait_and, lambda: f"by rank {joined.rank}"))
        with pytest.raises(BadConfig) as caught:
            joined.await_main(refuse)
        joined.leave()
        return said, str(caught.value)

    assert [end.result for end in ranks.run(2, body)] == [("by rank 0", "it cannot be")] * 2


def test_all_ranks_hear_at_once_that_rank_0_is_done_also_when_one_of_them_is_late() -> None:
    def body() -> tuple[str, list[int]]:
        joined = Ranks.join()
        if joined.rank == 1:
            threading.Event().wait(3)

        def work() -> str:
            threading.Event().wait(2)  # rank 0 has said by then that it is not done, which rank 1 has yet to hear
            return "done"

        heard = joined.await_main(work), joined.gather(joined.rank)
        joined.leave()
        return heard

    assert [end.result for end in ranks.run(2, body)] == [("done", [0, 1])] * 2


class Moody:
    """An object that has no state to give on rank 1."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def state_dict(self) -> dict[str, Any]:
        if self.rank == 1:
            raise OSError("no state today")
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("nothing was saved")


def test_state_that_cannot_be_saved_on_one_rank_fails_both(tmp_path: Path) -> None:
    def train() -> str:
        try:
            with piton_trainer.session(tiny.config(tmp_path)) as session:
                session.restore(model=tiny.build(), moody=Moody(session.rank))
                list(session.steps([0]))
        except (OSError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return "saved"

    ends = ranks.run(2, train)
    assert [e.result for e in ends] == [
        "RuntimeError: rank 1 failed with OSError: no state today",
        "OSError: no state today",
    ]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_ranks(before: int, after: int, tmp_path: Path) -> None:
    stopped = ranks.run(before, partial(tiny.train, tmp_path, at={7: tiny.terminate}))
    resumed = ranks.run(after, partial(tiny.train, tmp_path, seed=9))
    again = ranks.run(after, partial(tiny.train, tmp_path, seed=10))
    assert [e.result.code for e in stopped] == [143] * before
    assert all(sorted(e.result.losses) == list(range(8, tiny.STEPS + 1)) for e in resumed)
    assert len(digests(resumed) | digests(again)) == 1


def test_a_rank_that_did_not_exist_gets_the_same_random_numbers_each_time(tmp_path: Path) -> None:
    ranks.run(1, partial(tiny.train, tmp_path, at={7: tiny.terminate}))
    saved = tmp_path / "saved"
    shutil.copytree(tmp_path / names.step_folder(7), saved / names.step_folder(7))
    first = ranks.run(2, partial(tiny.train, tmp_path, seed=9))
    second = ranks.run(2, partial(tiny.train, saved, seed=10))
    assert digests(first) == digests(second)
    assert first[1].result.losses == second[1].result.losses
    assert first[0].result.losses != first[1].result.losses


def test_each_file_is_verified_by_one_of_the_ranks(tmp_path: Path) -> None:
    ranks.run(2, partial(tiny.train, tmp_path, at={7: tiny.terminate}))
    folder = tmp_path / names.step_folder(7)
    files = [path for path in folder.iterdir() if path.name != names.MANIFEST_FILE]
    assert {"__0_0.distcp", "__1_0.distcp"} < {path.name for path in files}
    for path in files:
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        chosen = ranks.run(2, partial(chosen_step, tmp_path))
        path.write_bytes(data)
        assert [e.result for e in chosen] == [4, 4]
    assert [e.result for e in ranks.run(2, partial(chosen_step, tmp_path))] == [7, 7]


def chosen_step(directory: Path) -> int | None:
    world = Ranks.join()
    checkpoint = newest_good(directory, world)
    world.leave()
    return None if checkpoint is None else checkpoint.manifest.step


def train_sharded(directory: Path, *, steps: int) -> tuple[dict[str, list[float]], list[float]]:
    """FSDP2 over however many ranks there are; the whole momenta of the first layer, and COMPLETE.json's digest."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
    with piton_trainer.session(tiny.config(directory)) as session:
        if session.world_size > 1:
            fully_shard(model, mesh=init_device_mesh("cpu", (session.world_size,)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        session.restore(model=model, optimizer=optimizer)
        losses = []
        for x in session.steps([torch.ones(2, 3)], total=steps):
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        momenta = {}
        for number, state in enumerate(optimizer.state.values()):
            value = state["exp_avg"]
            momenta[str(number)] = (value.full_tensor() if hasattr(value, "full_tensor") else value).flatten().tolist()
    return momenta, losses


def test_shards_of_two_ranks_are_loaded_by_one(tmp_path: Path) -> None:
    """Sharded weights and momenta are whole again in a world of one, to the last bit."""
    sharded = ranks.run(2, partial(train_sharded, tmp_path, steps=3))
    digest = json.loads((tmp_path / names.COMPLETE_FILE).read_text())["weightsDigest"]
    alone = ranks.run(1, partial(train_sharded, tmp_path, steps=3))
    assert [e.code for e in [*sharded, *alone]] == [0, 0, 0]
    assert alone[0].result == (sharded[0].result[0], [])
    assert json.loads((tmp_path / names.COMPLETE_FILE).read_text())["weightsDigest"] == digest


def test_the_whole_weights_of_one_rank_are_sharded_over_two(tmp_path: Path) -> None:
    alone = ranks.run(1, partial(train_sharded, tmp_path, steps=3))
    digest = json.loads((tmp_path / names.COMPLETE_FILE).read_text())["weightsDigest"]
    sharded = ranks.run(2, partial(train_sharded, tmp_path, steps=3))
    assert [e.result for e in sharded] == [(alone[0].result[0], [])] * 2
    assert json.loads((tmp_path / names.COMPLETE_FILE).read_text())["weightsDigest"] == digest


def test_ranks_whose_loaders_differ_in_length_are_told(tmp_path: Path) -> None:
    def train() -> str:
        try:
            with piton_trainer.session(tiny.config(tmp_path)) as session:
                session.restore(model=tiny.build())
                list(session.steps([0] * (1 + session.rank)))
        except ValueError as error:
            return str(error)
        return "trained"

    complaint = "the ranks have loaders of different lengths; give each the same number of batches"
    assert [e.result for e in ranks.run(2, train)] == [complaint] * 2


def collective_seconds(directory: Path) -> float:
    """How long the collectives of training wait for a rank, in a session as the environment describes it."""
    os.environ[names.ENV_CHECKPOINT_DIR] = str(directory)
    with piton_trainer.session():
        group = torch.distributed.distributed_c10d._get_default_group()
        return float(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())


def test_training_waits_ten_minutes_for_a_rank_that_does_not_come_or_as_long_as_it_is_told(tmp_path: Path) -> None:
    assert [e.result for e in ranks.run(2, partial(collective_seconds, tmp_path))] == [600.0] * 2
    told = ranks.run(2, partial(collective_seconds, tmp_path), **{names.ENV_COLLECTIVE_SECONDS: "90"})
    assert [e.result for e in told] == [90.0] * 2


def exchanges_of_steps(directory: Path) -> dict[int, int]:
    """Count the exchanges at each boundary. From step 4 to 8 a save is in flight, as the writers are stopped."""
    counted, total = dict[int, int](), 0
    agree = Ranks.agree

    def count(world: Ranks, values: Any) -> list[float]:
        nonlocal total
        total += 1
        return agree(world, values)

    def note(session: piton_trainer.Session) -> None:
        nonlocal total
        counted[session.step], total = total, 0
        assert session._services.store is not None
        saver = session._services.store._checkpointer
        assert isinstance(saver, AsyncCheckpointer)
        if session.step + 1 in (4, 8):
            assert saver._writer.pid is not None
            os.kill(saver._writer.pid, signal.SIGSTOP if session.step + 1 == 4 else signal.SIGCONT)
        assert saver.in_flight is (4 <= session.step < 8) or session.step >= 8

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "agree", count)
        tiny.train(
            directory,
            assignment=tiny.every(4),
            at=dict.fromkeys(range(1, tiny.STEPS + 1), note),
            background_saves=True,
        )
    return counted


def test_the_ranks_exchange_once_per_step_also_while_a_save_is_in_flight(tmp_path: Path) -> None:
    for end in ranks.run(2, partial(exchanges_of_steps, tmp_path)):
        assert [end.result[step] for step in (2, 3, 5, 6, 7)] == [1] * 5, end.result
