"""A checkpoint is loaded in one pass: each file read once, verified by somebody, and nothing in use changed before."""

import errno
import fcntl
import hashlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import piton_trainer
from piton.contract.manifest import FileEntry
from piton_trainer.checkpoint import Snapshot
from piton_trainer.checkpoint.format import archive, layout
from piton_trainer.checkpoint.format.file_digest import digest_of
from piton_trainer.checkpoint.format.retry import Retry
from piton_trainer.checkpoint.load import rank_loader, readahead, reader
from piton_trainer.checkpoint.load.loader import load_newest, newest_step
from piton_trainer.checkpoint.load.rank_loader import Targets
from piton_trainer.checkpoint.load.reader import ReadJob, ReadTarget
from piton_trainer.checkpoint.load.sharing import read_by_neighbours, share_out
from piton_trainer.errors import VolumeLost
from piton_trainer.runtime.process_group import Ranks
from support import ranks, tiny
from support.checkpoints import checkpointer, flip
from support.clocks import FakeClock

OLDER, NEWER = 1, 2
KEYS = [f"tensor{number}" for number in range(6)]


def state(step: int) -> dict[str, Tensor]:
    """Six tensors, no two alike."""
    torch.manual_seed(step)
    return {key: torch.randn(70 + number, 30) for number, key in enumerate(KEYS)}


