"""Certificates made by openssl; each is its own authority."""

import shutil
import subprocess
from pathlib import Path

import pytest

from piton.kube.tls import AUTHORITY, CERTIFICATE, KEY


def make(folder: Path, address: str = "127.0.0.1") -> Path:
    """A folder as the Secret of the operator looks when it is mounted; what is there is replaced."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder.mkdir(exist_ok=True)
    names = ["-subj", "/CN=piton", "-addext", f"subjectAltName=IP:{address},DNS:localhost"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(folder / KEY), "-out", str(folder / CERTIFICATE)]
    subprocess.run(["openssl", "req", "-x509", *kind, *names, *files], check=True, capture_output=True)
    shutil.copyfile(folder / CERTIFICATE, folder / AUTHORITY)
    return folder
