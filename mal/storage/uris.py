"""Remote URIs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mal.errors import StorageError
from mal.redaction import holds_secret, redact_uri

REMOTE_SCHEMES = ("s3", "minio")

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", re.DOTALL)


@dataclass(frozen=True)
class RemoteUri:
    """An object, or a folder of objects, in a bucket.

    Attributes:
        scheme: s3 or minio.
        key: Object key without a leading slash; '' is the whole bucket.
    """

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return redact_uri(f"{self.scheme}://{self.bucket}/{self.key}")

    def child(self, name: str) -> RemoteUri:
        """Return the object `name` in this folder."""
        return RemoteUri(self.scheme, self.bucket, f"{self.folder_prefix}{name}")

    @property
    def folder_prefix(self) -> str:
        """The key with one trailing slash; '' for the whole bucket."""
        return f"{self.key.rstrip('/')}/" if self.key.strip("/") else ""


def parse_remote_uri(uri: str) -> RemoteUri | None:
    """Read an `s3://` or `minio://` URI; return None for a local path.

    Raises:
        StorageError: The URI has another scheme, no bucket, or credentials.
    """
    match = _SCHEME.match(uri)
    if match is None:
        return None
    scheme, rest = match[1].lower(), match[2]
    if scheme not in REMOTE_SCHEMES:
        raise StorageError(
            f"uri must be a local path, s3:// or minio://, got {redact_uri(uri)}. "
            "Copy it to one of these."
        )
    bucket, _, key = rest.partition("/")
    if "@" in bucket or holds_secret(uri):
        raise StorageError(
            f"uri must not carry credentials, got some in {redact_uri(uri)}. "
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if not bucket:
        raise StorageError(f"uri must name a bucket, got {redact_uri(uri)}. Use s3://bucket/key.")
    return RemoteUri(scheme, bucket, key.lstrip("/"))
