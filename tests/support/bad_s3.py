"""A server that gives one and the same answer to every request: one of each class that people get instead of S3's.

with Answering(ANSWERS["slow-down"]) as server:   server.url
"""

import socket
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from piton_trainer.s3 import Remedy
from support.local_server import LocalServer

PAGE = "<!DOCTYPE html>\n<html><head><title>Console</title></head><body>Log in</body></html>"
HTML = {"Content-Type": "text/html; charset=utf-8"}
JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What comes back, and what may help."""

    remedy: Remedy
    status: int = 0
    """0 cuts the connection."""
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)


def error(remedy: Remedy, status: int, code: str) -> Answer:
    """An error as S3 writes it."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>as the test says</Message></Error>'
    return Answer(remedy=remedy, status=status, body=body, headers={"Content-Type": "application/xml"})


ANSWERS = {
    "slow-down": error(Remedy.TRY_AGAIN, 503, "SlowDown"),
    "internal-error": error(Remedy.TRY_AGAIN, 500, "InternalError"),
    "error-in-a-200": error(Remedy.TRY_AGAIN, 200, "InternalError"),
    "request-timeout": error(Remedy.TRY_AGAIN, 400, "RequestTimeout"),
    "clock-skew": error(Remedy.TRY_AGAIN, 403, "RequestTimeTooSkewed"),
    "code-of-another-vendor": error(Remedy.TRY_AGAIN, 418, "XVendorNapTime"),
    "balancer-page": Answer(remedy=Remedy.TRY_AGAIN, status=502, body=PAGE, headers=HTML),
    "cut-connection": Answer(remedy=Remedy.TRY_AGAIN),
    "expired-token": error(Remedy.NEW_CREDENTIALS, 400, "ExpiredToken"),
    "expired-token-403": error(Remedy.NEW_CREDENTIALS, 403, "ExpiredToken"),
    "invalid-token": error(Remedy.NEW_CREDENTIALS, 400, "InvalidToken"),
    "invalid-access-key": error(Remedy.USERS, 403, "InvalidAccessKeyId"),
    "wrong-secret": error(Remedy.USERS, 403, "SignatureDoesNotMatch"),
    "wrong-keys-of-older-word": error(Remedy.USERS, 403, "InvalidSecurity"),
    "account-is-suspended": error(Remedy.USERS, 403, "UserSuspended"),
    "invalid-argument": error(Remedy.USERS, 400, "InvalidArgument"),
    "invalid-request": error(Remedy.USERS, 400, "InvalidRequest"),
    "unauthorized": error(Remedy.NEW_CREDENTIALS, 401, "Unauthorized"),
    "refusal-of-another-vendor": error(Remedy.USERS, 403, "XVendorNotYou"),
    "access-denied": error(Remedy.USERS, 403, "AccessDenied"),
    "archived": error(Remedy.USERS, 403, "InvalidObjectState"),
    "other-region": error(Remedy.USERS, 301, "PermanentRedirect"),
    "kms-key-is-disabled": error(Remedy.USERS, 400, "KMS.DisabledException"),
    "not-implemented": error(Remedy.USERS, 501, "NotImplemented"),
    "web-page": Answer(remedy=Remedy.NO_SERVER, status=200, body=PAGE, headers=HTML),
    "web-page-with-etag": Answer(remedy=Remedy.NO_SERVER, status=200, body=PAGE, headers={**HTML, "ETag": '"5f-1"'}),
    "web-page-404": Answer(remedy=Remedy.NO_SERVER, status=404, body=PAGE, headers=HTML),
    "json-200": Answer(remedy=Remedy.NO_SERVER, status=200, body="{}", headers=JSON),
    "json-404": Answer(remedy=Remedy.NO_SERVER, status=404, body='{"detail":"Not Found"}', headers=JSON),
    "json-403": Answer(remedy=Remedy.NO_SERVER, status=403, body='{"error":"forbidden"}', headers=JSON),
    "text-404-of-an-ingress": Answer(remedy=Remedy.NO_SERVER, status=404, body="default backend - 404", headers=TEXT),
    "empty-404-of-a-proxy": Answer(remedy=Remedy.NO_SERVER, status=404),
    "text-400-of-tls": Answer(
        remedy=Remedy.NO_SERVER, status=400, body="Client sent an HTTP request to an HTTPS server.", headers=TEXT
    ),
    "plain-http-to-tls": Answer(remedy=Remedy.NO_SERVER, status=400, body=PAGE, headers=HTML),
    "login": Answer(remedy=Remedy.NO_SERVER, status=302, headers={"Location": "https://login.example.org/"}),
}


class Answering(LocalServer):
    """Answers every request alike."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(_handler(answer))


def _handler(answer: Answer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not answer.status:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            data = answer.body.encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _reply  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            """Nothing."""

    return Handler
