"""Classes of errors of S3, by the code in the answer or the name of boto3's exception, with a sentence for each. Pure.

All that read or write a bucket share this table: the mirror, restores, training data, `piton checkpoint`.

    TRY_AGAIN        the bucket is busy or away, or an answer was cut: the same request may succeed later
    NEW_CREDENTIALS  the credentials have expired or were replaced: a new client reads them anew
    USERS            permissions, names, settings, archived objects: until the user changes them, nothing helps
    NO_SERVER        something else than an S3 server has answered, such as a login page or a console

A code that is not in the table has the class of its status if that is 401 or 403. Any other can be tried again: what
is given up too early costs a training.
"""

from enum import Enum


class Remedy(Enum):
    """The change that may help against an error."""

    TRY_AGAIN = "try again"
    NEW_CREDENTIALS = "new credentials"
    USERS = "a change by the user"
    NO_SERVER = "another endpoint"


_ADVICE = {
    Remedy.TRY_AGAIN: "",
    Remedy.NEW_CREDENTIALS: "renew the credentials; each further try reads them anew",
    Remedy.USERS: "",
    Remedy.NO_SERVER: "look at AWS_ENDPOINT_URL, and at proxies between",
}
_CREDENTIALS = (
    "400",  # a HEAD has no body that says why; with an expired token its status is 400
    "401",
    "AuthFailure",
    "CredentialRetrievalError",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidIdentityToken",
    "InvalidToken",
    "InvalidTokenId",
    "MetadataRetrievalError",
    "RequestExpired",
    "SSOError",
    "SSOTokenLoadError",
    "TokenRefreshRequired",
    "TokenRetrievalError",
    "Unauthorized",
    "UnauthorizedSSOTokenError",
)
_WRONG_KEYS = "the bucket does not know these credentials; put right AWS_ACCESS_KEY_ID and its secret, or the profile"
_NO_KEYS = "set AWS_ACCESS_KEY_ID and its secret, AWS_PROFILE, or a role of the pod or machine"
_RIGHTS = "allow what docs/mirror.md lists, to the identity that these credentials have"
_REGION = "set AWS_DEFAULT_REGION to the region of the bucket, or AWS_ENDPOINT_URL to its endpoint"
_NAME = "put the name of the bucket right"
_UNSUPPORTED = "this server does not support the request; use one that does, or change the setting that needs it"
_ARCHIVED = "the object is archived; restore it to a class that can be read at once"
_KEY = "put the KMS key and its permissions right"
_ACCOUNT = "ask whoever owns the account"
_USERS = {
    "403": _RIGHTS,
    "405": _UNSUPPORTED,
    "501": _UNSUPPORTED,
    "AccessDenied": _RIGHTS,
    "AccountProblem": _ACCOUNT,
    "AccountSuspended": _ACCOUNT,
    "AllAccessDisabled": "ask whoever owns the bucket",
    "AuthorizationHeaderMalformed": _REGION,
    "BucketRegionError": _REGION,
    "EntityTooLarge": "the server takes no object of this size",
    "Forbidden": _RIGHTS,
    "IllegalLocationConstraintException": _REGION,
    "InvalidAccessKeyId": _WRONG_KEYS,
    "InvalidArgument": _UNSUPPORTED,
    "InvalidBucketName": _NAME,
    "InvalidObjectState": _ARCHIVED,
    "InvalidPayer": _ACCOUNT,
    "InvalidRequest": _UNSUPPORTED,
    "InvalidSecurity": _WRONG_KEYS,
    "MethodNotAllowed": _UNSUPPORTED,
    "NoCredentialsError": _NO_KEYS,
    "NewerRecord": "use the version of Piton that wrote it, or a newer one",
    "NoRecord": "the checkpoints beside it are untouched: restore them by hand with `piton checkpoint restore`, and "
    "name another place in checkpoint.mirror.uri",
    "NoRegionError": "set AWS_DEFAULT_REGION",
    "NoSuchBucket": "create the bucket, or put its name right",
    "NotEncrypted": "use a server that does, or remove the setting",
    "NotImplemented": _UNSUPPORTED,
    "NotSignedUp": _ACCOUNT,
    "PaginationError": _UNSUPPORTED,
    "ParamValidationError": _NAME,
    "PartialCredentialsError": _NO_KEYS,
    "PermanentRedirect": _REGION,
    "ProfileNotFound": "put AWS_PROFILE right",
    "QuotaExceeded": "raise the quota of the bucket, or make room in it",
    "SignatureDoesNotMatch": _WRONG_KEYS,
    "Unsupported": _UNSUPPORTED,
    "UserSuspended": _ACCOUNT,
    "XMinioAdminBucketQuotaExceeded": "raise the quota of the bucket, or make room in it",
}
_CHANGEABLE_KEYS = frozenset(
    {
        "403",
        "AccessDenied",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "NoCredentialsError",
        "PartialCredentialsError",
        "SignatureDoesNotMatch",
    }
)
"""Codes of the user's that new credentials may end all the same: keys that are rotated are wrong for a moment."""
_CLOCK = "set the clock of this machine: the bucket's differs from it"
_SLOWER = "the bucket asks for fewer requests"
_KEY_SERVICE = "the key management service is busy or away"
_TRY_AGAIN = {
    "KMS.DependencyTimeoutException": _KEY_SERVICE,
    "KMS.InternalException": _KEY_SERVICE,
    "KMS.KMSInternalException": _KEY_SERVICE,
    "KMS.KeyUnavailableException": _KEY_SERVICE,
    "KMS.LimitExceededException": _SLOWER,
    "KMS.ThrottlingException": _SLOWER,
    "RequestTimeout": "",
    "RequestTimeTooSkewed": _CLOCK,
    "RequestInTheFuture": _CLOCK,
    "SlowDown": _SLOWER,
    "Throttling": _SLOWER,
    "ThrottlingException": _SLOWER,
    "TooManyRequests": _SLOWER,
}
_STATUSES = frozenset({401, 403})
"""Of refusals: a code that is not known has the class of such a status."""
_NO_SERVER = ("300", "302", "303", "307", "308", "NoServer")


