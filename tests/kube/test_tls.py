"""The receiver's certificate: what is wrong with it is said at the start, and never takes the old one out of use."""

import shutil
import ssl
from pathlib import Path

import pytest

from piton.kube.tls import AUTHORITY, CERTIFICATE, KEY, Certificates
from support import certificates


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return certificates.make(tmp_path / "tls")


def serial(context: ssl.SSLContext, authority: str) -> str:
    """The certificate that a client gets to see, by its number: a handshake in memory."""
    trust = ssl.create_default_context(cadata=authority)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trust.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    found = client.getpeercert()
    assert found is not None
    return str(found["serialNumber"])


def test_what_has_not_changed_is_not_read_again(folder: Path) -> None:
    assert not Certificates(folder).refresh()


def test_a_renewed_pair_is_taken_over(folder: Path) -> None:
    found = Certificates(folder)
    before = found.authority, serial(found.context, found.authority)
    certificates.make(folder)
    assert found.refresh()
    after = found.authority, serial(found.context, found.authority)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_half_of_a_new_pair_leaves_the_old_one_in_use_until_the_rest_is_there(folder: Path, tmp_path: Path) -> None:
    """The files of a Secret are replaced at one moment, but we may look just before and just after."""
    found = Certificates(folder)
    before = serial(found.context, found.authority)
    new = certificates.make(tmp_path / "new")
    shutil.copyfile(new / CERTIFICATE, folder / CERTIFICATE)
    assert not found.refresh()
    assert serial(found.context, found.authority) == before
    shutil.copyfile(new / KEY, folder / KEY)
    shutil.copyfile(new / AUTHORITY, folder / AUTHORITY)
    assert found.refresh()
    assert serial(found.context, found.authority) != before


def test_files_that_vanish_are_waited_for(folder: Path) -> None:
    found = Certificates(folder)
    (folder / KEY).unlink()
    assert not found.refresh()
    assert serial(found.context, found.authority)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (CERTIFICATE, None, r"tls\.crt: No such file"),
        (KEY, None, r"tls\.key: No such file"),
        (AUTHORITY, None, r"ca\.crt: No such file"),
        (CERTIFICATE, "nonsense", r"tls\.crt and tls\.key cannot be used"),
        (AUTHORITY, "nonsense", r"ca\.crt: not a certificate"),
        (AUTHORITY, "\u00e9", r"ca\.crt: not a certificate"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(folder: Path, name: str, content: str | None, sentence: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        Certificates(folder)


def test_an_authority_that_no_annotation_can_hold_is_refused(folder: Path) -> None:
    path = folder / AUTHORITY
    path.write_text(path.read_text() * 150)
    with pytest.raises(ValueError, match="more than 65536 bytes"):
        Certificates(folder)
