"""A ResourceQuota in the fake cluster: it limits how many objects of one kind a namespace may have."""

from typing import Any

from kmock import KubernetesError, resource

from support.apiserver import QUOTAS, ApiServer, Body, refusal


class Quota:
    """Refuses as the API server's admission does. Its status is as old as the last `publish`."""

    def __init__(self, server: ApiServer, kind: resource, hard: int, *, namespace: str = "team") -> None:
        self.hard = hard
        self.tries = 0
        """Creations that it has allowed or refused."""
        self._server = server
        self._kind = kind
        self._namespace = namespace
        server.refuse = self._refuse

    @property
    def used(self) -> int:
        bodies = self._server.all(self._kind)
        return sum(body["metadata"]["namespace"] == self._namespace for body in bodies)

    async def publish(self) -> Body:
        """What the controller of quotas does."""
        name = f"count/{self._kind.plural}"
        status = {"hard": {name: str(self.hard)}, "used": {name: str(self.used)}}
        meta = {"name": "gpus", "namespace": self._namespace}
        old = self._server.find(QUOTAS, "gpus", self._namespace) or {"metadata": meta}
        return await self._server.put(QUOTAS, {**old, "status": status})

    def _refuse(self, request: Any) -> KubernetesError | None:
        creates = request.resource == self._kind and request.method == "POST" and request.namespace == self._namespace
        if not creates:
            return None
        self.tries += 1
        name, used = request.data["metadata"]["name"], self.used
        amounts = f"requested: pods=1, used: pods={used}, limited: pods={self.hard}"
        sentence = f'{self._kind.plural} "{name}" is forbidden: exceeded quota: gpus, {amounts}'
        return refusal(403, "Forbidden", sentence) if used >= self.hard else None