class ObjectNotFound(Exception):  # noqa: N818 - a fact, as on a disk
    """There is no such object."""


class PreconditionFailed(Exception):  # noqa: N818 - a fact
    """The object is not the one that was read."""


class S3Error(Exception):
    """A request to S3 failed."""

    def __init__(self, kind: str, detail: str, *, status: int | None = None) -> None:
        like = str(status) if status in _STATUSES and not _is_known(kind) else kind
        advice = advice_for(like)
        super().__init__(f"{detail.rstrip('. ')}; {advice}" if advice else detail)
        self.kind = kind
        self.remedy = remedy_for(like)
        self._may_be_keys = like in _CHANGEABLE_KEYS

    @property
    def is_refusal(self) -> bool:
        """True if only the user can change something."""
        return self.remedy is Remedy.USERS

    @property
    def needs_new_client(self) -> bool:
        """True if a client that reads the credentials anew may succeed."""
        return self.remedy is Remedy.NEW_CREDENTIALS or self._may_be_keys


def _is_known(kind: str) -> bool:
    table = (_USERS, _CREDENTIALS, _TRY_AGAIN, _NO_SERVER)
    return kind.startswith("KMS.") or any(kind in codes for codes in table)


def remedy_for(kind: str) -> Remedy:
    """Return the class of a code."""
    if kind in _TRY_AGAIN:
        return Remedy.TRY_AGAIN
    if kind in _USERS or kind.startswith("KMS."):
        return Remedy.USERS
    if kind in _CREDENTIALS:
        return Remedy.NEW_CREDENTIALS
    return Remedy.NO_SERVER if kind in _NO_SERVER else Remedy.TRY_AGAIN


def advice_for(kind: str) -> str:
    """Return what a person can do about an error of this code; empty if time alone may help."""
    of_key = _KEY if kind.startswith("KMS.") else ""
    return _USERS.get(kind) or _TRY_AGAIN.get(kind) or of_key or _ADVICE[remedy_for(kind)]
