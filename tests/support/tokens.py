"""Service-account tokens of an emulated cluster: they look like the real ones, and a word stands for the signature."""

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from piton.contract import names

_SIGNATURE = "signed"


@dataclass(frozen=True, kw_only=True)
class Token:
    """What a token says; without a pod it is one of the old kind, for a service account."""

    namespace: str = "team"
    pod: str | None
    pod_uid: str = ""
    expires: datetime
    audience: str = names.TOKEN_AUDIENCE

    def text(self, *, signature: str = _SIGNATURE) -> str:
        """The token as the kubelet writes it."""
        bound: dict[str, Any] = {"namespace": self.namespace}
        if self.pod is not None:
            bound["pod"] = {"name": self.pod, "uid": self.pod_uid}
        claims = {"aud": [self.audience], "exp": int(self.expires.timestamp()), "kubernetes.io": bound}
        return ".".join((_encoded({"alg": "none"}), _encoded(claims), signature))


def read(text: str) -> Token | None:
    """What the token says, if it is signed."""
    _, claims, signature = text.split(".")
    if signature != _SIGNATURE:
        return None
    found = json.loads(base64.urlsafe_b64decode(claims + "==="))
    bound = found["kubernetes.io"]
    pod = bound.get("pod") or {}
    return Token(
        namespace=bound["namespace"],
        pod=pod.get("name"),
        pod_uid=pod.get("uid", ""),
        expires=datetime.fromtimestamp(found["exp"], UTC),
        audience=found["aud"][0],
    )


def user(token: Token) -> dict[str, Any]:
    """The user as a TokenReview describes it."""
    found: dict[str, Any] = {"username": f"system:serviceaccount:{token.namespace}:default"}
    if token.pod is not None:
        where = "authentication.kubernetes.io/pod"
        found["extra"] = {f"{where}-name": [token.pod], f"{where}-uid": [token.pod_uid]}
    return found


def _encoded(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
