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


def test_a_kubeconfig_for_a_launched_node_acts_as_its_kubelet_whatever_the_length_of_its_name() -> None:
    long = "kwok-" + "x" * 60

    found = document(authority=b"ca", certificate=b"crt", private=b"key", user="admin", node=long)

    assert f"'as': 'system:node:{long}', 'as-groups': ['system:nodes']" in str(found["users"])