def save(directory: Path, snapshots: list[Snapshot], *, world: Ranks | None = None, background: bool = False) -> None:
    with checkpointer(directory, world=world, background=background, keep_last=9) as saver:
        for snapshot in snapshots:
            saver.save(snapshot)
        saver.wait()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good checkpoints, of several files each."""
    path = tmp_path_factory.mktemp("checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "_FILE_BYTES", 8192)
        save(path, [Snapshot(step=step, tensors=state(step)) for step in (OLDER, NEWER)], background=True)
    return path


def load(directory: Path, live: dict[str, Tensor], *, fresh: list[str] | None = None) -> tuple[int, dict[str, Tensor]]:
    loaded = load_newest(directory, Ranks(), lambda _: Targets(live=live, fresh=dict.fromkeys(fresh or [])))
    assert loaded is not None
    return loaded.checkpoint.manifest.step, dict(loaded.settle())


def assert_is(found: dict[str, Tensor], step: int) -> None:
    assert sorted(found) == KEYS
    assert all(torch.equal(found[key], value) for key, value in state(step).items())


@pytest.mark.parametrize("room", [None, 0], ids=["aside", "in place"])
def test_a_flipped_bit_in_any_file_is_found_on_the_way_and_the_older_one_comes_back_to_the_last_bit(
    room: int | None, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if room is not None:
        monkeypatch.setattr(rank_loader, "free_bytes", lambda: room)
    folder = layout.step_folders(directory)[0][1]
    files = sorted(layout.read_manifest(folder).files)
    assert len(files) == 2 + len(KEYS)
    for name in files:
        size = (folder / name).stat().st_size
        for position in (0, size // 2, size - 1):
            flip(folder / name, position)
            live = {key: torch.full_like(value, 7) for key, value in state(0).items() if key in KEYS[:3]}
            step, found = load(directory, live, fresh=KEYS[3:])
            assert (name, position, step) == (name, position, OLDER)
            assert_is(found, OLDER)
            assert all(found[key] is live[key] for key in live)
            flip(folder / name, position)
    assert_is(load(directory, {}, fresh=KEYS)[1], NEWER)


@pytest.mark.parametrize("room", [None, 0], ids=["aside", "in place"])
def test_tensors_in_use_keep_their_numbers_when_no_checkpoint_is_good(
    room: int | None, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if room is not None:
        monkeypatch.setattr(rank_loader, "free_bytes", lambda: room)
    last = [max(folder.glob("*.distcp")) for _, folder in layout.step_folders(directory)]
    for path in last:
        flip(path, path.stat().st_size - 1)
    live = {key: torch.full_like(value, 7) for key, value in state(0).items()}
    assert load_newest(directory, Ranks(), lambda _: Targets(live=live)) is None
    assert all((value == 7).all() for value in live.values())
    for path in last:
        flip(path, path.stat().st_size - 1)


def test_tensors_in_use_keep_their_numbers_until_they_are_settled(directory: Path) -> None:
    live = {key: torch.full_like(value, 7) for key, value in state(0).items()}
    loaded = load_newest(directory, Ranks(), lambda _: Targets(live=live))
    assert loaded is not None
    assert all((value == 7).all() for value in live.values())
    loaded.settle()
    assert_is(live, NEWER)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda like: torch.empty_like(like, dtype=torch.float64), id="of another type"),
        pytest.param(lambda like: torch.empty(like.shape[::-1]).t(), id="in columns"),
        pytest.param(lambda like: torch.empty(100, 100)[: like.shape[0], 3:33], id="part of a larger one"),
    ],
)
def test_tensors_of_another_make_are_filled_all_the_same(make: Callable[[Tensor], Tensor], directory: Path) -> None:
    live = {key: make(value) for key, value in state(0).items()}
    load(directory, live)
    assert all(torch.equal(live[key].float(), value) for key, value in state(NEWER).items())


def test_an_archive_with_its_numbers_in_another_order_is_left_to_torch(tmp_path: Path) -> None:
    turned = {key: value.t() for key, value in state(NEWER).items()}
    save(tmp_path, [Snapshot(step=NEWER, tensors=turned)])
    live = {KEYS[0]: torch.zeros(30, 70)}
    _, found = load(tmp_path, live, fresh=KEYS[1:])
    assert all(torch.equal(found[key], value) for key, value in turned.items())


def test_the_newest_step_is_the_newest_that_is_whole_as_far_as_sizes_tell(directory: Path) -> None:
    assert newest_step(directory) == NEWER
    state_file = layout.step_folders(directory)[0][1] / layout.STATE_FILE
    text = state_file.read_text()
    state_file.write_text(text + " ")
    assert newest_step(directory) == OLDER
    state_file.write_text(text)


def peak_of_loading(directory: Path, *, in_place: bool) -> tuple[int, int]:
    """How much memory loading took beside the tensors themselves, in a process of its own; and their size."""
    live = {f"tensor{n}": torch.ones(1 << 20) for n in range(12)}
    if in_place:
        rank_loader.free_bytes = lambda: 0  # type: ignore[attr-defined]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory_of("VmRSS")
    load(directory, live)
    assert all(float(value[0]) == n for n, value in enumerate(live.values()))
    return memory_of("VmHWM") - before, sum(value.nbytes for value in live.values())


def memory_of(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def test_loading_takes_no_more_memory_than_is_kept_aside_and_without_room_hardly_any(tmp_path: Path) -> None:
    tensors = {f"tensor{n}": torch.full((1 << 20,), float(n)) for n in range(12)}
    save(tmp_path, [Snapshot(step=1, tensors=tensors)])
    a_third = 16 << 20
    [aside] = ranks.run(1, partial(peak_of_loading, tmp_path, in_place=False))
    [in_place] = ranks.run(1, partial(peak_of_loading, tmp_path, in_place=True))
    assert aside.result[0] < aside.result[1] + a_third
    assert in_place.result[0] < a_third


def in_a_world(directory: Path, action: Callable[[Ranks], Any]) -> Any:
    world = Ranks.join()
    try:
        return action(world)
    finally:
        world.leave()


def sharded(step: int, world: Ranks, dim: int) -> dict[str, Tensor]:
    mesh = init_device_mesh("cpu", (world.world_size,))
    return {key: distribute_tensor(value, mesh, [Shard(dim)]) for key, value in state(step).items()}


def save_sharded(directory: Path, world: Ranks) -> None:
    save(directory, [Snapshot(step=step, tensors=sharded(step, world, 0)) for step in (OLDER, NEWER)], world=world)


def load_sharded(directory: Path, dim: int, world: Ranks) -> tuple[int | None, bool, list[tuple[str, bool]]]:
    """The step, whether the numbers are right (or, without a step, untouched), and which files were read and how."""
    read: list[tuple[str, bool]] = []

    def record(folder: Path, jobs: Iterable[ReadJob], retry: Retry) -> str | None:
        jobs = list(jobs)
        read.extend((job.name, job.is_verified) for job in jobs)
        return reader.read_files(folder, jobs, retry)

    rank_loader.read_files = record  # type: ignore[attr-defined]
    live = sharded(0, world, dim)
    loaded = load_newest(directory, world, lambda _: Targets(live=live))
    step = None if loaded is None else loaded.checkpoint.manifest.step
    if loaded is not None:
        loaded.settle()
    is_right = all(torch.equal(whole(live[key]), value) for key, value in state(step or 0).items())
    return step, is_right, sorted(set(read))


def whole(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor()


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sharded")
    ends = ranks.run(2, partial(in_a_world, path, partial(save_sharded, path)))
    assert [end.code for end in ends] == [0, 0]
    return path


def test_each_rank_reads_what_it_needs_and_each_file_is_verified_once(of_two_ranks: Path) -> None:
    rows = ranks.run(2, partial(in_a_world, of_two_ranks, partial(load_sharded, of_two_ranks, 0)))
    assert [end.result for end in rows] == [
        (NEWER, True, [("__0_0.distcp", True)]),
        (NEWER, True, [("__1_0.distcp", True)]),
    ]
    columns = ranks.run(2, partial(in_a_world, of_two_ranks, partial(load_sharded, of_two_ranks, 1)))
    assert [end.result for end in columns] == [
        (NEWER, True, [("__0_0.distcp", True), ("__1_0.distcp", False)]),
        (NEWER, True, [("__0_0.distcp", False), ("__1_0.distcp", True)]),
    ]


def test_what_one_rank_finds_wrong_sends_all_ranks_to_the_older_one_or_leaves_all_untouched(of_two_ranks: Path) -> None:
    load_rows = partial(in_a_world, of_two_ranks, partial(load_sharded, of_two_ranks, 0))
    damaged = [folder / "__1_0.distcp" for _, folder in layout.step_folders(of_two_ranks)]
    flip(damaged[0], 5000)
    assert [end.result[:2] for end in ranks.run(2, load_rows)] == [(OLDER, True)] * 2
    flip(damaged[1], 5000)
    assert [end.result[:2] for end in ranks.run(2, load_rows)] == [(None, True)] * 2
    for path in damaged:
        flip(path, 5000)


def resume_sharded(directory: Path, *, allow_fresh_start: bool = False) -> tuple[bool, int]:
    """Whether weights and random numbers are as they were built, and how much state the optimizer has."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    with piton_trainer.session(tiny.config(directory, allow_fresh_start=allow_fresh_start)) as session:
        if session.world_size > 1:
            fully_shard(model, mesh=init_device_mesh("cpu", (session.world_size,)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        before = {name: local(value).clone() for name, value in model.state_dict().items()}
        drawn = torch.get_rng_state()
        assert session.restore(model=model, optimizer=optimizer) is None
        same = all(torch.equal(local(value), before[name]) for name, value in model.state_dict().items())
        untouched = same and torch.equal(torch.get_rng_state(), drawn)
        stateful = len(optimizer.state)
        for x in session.steps([torch.ones(2, 4)], total=3):
            model(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return untouched, stateful


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def test_objects_are_as_they_were_built_when_no_checkpoint_is_good(tmp_path: Path) -> None:
    assert resume_sharded(tmp_path) == (True, 0)
    for _, folder in layout.step_folders(tmp_path):
        flip(folder / "__0_0.distcp", 1500)
    assert resume_sharded(tmp_path, allow_fresh_start=True) == (True, 0)


def test_sharded_objects_are_as_they_were_built_when_no_checkpoint_is_good(tmp_path: Path) -> None:
    """torch makes an optimizer take an empty step to learn how its momenta are sharded; nobody must notice."""
    assert [end.result for end in ranks.run(2, partial(resume_sharded, tmp_path))] == [(True, 0)] * 2
    for _, folder in layout.step_folders(tmp_path):
        flip(folder / "__0_0.distcp", 1500)
    again = partial(resume_sharded, tmp_path, allow_fresh_start=True)
    assert [end.result for end in ranks.run(2, again)] == [(True, 0)] * 2


def bytes_from_the_disk(directory: Path) -> int:
    """How much this rank reads from the disk to load all of a checkpoint."""
    return in_a_world(directory, partial(_read_from_disk, directory))  # type: ignore[no-any-return]


def _read_from_disk(directory: Path, world: Ranks) -> int:
    if world.is_main:
        forget_pages(directory)
    world.gather(None)
    before = storage_bytes()
    live = {"large": torch.zeros(LARGE)}
    loaded = load_newest(directory, world, lambda _: Targets(live=live))
    assert loaded is not None
    loaded.settle()
    assert bool((live["large"] == 3).all())
    return storage_bytes() - before


def forget_pages(directory: Path) -> None:
    """As on a node that has not seen the files yet."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def storage_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


LARGE = 12 << 20


def test_the_ranks_of_a_node_read_from_the_disk_what_all_of_them_need_only_once(tmp_path: Path) -> None:
    save(tmp_path, [Snapshot(step=NEWER, tensors={"large": torch.full((LARGE,), 3.0)})])
    size = LARGE * 4
    [alone] = ranks.run(1, partial(bytes_from_the_disk, tmp_path))
    if alone.result < size:
        pytest.skip(f"{tmp_path} is not on a disk whose reads the kernel counts")
    together = ranks.run(4, partial(bytes_from_the_disk, tmp_path), LOCAL_WORLD_SIZE="4")
    assert size <= sum(end.result for end in together) < 1.3 * size
    # Each on a node of its own: everybody reads everything.
    apart = ranks.run(4, partial(bytes_from_the_disk, tmp_path), LOCAL_WORLD_SIZE="1")
    assert sum(end.result for end in apart) > 2.5 * size


def test_what_neighbours_on_a_node_read_as_well_is_known() -> None:
    needs = [{"a": 1}, {"a": 1, "b": 1}, {"a": 1}, {}]
    shares: list[set[str]] = [{"a"}, {"b"}, set(), {"c"}]
    assert [read_by_neighbours(needs, shares, rank, per_node=2) for rank in range(4)] == [
        {"a", "b"},
        {"a"},
        {"c"},
        {"a"},
    ]


def test_files_are_shared_out_to_those_who_need_them_and_evenly() -> None:
    sizes = {"a": 100, "b": 100, "c": 60, "d": 50}
    assert share_out(sizes, [{}]) == [{"a", "b", "c", "d"}]
    assert share_out(sizes, [{}, {}]) == [{"a", "c"}, {"b", "d"}]
    assert share_out(sizes, [{"b": 100}, {"a": 100}]) == [{"b", "c"}, {"a", "d"}]
    assert share_out(sizes, [sizes, sizes]) == [{"a", "c"}, {"b", "d"}]
    assert share_out(sizes, [{"a": 1}, {}]) == [{"a", "c"}, {"b", "d"}]


SIZE = 3 * reader.CHUNK_BYTES + 777


@pytest.fixture(params=["blake3", "sha256"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bytes, FileEntry]:
    data = os.urandom(SIZE)
    path = tmp_path / "file"
    path.write_bytes(data)
    digest = digest_of(data) if request.param == "blake3" else f"sha256:{hashlib.sha256(data).hexdigest()}"
    return path, data, FileEntry(size=SIZE, digest=digest)


def stretches(*places: tuple[int, int]) -> deque[ReadTarget]:
    return deque(ReadTarget(start=start, into=torch.zeros(size, dtype=torch.uint8)) for start, size in places)


PLACES = [(0, 1), (5, 4096), (reader.CHUNK_BYTES - 10, 20), (reader.CHUNK_BYTES + 3000, 1 << 20), (SIZE - 100, 100)]


@pytest.mark.parametrize("cached", ["nothing", "all", "every other chunk"])
@pytest.mark.parametrize("verified", [True, False])
def test_stretches_of_a_file_land_where_they_should(
    verified: bool, cached: str, file: tuple[Path, bytes, FileEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"nothing": 0, "all": 1, "every other chunk": 2}[cached]

    def is_cached(_: object, position: int, size: int) -> bool:
        return every > 0 and position // reader.CHUNK_BYTES % every == 0

    monkeypatch.setattr(reader._Source, "_is_cached", is_cached)
    path, data, entry = file
    landings = stretches(*PLACES)
    kept = list(landings)
    job = ReadJob(name="file", entry=entry, is_verified=verified, landings=landings)
    assert reader.read_files(path.parent, [job], Retry(FakeClock())) is None
    assert all(bytes(landing.into.tolist()) == data[landing.start : landing.end] for landing in kept)
    assert not landings


def test_a_disk_that_refuses_a_read_past_the_cache_is_read_the_ordinary_way(
    file: tuple[Path, bytes, FileEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data, entry = file
    read = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], position: int) -> int:
        if os.O_DIRECT & fcntl.fcntl(descriptor, fcntl.F_GETFL):
            raise OSError(errno.EINVAL, "not here")
        return read(descriptor, [buffers[0][:1000]], position)

    monkeypatch.setattr(os, "preadv", preadv)
    landings = stretches((100, SIZE - 100))
    into = landings[0].into
    assert (
        reader.read_files(
            path.parent, [ReadJob(name="file", entry=entry, is_verified=True, landings=landings)], Retry(FakeClock())
        )
        is None
    )
    assert bytes(into.numpy()) == data[100:]


def test_of_a_file_that_another_rank_verifies_only_what_is_needed_is_read(
    file: tuple[Path, bytes, FileEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data, entry = file
    read, counts = os.preadv, list[int]()

    def preadv(descriptor: int, buffers: list[memoryview], position: int) -> int:
        counts.append(read(descriptor, buffers, position))
        return counts[-1]

    monkeypatch.setattr(os, "preadv", preadv)
    landings = stretches((2 * reader.CHUNK_BYTES + 50, 70))
    into = landings[0].into
    job = ReadJob(name="file", entry=entry, is_verified=False, landings=landings)
    assert reader.read_files(path.parent, [job], Retry(FakeClock())) is None
    assert bytes(into.numpy()) == data[2 * reader.CHUNK_BYTES + 50 :][:70]
    assert sum(counts) <= reader.CHUNK_BYTES


@pytest.mark.parametrize("code", [errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.EAGAIN, None])
def test_a_file_that_can_be_read_later_is_read_then_by_a_new_descriptor(
    code: int | None, file: tuple[Path, bytes, FileEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data, entry = file
    read, failures, opened = os.preadv, iter(range(5)), list[int]()

    def preadv(descriptor: int, buffers: list[memoryview], position: int) -> int:
        opened.append(descriptor)
        if position == 0 or next(failures, None) is None:
            return read(descriptor, buffers, position)
        if code is None:
            return 0  # as at the end of the file
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", preadv)
    landings, clock = stretches((0, SIZE)), FakeClock()
    into = landings[0].into
    job = ReadJob(name="file", entry=entry, is_verified=True, landings=landings)
    assert reader.read_files(path.parent, [job], Retry(clock)) is None
    assert bytes(into.numpy()) == data
    assert clock.monotonic() > 0


def test_a_file_that_cannot_be_read_for_minutes_is_no_damaged_file(
    file: tuple[Path, bytes, FileEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, entry = file
    job = partial(ReadJob, name="file", entry=entry, is_verified=True)
    for fails in (lambda *_: 0, partial(refuse, errno.EIO)):
        monkeypatch.setattr(os, "preadv", fails)
        with pytest.raises(VolumeLost, match=r"file could not be read for [45]m"):
            reader.read_files(path.parent, [job()], Retry(FakeClock()))


def test_a_file_that_ends_early_because_it_is_cut_off_is_damaged(
    file: tuple[Path, bytes, FileEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data, entry = file
    read = os.preadv

    def cut_off(*arguments: Any) -> int:
        path.write_bytes(data[:100])
        return read(*arguments)

    monkeypatch.setattr(os, "preadv", cut_off)
    job = ReadJob(name="file", entry=entry, is_verified=True)
    assert reader.read_files(path.parent, [job], Retry(FakeClock())) == f"file has 100 bytes instead of {SIZE}"


def refuse(code: int, *_: object) -> int:
    raise OSError(code, os.strerror(code))


def test_what_is_cached_is_known(file: tuple[Path, bytes, FileEntry]) -> None:
    path, data, entry = file
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
        assert opened.read() == data
    with closing(
        reader._Source(path, ReadJob(name="file", entry=entry, is_verified=True), Retry(FakeClock()))
    ) as source:
        source.fill(reader._buffer(), 0, 1)
        assert source._is_cached(reader.CHUNK_BYTES, reader.CHUNK_BYTES)
        assert source._is_cached(3 * reader.CHUNK_BYTES, 777)


def test_each_rank_reads_ahead_what_its_predecessor_wrote_of_the_newest_checkpoint(of_two_ranks: Path) -> None:
    newest = layout.step_folders(of_two_ranks)[0][1]
    assert [readahead.files_of(of_two_ranks, rank) for rank in (0, 1, 2)] == [
        [newest / "__0_0.distcp"],
        [newest / "__1_0.distcp"],
        [],
    ]


def test_reading_ahead_is_done_once_and_minds_no_directory_that_is_not_there(tmp_path: Path) -> None:
    readahead.begin(tmp_path / "nowhere")
    first = readahead._current
    readahead.begin(tmp_path)
    assert readahead._current is first
    readahead.stop()
    readahead.stop()
    assert readahead._current is None


def test_a_session_stops_reading_ahead(tmp_path: Path) -> None:
    with piton_trainer.session(tiny.config(tmp_path)) as session:
        assert readahead._current is not None
        session.restore(model=tiny.build())
        assert readahead._current is None


def test_a_recipe_reads_ahead_before_it_imports_torch(directory: Path) -> None:
    """In a process of its own, whose torch is a module that looks whether reading has begun."""
    code = (
        "import sys\n"
        "from piton_trainer import __main__\n"
        "from piton_trainer.checkpoint.load import readahead\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print(readahead._current is not None)\n"
        "            sys.exit()\n"
        "sys.meta_path.insert(0, Finder())\n"
        "__main__.main()\n"
    )
    env = os.environ | {"PITON_CHECKPOINT_DIR": str(directory), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True, text=True)
    assert done.stdout == "True\n"
