"""One byte, line, member or id of a source changed; and changes that mean nothing."""

import io
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz_data.readers import Reader, pictures

HARMLESS = frozenset({"BOM", "CRLF", "a hidden file", "end of the line lost at the end"})
"""What is read has to stay the same."""
_ID = re.compile(r"\b([qdm])(\d+)\b")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A way to damage a source."""

    name: str
    act: Callable[[Random, Path], None]
    """Changes a file."""
    needs: frozenset[str] = frozenset()
    """A tag that the reader has to have, any of these."""
    spares: frozenset[str] = frozenset()
    """Tags of readers that cannot notice it."""

    def fits(self, reader: Reader) -> bool:
        """True if it can be done to such a source, and noticed in it."""
        return (not self.needs or bool(self.needs & reader.tags)) and not self.spares & reader.tags


# Bytes.


def change_byte(random: Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[random.randrange(len(content))] ^= random.randrange(1, 256)
    file.write_bytes(content)


def insert_byte(random: Random, file: Path) -> None:
    content = file.read_bytes()
    place = random.randrange(len(content))
    file.write_bytes(content[:place] + bytes([random.randrange(256)]) + content[place:])


def remove_byte(random: Random, file: Path) -> None:
    content = file.read_bytes()
    place = random.randrange(len(content))
    file.write_bytes(content[:place] + content[place + 1 :])


def cut(random: Random, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: random.randrange(len(content))])


def put_zeros(random: Random, file: Path) -> None:
    """Leave a file as a crash leaves one that was made longer first. Less than a record of a tar file shows nowhere."""
    content = file.read_bytes()
    place = random.randrange(len(content))
    if file.suffix == ".tar":
        with tarfile.open(file) as tar:
            headers = [member.offset for member in tar if len(content) - member.offset > tarfile.RECORDSIZE + 1024]
        place = random.choice([*headers, 0])
    file.write_bytes(content[:place].ljust(len(content), b"\0"))


def double(random: Random, file: Path) -> None:
    file.write_bytes(file.read_bytes() * 2)


def empty(random: Random, file: Path) -> None:
    file.write_bytes(b"")


# Lines.


def _with_line(random: Random, file: Path, change: Callable[[str], str]) -> None:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    place = random.randrange(len(lines))
    lines[place] = change(lines[place])
    file.write_text("".join(lines), encoding="utf-8")


def garble_line(random: Random, file: Path) -> None:
    noise = "".join(chr(random.randrange(33, 127)) for _ in range(random.randrange(1, 40)))
    _with_line(random, file, lambda line: noise + "\n")


def double_line(random: Random, file: Path) -> None:
    _with_line(random, file, lambda line: line * 2)


def lose_field(random: Random, file: Path) -> None:
    _with_line(random, file, lambda line: re.sub(r"[\t,][^\t,]*\n$", "\n", line))


def add_field(random: Random, file: Path) -> None:
    separator = "\t" if file.suffix == ".tsv" else ","
    _with_line(random, file, lambda line: line.rstrip("\n") + f"{separator}more\n")


def unquote(random: Random, file: Path) -> None:
    _with_line(random, file, lambda line: line.replace('"', ""))


def put_header(random: Random, file: Path) -> None:
    header = file.read_text(encoding="utf-8").splitlines()[0] if file.suffix == ".csv" else "query\tpositive\tnegative"
    _with_line(random, file, lambda line: f"{header}\n{line}")


def half_a_pair(random: Random, file: Path) -> None:
    _with_line(random, file, lambda line: re.sub(r": \"", r': "\\ud83d', line, count=1))


def double_value(random: Random, file: Path) -> None:
    _with_line(random, file, lambda line: re.sub(r'"(query|positive)": ', r'"\1": "other", "\1": ', line, count=1))


# Encodings.


def as_latin_1(random: Random, file: Path) -> None:
    file.write_bytes(file.read_text(encoding="utf-8").replace("\n", "ü\n", 1).encode("latin-1"))


def as_utf_16(random: Random, file: Path) -> None:
    file.write_bytes(file.read_text(encoding="utf-8").encode("utf-16"))


def with_bom(random: Random, file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


def with_crlf(random: Random, file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


def without_last_end(random: Random, file: Path) -> None:
    file.write_bytes(file.read_bytes().rstrip(b"\n"))


# Ids.


def change_id(random: Random, file: Path) -> None:
    content = file.read_text(encoding="utf-8")
    found = list(_ID.finditer(content))
    one, other = random.choice(found), random.choice(found)
    number = "99" if random.random() < 0.5 else other[2]
    file.write_text(f"{content[: one.start()]}{one[1]}{number}{content[one.end() :]}", encoding="utf-8")


def change_number(random: Random, file: Path) -> None:
    content = file.read_text(encoding="utf-8")
    one = random.choice(list(re.finditer(r"(?m)^(?:\.I )?\d+|\d+$", content)))
    told = re.sub(r"\d+$", str(random.randrange(12)), one[0])
    file.write_text(content[: one.start()] + told + content[one.end() :], encoding="utf-8")


# Members.


def _with_members(file: Path, change: Callable[[list[tuple[str, bytes]]], None]) -> None:
    with tarfile.open(file) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    change(members)
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def change_member(random: Random, file: Path) -> None:
    def change(members: list[tuple[str, bytes]]) -> None:
        place, other = random.randrange(len(members)), random.randrange(len(members))
        name, content = members[place]
        kind = random.choice(("lost", "twice", "renamed", "hidden", "of another suffix", "emptied", "of another"))
        match kind:
            case "lost":
                del members[place]
            case "twice":
                members.insert(other, (name, members[other][1]))
            case "renamed":
                members[place] = (members[other][0], content)
            case "hidden":
                members[place] = (f"._{name}", content)
            case "of another suffix":
                members[place] = (f"{name.partition('.')[0]}.{random.choice(('tif', 'cls', 'jpg', 'txt'))}", content)
            case "emptied":
                members[place] = (name, b"")
            case _:
                members[place] = (name, members[other][1])

    _with_members(file, change)


def change_array(random: Random, file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = random.randrange(len(members))
    name, content = members[place]
    match random.choice(("lost", "twice", "renamed", "of the other", "of another shape")):
        case "lost":
            del members[place]
        case "twice":
            members.append((name, content[:-1] + b"\1"))
        case "renamed":
            members[place] = (f"x{name}", content)
        case "of another shape":
            digit = content.index(b"'shape': (8") + len("'shape': (")
            members[place] = (name, content[:digit] + random.choice((b"7", b"9")) + content[digit + 1 :])
        case _:
            members[place] = (name, members[1 - place][1])
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in members:
            archive.writestr(*one)


def change_file(random: Random, file: Path) -> None:
    """Of a folder."""
    match random.choice(("lost", "another suffix", "hidden", "a folder", "a link to nowhere", "of another class")):
        case "lost":
            file.unlink()
        case "another suffix":
            file.rename(file.with_suffix(".tif"))
        case "hidden":
            file.rename(file.with_name(f"._{file.name}"))
        case "a folder":
            file.unlink()
            file.mkdir()
        case "a link to nowhere":
            file.unlink()
            file.symlink_to("nowhere")
        case _:
            classes = sorted(path for path in file.parents[1].iterdir() if path != file.parent)
            file.rename(random.choice(classes) / f"moved-{file.name}")


def change_shard(random: Random, file: Path) -> None:
    """Of a folder."""
    match random.choice(("in capitals", "packed", "a link to nowhere", "without files", "without images")):
        case "in capitals":
            file.rename(file.with_suffix(".TAR"))
        case "packed":
            file.rename(file.with_suffix(random.choice((".tar.gz", ".tgz"))))
        case "a link to nowhere":
            file.unlink()
            file.symlink_to("nowhere")
        case "without files":
            _with_members(file, list.clear)
        case _:
            _with_members(file, lambda members: members.__setitem__(slice(None), [("notes.txt", b"x")]))


def add_hidden(random: Random, file: Path) -> None:
    for folder in (file.parent, file.parents[1]):
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / ".ipynb_checkpoints" / file.name).write_bytes(pictures(0))
        (folder / f"._{file.name}").write_bytes(b"\0\5\x16\7")


_LINES, _TABLES, _TEXTS = frozenset({"lines"}), frozenset({"tsv", "csv"}), frozenset({"texts"})
DAMAGES: Mapping[str, Damage] = {
    damage.name: damage
    for damage in (
        Damage(name="byte", act=change_byte),
        Damage(name="byte more", act=insert_byte),
        Damage(name="byte less", act=remove_byte),
        # A text that ends at a line's end is a shorter text.
        Damage(name="cut", act=cut, spares=_LINES | {"foldoc"}),
        Damage(name="zeros", act=put_zeros, needs=frozenset({"tar", "checksums"})),
        # All rows twice are rows.
        Damage(name="double", act=double, spares=_LINES | {"foldoc", "files", "tsv.gz", "jsonl.gz"}),
        Damage(name="empty", act=empty, spares=_TEXTS),
        Damage(name="line", act=garble_line, needs=_LINES),
        Damage(name="line twice", act=double_line, needs=_LINES),
        Damage(name="field less", act=lose_field, needs=_TABLES),
        Damage(name="field more", act=add_field, needs=_TABLES),
        Damage(name="no quotes", act=unquote, needs=frozenset({"csv"})),
        Damage(name="header again", act=put_header, needs=_TABLES),
        Damage(name="half a pair", act=half_a_pair, needs=frozenset({"jsonl", "json"})),
        Damage(name="Latin-1", act=as_latin_1, needs=_LINES, spares=frozenset({"numbers"})),
        Damage(name="UTF-16", act=as_utf_16, needs=_LINES),
        Damage(name="BOM", act=with_bom, needs=_LINES),
        Damage(name="CRLF", act=with_crlf, needs=_LINES),
        Damage(name="end of the line lost at the end", act=without_last_end, needs=_LINES),
        Damage(name="id", act=change_id, needs=frozenset({"ids"})),
        Damage(name="number", act=change_number, needs=frozenset({"numbers"})),
        Damage(name="member", act=change_member, needs=frozenset({"tar"})),
        Damage(name="shard", act=change_shard, needs=frozenset({"tar"})),
        Damage(name="field twice", act=double_value, needs=frozenset({"jsonl", "json"})),
        Damage(name="array", act=change_array, needs=frozenset({"npz"})),
        Damage(name="file", act=change_file, needs=frozenset({"files"})),
        Damage(name="a hidden file", act=add_hidden, needs=frozenset({"files"})),
    )
}
