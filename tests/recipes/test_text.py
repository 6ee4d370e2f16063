"""Text comes from several kinds of places, the same every time; from S3: tests/s3."""

from pathlib import Path

import pytest
import torch

from piton_trainer.data.text.sources import DOCUMENT, as_documents, pydoc_text, read_text
from piton_trainer.data.text.vocabulary import REPLACEMENT, Vocabulary
from piton_trainer.errors import BadConfig


def test_pydoc_is_a_long_text_whose_paragraphs_do_not_repeat() -> None:
    text = read_text("pydoc")
    paragraphs = text.split("\n\n")
    assert text == pydoc_text()
    assert len(text) > 300_000
    assert len(set(paragraphs)) == len(paragraphs)


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "any.name").write_text("héllo\n", encoding="utf-8")
    assert read_text(str(tmp_path / "any.name")) == "héllo\n"


def test_a_directory_gives_its_text_files_in_order_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert read_text(str(tmp_path)) == "first\n\nsecond"


def test_names_with_a_leading_dot_are_no_texts_and_what_else_is_left_out_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / ".cache" / "texts"
    for name in (".git/x.md", ".ipynb_checkpoints/a.txt", "a.txt", "b/._c.txt", "b/c.txt", "B.TXT", "b/d.bin"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "c.txt").write_text("linked")
    (root / "linked").symlink_to(tmp_path / "linked")
    (root / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert read_text(str(root)) == "a.txt\n\nb/c.txt"
    assert read_text(str(root / ".git" / "x.md")) == ".git/x.md"
    assert caplog.messages == [
        (
            f"{root}: not taken for data are 3 with a leading dot, 1 linked folders, 1 *.TXT, "
            "1 links that lead nowhere, or no files, 1 *.bin"
        )
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "there is no text in "),
        (b"ab\xff", "is not UTF-8 text (byte 2)"),
        ("wind".encode("utf-16-le"), "has a character 0 at byte 1, so it is no UTF-8 text; is it UTF-16"),
        (b"a text that a crash has cut".ljust(4096, b"\0"), "has a character 0 at byte 27"),
    ],
)
def test_a_file_that_is_no_text_is_the_users_to_mend(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(BadConfig) as caught:
        read_text(str(tmp_path / "x.txt"))
    assert sentence in caught.value.detail


def test_a_directory_without_text_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(BadConfig) as caught:
        read_text(str(tmp_path))
    assert caught.value.detail.endswith(f"there is no text in {tmp_path} (*.txt and *.md count)")


def test_a_file_that_vanished_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(BadConfig) as caught:
        read_text(str(tmp_path / "gone"))
    assert caught.value.detail.endswith("gone: No such file or directory")


@pytest.mark.parametrize("gap", ["\n\n", "\n \t\n", "\n\n\n\n", "\r\n\r\n"])
def test_blank_lines_end_a_document_and_the_next_one_begins_with_a_symbol(gap: str) -> None:
    assert as_documents(f"\n12 + 3\n= 15{gap}4 L\n") == f"{DOCUMENT}12 + 3\n= 15{DOCUMENT}4 L"


def test_a_vocabulary_is_sorted_and_knows_all_but_the_rare() -> None:
    vocabulary = Vocabulary.of("bbbaaa\U0001f600c", rare_below=2)
    assert vocabulary.symbols == REPLACEMENT + "ab"
    assert vocabulary.encode("abc\U0001f600").tolist() == [1, 2, 0, 0]
    assert vocabulary.decode(torch.tensor([2, 1, 0])) == f"ba{REPLACEMENT}"
    assert vocabulary.uniform_bits == pytest.approx(1.585, abs=1e-3)


def test_more_symbols_than_a_byte_can_count_still_round_trip() -> None:
    text = "".join(chr(point) for point in range(0x4E00, 0x4E00 + 300))
    vocabulary = Vocabulary.of(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_a_vocabulary_takes_back_its_own_state_and_refuses_another() -> None:
    Vocabulary("abc").load_state_dict(Vocabulary("cba").state_dict())
    with pytest.raises(BadConfig, match="other characters than the checkpoint's"):
        Vocabulary("abd").load_state_dict(Vocabulary("abc").state_dict())
