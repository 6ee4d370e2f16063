"""Kubeconfigs."""

import base64

from hack.cluster.pki import document


def test_a_kubeconfig_is_complete_in_itself() -> None:
    found = document(authority=b"ca", certificate=b"crt", private=b"key", user="admin")

    assert found["current-context"] == "piton-box"
    assert found["users"] == [
        {
            "name": "admin",
            "user": {
                "client-certificate-data": base64.b64encode(b"crt").decode(),
                "client-key-data": base64.b64encode(b"key").decode(),
            },
        }
    ]
