"""Rules on the volume of the checkpoints, and on the encryption of their second copy."""

from collections.abc import Iterator

from piton.api.cel import SpecRule, cel
from piton.api.checkpoint_spec import EncryptionType
from piton.api.spec import Reclaim, Spec

ONE_VOLUME = "spec.checkpoint.volume: exactly one of claimName and size is needed; write size: 100Gi for a new claim"
NOT_TO_DELETE = "spec.checkpoint.volume.reclaim: Delete is for claims that Piton has made; remove it or claimName"
NEW_CLAIM = "spec.checkpoint.volume: storageClassName and accessModes are for a new claim; remove them or claimName"


@cel("spec.checkpoint.volume", "has(self.claimName) != has(self.size)", ONE_VOLUME)
@cel("spec.checkpoint.volume", "!has(self.claimName) || self.?reclaim.orValue('Retain') == 'Retain'", NOT_TO_DELETE)
@cel(
    "spec.checkpoint.volume",
    "!has(self.claimName) || has(self.size)"
    " || !(has(self.storageClassName) || size(self.?accessModes.orValue([])) > 0)",
    NEW_CLAIM,
)
def one_volume(spec: Spec) -> Iterator[str]:
    """Check that exactly one of an existing claim and the size of a new one is given."""
    volume = spec.checkpoint.volume
    if bool(volume.claim_name) == bool(volume.size):
        yield ONE_VOLUME
    elif volume.claim_name and (volume.storage_class_name or volume.access_modes):
        yield NEW_CLAIM
    if volume.claim_name and volume.reclaim is Reclaim.DELETE:
        yield NOT_TO_DELETE


NO_KEY = (
    "spec.checkpoint.mirror.encryption.keyId: missing; SSE-KMS needs the ID, the ARN or the alias of a key, such as "
    "alias/checkpoints"
)
KEY_OF_NOTHING = (
    "spec.checkpoint.mirror.encryption.keyId: only SSE-KMS takes a key; write type: SSE-KMS, or remove keyId"
)
_ENCRYPTION = "spec.checkpoint.mirror.encryption"


@cel(_ENCRYPTION, "self.type != 'SSE-KMS' || has(self.keyId)", NO_KEY)
@cel(_ENCRYPTION, "self.type == 'SSE-KMS' || !has(self.keyId)", KEY_OF_NOTHING)
def one_key(spec: Spec) -> Iterator[str]:
    """Check that a key is given if the encryption takes one."""
    encryption = spec.checkpoint.mirror.encryption if spec.checkpoint.mirror else None
    if encryption is None:
        return
    if encryption.type is EncryptionType.SSE_KMS and encryption.key_id is None:
        yield NO_KEY
    if encryption.type is not EncryptionType.SSE_KMS and encryption.key_id is not None:
        yield KEY_OF_NOTHING


SHARED_VOLUME = (
    "spec.checkpoint.volume.accessModes: several nodes share the volume, which takes ReadWriteMany; "
    "write [ReadWriteMany] and a storage class that offers it, such as EFS or FSx for Lustre"
)


@cel(
    "spec",
    "self.?workers.?nodes.orValue(1) <= 1 || !has(self.checkpoint.volume.size)"
    " || (has(self.checkpoint.volume.accessModes) && 'ReadWriteMany' in self.checkpoint.volume.accessModes)",
    SHARED_VOLUME,
)
def shared_volume(spec: Spec) -> Iterator[str]:
    """Check that a volume shared by several nodes can be mounted by several nodes."""
    volume = spec.checkpoint.volume
    if spec.workers.nodes > 1 and volume.size and "ReadWriteMany" not in volume.access_modes:
        yield SHARED_VOLUME


CHECKPOINT: tuple[SpecRule[Spec], ...] = (one_volume, one_key, shared_volume)
