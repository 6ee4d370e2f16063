"""What is registered for programs that run beside the box."""

from typing import Any

from hack.neighbours.webhooks import path_of, pointed_at


def a_configuration(*paths: str) -> dict[str, Any]:
    service = {"name": "webhook-service", "namespace": "system"}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "validating-webhook-configuration"},
        "webhooks": [
            {"name": path.strip("/"), "clientConfig": {"service": {**service, "path": path}}} for path in paths
        ],
    }  # fmt: skip


def test_a_published_webhook_is_registered_with_its_real_service() -> None:
    made = pointed_at(a_configuration("/a"), name="theirs", service="operator", namespace="kubeflow", keep=bool)

    assert path_of(made).endswith("/validatingwebhookconfigurations/theirs")
    [hook] = made["webhooks"]
    assert hook["clientConfig"]["service"] == {"name": "operator", "namespace": "kubeflow", "path": "/a"}


def test_a_webhook_that_its_program_does_not_serve_is_not_registered() -> None:
    made = pointed_at(a_configuration("/a", "/b"), name="x", service="s", namespace="n", keep=lambda path: path == "/b")

    assert [hook["name"] for hook in made["webhooks"]] == ["b"]
