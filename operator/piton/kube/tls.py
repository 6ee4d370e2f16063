"""The receiver's certificate: read at the start, and again when the Secret behind the folder has been renewed."""

import logging
import ssl
from pathlib import Path

from piton.contract import InputError

CERTIFICATE = "tls.crt"
KEY = "tls.key"
AUTHORITY = "ca.crt"
_AUTHORITY_BYTES_MAX = 65_536
"""It travels in an annotation of every trainer's pod; all annotations together may have 256 KiB."""

_log = logging.getLogger(__name__)


class Certificates:
    """A folder as a Secret of type kubernetes.io/tls looks when it is mounted, with the authority beside it."""

    def __init__(self, folder: Path) -> None:
        """Read the folder.

        Raises:
            ValueError: a file is missing, cannot be read or is not what it should be.
        """
        self._folder = folder
        self._marks = self._look()
        self.authority = self._read_authority()
        self.context = self._load(_new_context())

    def refresh(self) -> bool:
        """Take over what has changed; new connections get it. What is wrong is told, and the old goes on."""
        try:
            marks = self._look()
            if marks == self._marks:
                return False
            authority = self._read_authority()
            self._load(_new_context())  # a pair that does not fit must not half replace the one in use
            self._load(self.context)
        except ValueError as error:
            _log.warning("certificate not renewed", extra={"fields": {"error": str(error)}})
            return False
        self._marks, self.authority = marks, authority
        _log.info("certificate renewed", extra={"fields": {"folder": str(self._folder)}})
        return True

    def _look(self) -> tuple[tuple[int, int], ...]:
        """Identify the content of the files: those of a Secret are links to new files after a change."""
        paths = [self._folder / name for name in (CERTIFICATE, KEY, AUTHORITY)]
        try:
            return tuple((found.st_ino, found.st_mtime_ns) for found in (path.stat() for path in paths))
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror}") from error

    def _read_authority(self) -> str:
        path = self._folder / AUTHORITY
        try:
            text = path.read_text(encoding="ascii")
            ssl.create_default_context(cadata=text)
        except (OSError, UnicodeError, ssl.SSLError) as error:
            raise InputError(f"{path}: not a certificate that can be read: {error}") from error
        if len(text) > _AUTHORITY_BYTES_MAX:
            raise InputError(f"{path}: more than {_AUTHORITY_BYTES_MAX} bytes; leave only what signs {CERTIFICATE}")
        return text

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        try:
            context.load_cert_chain(self._folder / CERTIFICATE, self._folder / KEY)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"{self._folder}: {CERTIFICATE} and {KEY} cannot be used: {error}") from error
        return context


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
