"""Whether a program beside the box serves, by the port that its kubelet would ask."""

import contextlib
from http.client import HTTPConnection, HTTPException

_SECONDS = 2


def answers(port: int, path: str = "/readyz") -> bool:
    """Whether it answers with 200 there."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    with contextlib.closing(connection), contextlib.suppress(OSError, HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False
