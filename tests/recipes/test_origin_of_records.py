"""A finished file of records beside its source: the same images, other ones, and a source that is gone."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piton.contract import names
from piton_trainer.data.image import preparation
from piton_trainer.data.image.image_files import Form
from piton_trainer.data.image.origin import ORIGIN, Origin, listing_of
from piton_trainer.data.image.preparation import WhenChanged, prepare, refresh
from piton_trainer.data.image.records import Records
from piton_trainer.errors import BadConfig
from piton_trainer.recipes.resnet50.config import ResnetConfig
from piton_trainer.recipes.resnet50.prepare import files
from piton_trainer.recipes.resnet50.prepare import prepare as prepare_stage
from piton_trainer.recipes.resnet50.prepare import refresh as refresh_stage

FORM = Form(max_side=None, quality=95)


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def a_folder(root: Path) -> Path:
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            (root / name / f"{number}.png").write_bytes(png(10 * number))
    return root


def a_shard(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(6):
            for name, content in ((f"{number}.png", png(10 * number)), (f"{number}.cls", b"%d" % (number % 2))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def an_archive(path: Path) -> Path:
    np.savez(path, images=np.arange(6 * 16).reshape(6, 4, 4).astype(np.uint8), labels=np.arange(6) % 2)
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "folder": lambda at: a_folder(at / "x"),
    "shards": lambda at: a_shard((at / "x").with_suffix(".tar")),
    "archive": lambda at: an_archive(at / "x.npz"),
}


def brightness(path: Path) -> list[float]:
    records = Records(path)
    return [
        float(np.asarray(Image.open(io.BytesIO(records.read(number)))).mean()) if records.is_jpeg(number) else 0.0
        for number in range(len(records))
    ]


def replace_one(source: Path) -> None:
    if source.is_dir():
        content = png(200)
        before = (source / "a" / "1.png").stat()
        (source / "a" / "1.png").write_bytes(content)
        os.utime(source / "a" / "1.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        content = source.read_bytes()
        if source.suffix == ".npz":
            np.savez(source, images=np.zeros((6, 4, 4), np.uint8), labels=np.arange(6) % 2)
        else:
            source.write_bytes(content.replace(png(10), png(20)))


def touch(source: Path) -> None:
    for path in [source, *source.rglob("*")]:
        os.utime(path, ns=(1, 1))


def made(tmp_path: Path, kind: str) -> tuple[Path, Path, bytes]:
    source, path = SOURCES[kind](tmp_path), tmp_path / "x.records"
    prepare(str(source), path, FORM, threads=2)
    return source, path, path.read_bytes()


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_files_cost_a_listing_only(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, path, before = made(tmp_path, kind)
    caplog.clear()
    monkeypatch.setattr(preparation, "open_source", None)
    for when in WhenChanged:
        refresh(str(source), path, FORM, when)
        prepare(str(source), path, FORM)
    assert path.read_bytes() == before
    assert caplog.messages == []


@pytest.mark.parametrize("kind", SOURCES)
def test_a_copy_of_the_same_images_is_read_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, path, before = made(tmp_path, kind)
    touch(source)
    refresh(str(source), path, FORM, WhenChanged.REFUSE)
    refresh(str(source), path, FORM, WhenChanged.RENEW)
    monkeypatch.setattr(preparation, "open_source", None)
    refresh(str(source), path, FORM, WhenChanged.REFUSE)
    assert path.read_bytes() == before
    assert [message for message in caplog.messages if "made" in message] == []


@pytest.mark.parametrize("kind", SOURCES)
def test_images_that_were_replaced_are_refused_renewed_or_said(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, path, before = made(tmp_path, kind)
    replace_one(source)
    refresh(str(source), path, FORM, WhenChanged.KEEP)
    told = f"{source}: files were added, removed or written since {path} was made of them; the run goes on"
    assert caplog.messages[-1].startswith(told)
    with pytest.raises(BadConfig, match=f"{path} was made of other images than {source} has now; delete the file"):
        refresh(str(source), path, FORM, WhenChanged.REFUSE)
    assert path.read_bytes() == before
    refresh(str(source), path, FORM, WhenChanged.RENEW)
    assert f"{source}: its images are not those that {path} was made of; the file is made anew" in caplog.messages
    prepare(str(source), path, FORM)
    assert len(Records(path)) == 6
    assert path.read_bytes() != before
    refresh(str(source), path, FORM, WhenChanged.REFUSE)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a" / "9.png").write_bytes(png(9)),
        lambda root: (root / "a" / "0.png").unlink(),
        lambda root: (root / "a" / "0.png").rename(root / "b" / "9.png"),
        lambda root: shutil.copytree(root / "a", root / "c"),
        lambda root: (root / "a" / "0.png").write_bytes(png(77)),
    ],
    ids=["added", "removed", "moved", "a class more", "written"],
)
def test_any_change_of_a_folder_is_seen(tmp_path: Path, change: Callable[[Path], object]) -> None:
    source, path, _ = made(tmp_path, "folder")
    change(source)
    with pytest.raises(BadConfig, match="was made of other images"):
        refresh(str(source), path, FORM, WhenChanged.REFUSE)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a" / "notes.txt").write_text("x"),
        lambda root: (root / ".cache").mkdir(),
        lambda root: (root / "a" / "._0.png").write_bytes(b"x"),
        shutil.rmtree,
        lambda root: root.with_name("x.records.origin").unlink(),  # as before Piton wrote one
        lambda root: root.with_name("x.records.origin").write_text("{"),
    ],
    ids=["a note", "a hidden folder", "a hidden file", "gone", "no origin", "a damaged origin"],
)
def test_what_is_no_change_is_no_trouble(
    tmp_path: Path, change: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    source, path, before = made(tmp_path, "folder")
    caplog.clear()
    change(source)
    for when in WhenChanged:
        refresh(str(source), path, FORM, when)
    assert path.read_bytes() == before
    assert caplog.messages == []


def test_a_preparation_alone_compares_no_images(tmp_path: Path) -> None:
    source, path, before = made(tmp_path, "folder")
    replace_one(source)
    (source / "a" / "9.png").write_bytes(png(9))
    prepare(str(source), path, FORM)
    assert path.read_bytes() == before
    refresh(str(source), path, FORM, WhenChanged.RENEW)
    prepare(str(source), path, FORM)
    assert len(Records(path)) == 7
    assert max(brightness(path)) > 190


def test_images_that_are_skipped_count_as_well(tmp_path: Path) -> None:
    source, path = a_folder(tmp_path / "x"), tmp_path / "x.records"
    (source / "a" / "1.png").write_bytes(b"no image")
    prepare(str(source), path, FORM, most=1)
    assert len(Records(path)) == 5
    touch(source)
    refresh(str(source), path, FORM, WhenChanged.REFUSE, most=1)
    (source / "a" / "1.png").write_bytes(png(1))
    refresh(str(source), path, FORM, WhenChanged.RENEW, most=1)
    prepare(str(source), path, FORM)
    assert len(Records(path)) == 6


def test_a_preparation_that_goes_on_notes_what_it_is_made_of(tmp_path: Path) -> None:
    source, path = a_folder(tmp_path / "x"), tmp_path / "x.records"
    (source / "a" / "1.png").write_bytes(b"no image")
    with pytest.raises(BadConfig):
        prepare(str(source), path, FORM, threads=1)
    assert Origin.load(path) is None
    (source / "a" / "1.png").write_bytes(png(1))
    prepare(str(source), path, FORM, threads=1)
    touch(source)
    refresh(str(source), path, FORM, WhenChanged.REFUSE)
    assert Origin.load(path) is not None


def test_a_link_in_a_source_is_listed_by_what_it_leads_to(tmp_path: Path) -> None:
    source = a_folder(tmp_path / "x")
    (tmp_path / "elsewhere.png").write_bytes(png(1))
    (source / "a" / "9.png").symlink_to(tmp_path / "elsewhere.png")
    before = listing_of(str(source))
    assert before == listing_of(str(source))
    (tmp_path / "elsewhere.png").write_bytes(png(123) + b"more")
    assert before != listing_of(str(source))
    assert listing_of(str(tmp_path / "gone")) is None
    assert listing_of("sklearn:digits") is None


# In the recipe.


def a_run(tmp_path: Path, **more: object) -> tuple[ResnetConfig, Path, Path]:
    source = a_folder(tmp_path / "x")
    config = ResnetConfig.model_validate({"data": str(source), "steps": 1, **more})
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    prepare_stage(config, checkpoints)
    replace_one(source)
    return config, checkpoints, source


def test_a_run_that_has_not_begun_trains_on_the_new_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, checkpoints, _ = a_run(tmp_path)
    assert max(brightness(files(config, checkpoints)[0])) < 30
    prepare_stage(config, checkpoints)
    assert max(brightness(files(config, checkpoints)[0])) > 190
    assert any("the file is made anew" in message for message in caplog.messages)


def test_a_run_that_has_begun_goes_on_with_its_images_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, checkpoints, source = a_run(tmp_path)
    (checkpoints / names.step_folder(3)).mkdir()
    refresh_stage(config, checkpoints)
    prepare_stage(config, checkpoints)
    assert max(brightness(files(config, checkpoints)[0])) < 30
    assert any(message.startswith(f"{source}: files were added, removed") for message in caplog.messages)


def test_a_file_that_other_runs_may_use_is_never_made_anew(tmp_path: Path) -> None:
    config, checkpoints, _ = a_run(tmp_path, records=str(tmp_path / "shared"))
    [path] = files(config, checkpoints)
    before = path.read_bytes()
    with pytest.raises(BadConfig, match="was made of other images"):
        prepare_stage(config, checkpoints)
    assert path.read_bytes() == before
    path.unlink()
    prepare_stage(config, checkpoints)
    assert max(brightness(path)) > 190
    assert path.with_name(path.name + ORIGIN).is_file()
