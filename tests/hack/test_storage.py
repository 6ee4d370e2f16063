"""What a claim gets."""

from typing import Any

import pytest

from hack.cluster.folders import size_in_bytes
from hack.cluster.storage import Object, is_released
from hack.cluster.storage import volume_for as made_for

ZONES = {"node-2": "us-east-1b"}


def a_claim(kind: str, *modes: str, node: str | None = None, **spec: Any) -> dict[str, Any]:
    annotations = {"volume.kubernetes.io/selected-node": node} if node else {}
    return {
        "metadata": {"name": "data", "namespace": "ml", "uid": "u-1", "annotations": annotations},
        "spec": {"storageClassName": kind, "accessModes": list(modes),
                 "resources": {"requests": {"storage": "1Gi"}}, **spec},
    }  # fmt: skip


def volume_for(claim: Object) -> Object | None:
    return made_for(claim, ZONES.__getitem__)


def test_a_shared_claim_gets_a_folder_that_every_node_may_use() -> None:
    volume = volume_for(a_claim("shared", "ReadWriteMany"))

    assert volume is not None
    assert volume["spec"]["claimRef"]["uid"] == "u-1"
    assert volume["spec"]["hostPath"]["path"].endswith("/volumes/pvc-u-1")
    assert "nodeAffinity" not in volume["spec"]


def test_a_zonal_claim_waits_for_a_node_and_stays_in_its_zone() -> None:
    assert volume_for(a_claim("zonal", "ReadWriteOnce")) is None

    volume = volume_for(a_claim("zonal", "ReadWriteOnce", node="node-2"))

    assert volume is not None
    [term] = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == ["us-east-1b"]


def test_a_zonal_volume_cannot_be_shared() -> None:
    assert volume_for(a_claim("zonal", "ReadWriteMany", node="node-2")) is None


def test_a_claim_of_another_class_is_not_ours() -> None:
    assert volume_for(a_claim("gp3", "ReadWriteOnce")) is None


def test_a_claim_that_has_a_volume_gets_no_second() -> None:
    assert volume_for(a_claim("shared", "ReadWriteMany", volumeName="pvc-u-1")) is None


def test_only_what_we_made_and_nobody_claims_is_removed() -> None:
    volume = volume_for(a_claim("shared", "ReadWriteMany"))
    assert volume is not None
    foreign = {**volume, "metadata": {"name": "theirs"}, "status": {"phase": "Released"}}

    assert is_released({**volume, "status": {"phase": "Released"}})
    assert not is_released({**volume, "status": {"phase": "Bound"}})
    assert not is_released(foreign)


@pytest.mark.parametrize(("quantity", "size"), [("512", 512), ("64Mi", 64 << 20), ("2Gi", 2 << 30)])
def test_a_size_is_read_as_kubernetes_writes_it(quantity: str, size: int) -> None:
    assert size_in_bytes(quantity) == size


@pytest.mark.parametrize("quantity", ["", "1.5Gi", "2G", "Gi"])
def test_a_size_in_other_words_is_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="no size that the box knows"):
        size_in_bytes(quantity)
