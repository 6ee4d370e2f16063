"""Of older checkpoints the weights stay, whatever interrupts it, and nothing resumes from them."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from torch.distributed.checkpoint import state_dict_loader

import piton_trainer
from piton.contract import names
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.retention import make_thin
from piton_trainer.checkpoint.save.commit import is_good
from piton_trainer.state.tracked_objects import EMA, MODEL
from piton_trainer.state.weights_digest import weights_digest
from support import ranks, tiny, weights
from support.faults import die_at
from support.weights import SAVED, checkpoint, digest_of, retention, thin, trained, whole

pristine, run = weights.pristine, weights.run
BOTH = pytest.mark.parametrize("background", [False, True], ids=["blocking", "background"])


@BOTH
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_keeps_the_weights_of_what_it_lets_go(background: bool, world_size: int, tmp_path: Path) -> None:
    body = partial(trained, tmp_path, background=background, keep_weights_only=2)
    assert [end.code for end in ranks.run(world_size, body)] == [0] * world_size
    # At the end the writer does not read back what it could let go then; whoever comes next does.
    retention(tmp_path, keep_last=2, keep_weights_only=2).retain(SAVED[-1])
    assert (whole(tmp_path), thin(tmp_path)) == ([15, 12], [9, 6])
    for step in (9, 6):
        folder = tmp_path / names.weights_folder(step)
        assert is_good(folder)
        others = {layout.WEIGHTS_INDEX_FILE, layout.WEIGHTS_STATE_FILE, names.WEIGHTS_FILE}
        shards = {path.name for path in folder.iterdir()} - others
        assert {name[: len("weights_0")] for name in shards} == {f"weights_{rank}" for rank in range(world_size)}
        assert layout.read_document(folder).keys() == {"train", "objects"}


@BOTH
def test_the_weights_of_a_thin_checkpoint_are_those_of_the_whole_one(background: bool, tmp_path: Path) -> None:
    directory = trained(tmp_path, background=background, keep_last=9, keep_weights_only=1)
    before = checkpoint(directory, names.step_folder(9))
    wanted = [digest_of(before, name) for name in (MODEL, EMA)]
    folder = make_thin(before, layout.Disk())
    after = checkpoint(directory, folder.name)
    assert [digest_of(after, name) for name in (MODEL, EMA)] == wanted
    assert after.manifest.metrics == before.manifest.metrics
    assert after.manifest.size < before.manifest.size / 2


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_plain_torch_reads_a_thin_checkpoint_whose_index_has_the_usual_name(run: Path) -> None:
    wanted = digest_of(checkpoint(run, names.step_folder(9)))
    folder = make_thin(checkpoint(run, names.step_folder(9)), layout.Disk())
    shutil.copy(folder / layout.WEIGHTS_INDEX_FILE, folder / layout.INDEX_FILE)
    model = tiny.build()
    state = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    state_dict_loader.load(state, checkpoint_id=folder, no_dist=True)
    assert weights_digest({"model": model}) == wanted


def test_the_mirror_and_a_resume_look_at_whole_ones_only(run: Path) -> None:
    make_thin(checkpoint(run, names.step_folder(9)), layout.Disk())
    assert [found.manifest.step for found in layout.committed(run)] == [15, 12, 6, 3]


def test_without_the_rule_nothing_stands_apart(tmp_path: Path) -> None:
    folder = trained(tmp_path) / names.step_folder(15)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".metadata",
        "MANIFEST.json",
        "__0_0.distcp",
        "state.json",
    ]


def test_nothing_resumes_from_a_thin_checkpoint(run: Path) -> None:
    for step in (9, 12, 15):
        make_thin(checkpoint(run, names.step_folder(step)), layout.Disk())
    with piton_trainer.session(tiny.config(run)) as session:
        restored = session.restore(model=tiny.build())
    assert restored is not None
    assert restored.step == 6
    # Not even under another name.
    (run / names.weights_folder(9)).rename(run / names.step_folder(99))
    assert not is_good(run / names.step_folder(99))


def test_what_stands_not_apart_is_deleted(tmp_path: Path) -> None:
    directory = trained(tmp_path, keep_last=9)
    retention(directory, keep_last=2, keep_weights_only=2).retain(15)
    assert (whole(directory), thin(directory)) == ([15, 12], [])


def test_a_step_that_is_made_thin_again_has_the_weights_of_the_second_time(run: Path) -> None:
    make_thin(checkpoint(run, names.step_folder(9)), layout.Disk())
    other = checkpoint(run, names.step_folder(12))
    again = shutil.copytree(other.folder, run / names.step_folder(9))
    (again / names.MANIFEST_FILE).write_text(replace(other.manifest, step=9).to_json())
    make_thin(checkpoint(run, names.step_folder(9)), layout.Disk())
    assert digest_of(checkpoint(run, names.weights_folder(9))) == digest_of(other)


def retain_and_die(directory: Path, operation: int) -> None:
    """Let go of three checkpoints, and die before the n-th thing that is done to a file."""
    die_at(operation, directory)
    retain(directory)


def retain(directory: Path) -> None:
    retention(directory, keep_last=2, keep_weights_only=2).retain(SAVED[-1])


def test_a_sigkill_at_any_file_operation_leaves_each_checkpoint_whole_or_thin(run: Path, tmp_path: Path) -> None:
    kills = range(1, 200, 4)
    for operation in kills:
        directory = Path(shutil.copytree(run, tmp_path / str(operation)))
        code = ranks.run(1, partial(retain_and_die, directory, operation))[0].code
        assert [name for name in kept_in(directory) if not is_good(directory / name)] == []
        assert {9, 6, 12, 15} <= {*whole(directory), *thin(directory)}
        retain(directory)
        layout.sweep(directory, keep=lambda _: False)
        assert (whole(directory), thin(directory)) == ([15, 12], [9, 6])
        for name in (names.weights_folder(9), names.weights_folder(6)):
            files = {path.name for path in (directory / name).iterdir()}
            assert files == {*layout.read_manifest(directory / name).files, names.WEIGHTS_FILE}
        shutil.rmtree(directory)
        if code == 0:
            break
    assert code == 0
    assert operation > 5 * kills.step


def kept_in(directory: Path) -> list[str]:
    return [path.name for _, path in [*layout.step_folders(directory), *layout.weights_folders(directory)]]
