"""The policy in docs/mirror.md has what the mirror uses, and no more."""

import json
import re
from pathlib import Path

from piton.contract.assignment import Assignment, Encryption, SavePolicy
from support import s3
from support.mirrored import MIB, Contents, Volume

DOCUMENT = Path(__file__).parents[2] / "docs" / "mirror.md"
USES = (
    (r"GET .*[?&]list-type=", "s3:ListBucket"),
    (r"GET .*[?&]uploads", "s3:ListBucketMultipartUploads"),
    (r"DELETE .*[?&]uploadId=", "s3:AbortMultipartUpload"),
    (r"POST .*[?&]delete", "s3:DeleteObject"),
    (r"DELETE [^?]*$", "s3:DeleteObject"),
    (r"POST .*[?&]upload(s|Id=)", "s3:PutObject"),
    (r"PUT .*", "s3:PutObject"),
    (r"(GET|HEAD) .*", "s3:GetObject"),
)
"""A request and the action of it, by the first pattern that fits."""
OF_KEYS = {"kms:GenerateDataKey", "kms:Decrypt"}


def used(requests: list[str]) -> set[str]:
    return {next(action for pattern, action in USES if re.match(pattern, request)) for request in requests}


def documented() -> dict[str, set[str]]:
    """The actions, by the kind of resource."""
    (text,) = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return {part["Resource"].rpartition(":")[2]: set(part["Action"]) for part in json.loads(text)["Statement"]}


def test_the_documented_policy_is_what_a_run_with_a_mirror_uses(
    volume: Volume, proxy: s3.Proxy, bucket: Contents, tmp_path: Path, uri: str
) -> None:
    abandoned = bucket.place.key("step-000000001-0000000000000000", "a.distcp")
    bucket.client.create_multipart_upload(Bucket=s3.BUCKET, Key=abandoned)
    volume.encryption = Encryption(type="SSE-KMS", key_id="key")
    volume.assignment = Assignment(save=SavePolicy(every_steps=1, keep_last=2, keep_best=0))
    for step in (2, 4, 6):
        volume.commit(step, size=6 * MIB)
        if step == 6:
            volume.drop(2)
        assert volume.mirrored(step)
    assert Volume(tmp_path / "empty", uri, attempt=2).restored(None) == 6

    objects, whole, keys = documented().values()

    assert used(proxy.seen) == objects | whole
    assert whole == {"s3:ListBucket", "s3:ListBucketMultipartUploads"}, "of a bucket, not of its objects"
    assert keys == OF_KEYS
