"""What was created on the box, counted from the API server's own audit log."""

import json
from collections import Counter

from hack.cluster.controlplane import AUDIT_LOG

_CREATED = 201


def creations(namespace: str) -> dict[str, Counter[str]]:
    """How often each name was created in the namespace, by resource; refused requests do not count.

    A pod's name is in the request's path only where the client gave it; the bundled controller does.
    """
    found: dict[str, Counter[str]] = {}
    *lines, _ = AUDIT_LOG.read_text().split("\n")  # the last one may be half written
    for line in lines:
        event = json.loads(line)
        where = event.get("objectRef") or {}
        made = event["verb"] == "create" and event["responseStatus"].get("code") == _CREATED
        if made and where.get("namespace") == namespace and not where.get("subresource"):
            found.setdefault(where["resource"], Counter())[where.get("name", "")] += 1
    return found
