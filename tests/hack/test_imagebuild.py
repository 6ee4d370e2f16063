"""What goes into an image, and when it has to be built anew."""

from pathlib import Path

import pytest

import piton
from hack.cluster import imagebuild
from hack.images import OPERATOR, TRAINER

NAME = "example.com/one:1"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    (tmp_path / "code" / "main.py").write_text("print()")
    (tmp_path / "notes.md").write_text("not for the image")
    (tmp_path / "Dockerfile").write_text("FROM scratch")
    (tmp_path / ".dockerignore").write_text("*\n!code\n**/__pycache__\n")
    return tmp_path


def key(context: Path) -> str:
    return imagebuild.key_of(NAME, context / "Dockerfile", context)


def test_only_what_dockerignore_lets_in_is_in_the_image(context: Path) -> None:
    (context / "code" / "__pycache__" / "main.pyc").write_text("compiled")

    assert imagebuild.files_of(context) == [context / "code" / "main.py"]


def test_a_dockerignore_that_bans_nothing_is_refused(context: Path) -> None:
    (context / ".dockerignore").write_text("notes.md\n")

    with pytest.raises(ValueError, match="has to ban everything"):
        imagebuild.files_of(context)


@pytest.mark.parametrize("file", ["code/main.py", "code/more.py", "Dockerfile"])
def test_a_change_of_what_is_in_it_makes_another_image(context: Path, file: str) -> None:
    before = key(context)

    (context / file).write_text("changed")

    assert key(context) != before


@pytest.mark.parametrize("file", ["notes.md", "code/__pycache__/main.pyc"])
def test_a_change_beside_it_makes_the_same_image(context: Path, file: str) -> None:
    before = key(context)

    (context / file).write_text("changed")

    assert key(context) == before


def test_both_images_carry_the_version_of_piton() -> None:
    assert [name.rpartition(":")[2] for name in (OPERATOR, TRAINER)] == [piton.__version__] * 2
