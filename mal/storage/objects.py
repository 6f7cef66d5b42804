"""S3 and what speaks its protocol (MinIO, SeaweedFS); boto3 is imported when it is needed.

boto3 reads credentials, region and endpoint itself: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_PROFILE, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL. `minio://` is the scheme of
KFP's own artifacts: without an endpoint in the AWS variables it goes to
MINIO_SERVICE_SERVICE_HOST/PORT, which Kubernetes injects beside the `minio-service`, else to that
service's default name.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.errors import MissingExtraError, StorageError
from mal.storage.uris import RemoteUri, redact_text

KFP_MINIO_ENDPOINT = "http://minio-service.kubeflow:9000"

_MISSING_CODES = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NotFound"})
_REFUSED_CODES = frozenset(
    {"401", "403", "AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken",
     "SignatureDoesNotMatch"}
)  # fmt: skip
_CONFLICT_CODES = frozenset(
    {"412", "PreconditionFailed", "409", "ConditionalRequestConflict", "NoSuchKey"}
)
_MAX_ATTEMPTS = 5
_CONNECT_TIMEOUT_S = 10
_PROGRESS_INTERVAL_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredObject:
    """What the store says of an object.

    Attributes:
        uri: Where it is.
        size: Bytes.
        etag: Changes with the content; not always an MD5.
        modified: Time of its last write, with time zone.
        version_id: Of a bucket with versioning, when the store was asked for this one object;
            else ''.
    """

    uri: RemoteUri
    size: int
    etag: str
    modified: datetime.datetime
    version_id: str = ""


def endpoint_of(scheme: str) -> str | None:
    """Return the endpoint that boto3 would not find by itself, or None to leave it to boto3."""
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if scheme != "minio" or given:
        return None
    host = os.environ.get("MINIO_SERVICE_SERVICE_HOST")
    if not host:
        return KFP_MINIO_ENDPOINT
    return f"http://{host}:{os.environ.get('MINIO_SERVICE_SERVICE_PORT') or 9000}"


def head_object(uri: RemoteUri) -> StoredObject:
    """Ask for size and etag of one object.

    Raises:
        StorageError: It is missing or may not be read.
    """
    with _explaining(uri, "read"):
        answer = _client(uri.scheme).head_object(Bucket=uri.bucket, Key=uri.key)
    return StoredObject(
        uri, int(answer["ContentLength"]), answer["ETag"].strip('"'), answer["LastModified"],
        answer.get("VersionId", ""),
    )  # fmt: skip


def list_objects(folder: RemoteUri) -> list[StoredObject]:
    """List every object below a folder, sorted by key; placeholders of folders are left out."""
    found = []
    with _explaining(folder, "list"):
        pages = _client(folder.scheme).get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=folder.bucket, Prefix=folder.folder_prefix):
            found += [
                StoredObject(
                    RemoteUri(folder.scheme, folder.bucket, entry["Key"]),
                    int(entry["Size"]),
                    entry["ETag"].strip('"'),
                    entry["LastModified"],
                )
                for entry in page.get("Contents", ())
                if not entry["Key"].endswith("/")
            ]
    return sorted(found, key=lambda stored: stored.uri.key)


def download_object(stored: StoredObject, path: Path) -> None:
    """Write an object to `path` and check its size.

    Raises:
        StorageError: It cannot be read, it changed meanwhile, or the disk is full.
    """
    with _explaining(stored.uri, "read"):
        _client(stored.uri.scheme).download_file(
            stored.uri.bucket, stored.uri.key, str(path),
            Callback=_progress_logger(f"fetching {stored.uri}", stored.size),
        )  # fmt: skip
    size = path.stat().st_size
    if size != stored.size:
        raise StorageError(
            f"{stored.uri} must have {stored.size} bytes, got {size}. It changed meanwhile or the "
            "connection broke: run again."
        )


def upload_object(path: Path, uri: RemoteUri) -> None:
    """Write a local file to an object.

    Raises:
        StorageError: It cannot be written.
    """
    with _explaining(uri, "write"):
        _client(uri.scheme).upload_file(
            str(path), uri.bucket, uri.key,
            Callback=_progress_logger(f"writing {uri}", path.stat().st_size),
        )  # fmt: skip


def read_object(uri: RemoteUri) -> tuple[bytes, str] | None:
    """Return content and etag of a small object; None where there is none.

    Raises:
        StorageError: It may not be read.
    """
    client = _client(uri.scheme)
    with _explaining(uri, "read"):
        try:
            answer = client.get_object(Bucket=uri.bucket, Key=uri.key)
        except client.exceptions.NoSuchKey:
            return None
        return answer["Body"].read(), answer["ETag"].strip('"')


def write_object_if(content: bytes, uri: RemoteUri, *, expected_etag: str) -> str | None:
    """Write a small object if the store still has what is expected.

    Args:
        content: The whole object.
        uri: Where.
        expected_etag: Of what is to be replaced; '': there must be nothing.

    Returns:
        The new etag; None where the store has something else, and nothing was written.

    Raises:
        StorageError: It cannot be written.
    """
    from botocore.exceptions import ClientError

    condition = {"IfMatch": expected_etag} if expected_etag else {"IfNoneMatch": "*"}
    with _explaining(uri, "write"):
        try:
            answer = _client(uri.scheme).put_object(
                Bucket=uri.bucket, Key=uri.key, Body=content, **condition
            )
        except ClientError as error:
            # S3 answers NoSuchKey to If-Match where the object is gone, and 409 to a writer that
            # lost to another one at the same moment.
            if error.response.get("Error", {}).get("Code") in _CONFLICT_CODES:
                return None
            raise
    return str(answer["ETag"].strip('"'))


def write_object(content: bytes, uri: RemoteUri) -> None:
    """Write a small object, whatever is there.

    Raises:
        StorageError: It cannot be written.
    """
    with _explaining(uri, "write"):
        _client(uri.scheme).put_object(Bucket=uri.bucket, Key=uri.key, Body=content)


def delete_object(uri: RemoteUri) -> None:
    """Delete an object; one that is not there counts as deleted.

    Raises:
        StorageError: It may not be deleted.
    """
    with _explaining(uri, "delete"):
        _client(uri.scheme).delete_object(Bucket=uri.bucket, Key=uri.key)


def age_of_object_s(uri: RemoteUri) -> float | None:
    """Return how long ago an object was written, by the store's own clock.

    None where there is no object, or the store does not say what time it is.

    Raises:
        StorageError: It may not be read.
    """
    client = _client(uri.scheme)
    with _explaining(uri, "read"):
        try:
            answer = client.get_object(Bucket=uri.bucket, Key=uri.key)
        except client.exceptions.NoSuchKey:
            return None
        answer["Body"].close()
    try:
        text = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
        now = email.utils.parsedate_to_datetime(text)
        return max(0.0, float((now - answer["LastModified"]).total_seconds()))
    except (KeyError, TypeError, ValueError):
        return None


def store_address(scheme: str) -> str:
    """Return the endpoint of the store that a scheme stands for: two stores have two.

    Raises:
        StorageError: The client is not configured.
    """
    return str(_client(scheme).meta.endpoint_url).rstrip("/").lower()


def copy_object(source: RemoteUri, target: RemoteUri) -> None:
    """Copy inside one store; the bytes do not travel through this machine."""
    with _explaining(target, "write"):
        _client(target.scheme).copy(
            {"Bucket": source.bucket, "Key": source.key}, target.bucket, target.key
        )


def _client(scheme: str) -> Any:
    return _client_of_process(os.getpid(), endpoint_of(scheme))


@functools.lru_cache(maxsize=4)
def _client_of_process(pid: int, endpoint: str | None) -> Any:
    """Make a client, one a process: connections do not survive a fork (`pid` is only a key)."""
    del pid
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise MissingExtraError("boto3", "s3") from error
    config = Config(
        retries={"mode": "standard", "max_attempts": _MAX_ATTEMPTS},
        connect_timeout=_CONNECT_TIMEOUT_S,
        # Older MinIO and SeaweedFS refuse the checksum trailers that boto3 sends by default.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    except (BotoCoreError, ValueError) as error:
        raise StorageError(
            f"the S3 client must be configured by the AWS_* variables, got: "
            f"{redact_text(str(error))}. Mend them."
        ) from error


@contextlib.contextmanager
def _explaining(uri: RemoteUri, verb: str) -> Iterator[None]:
    """Turn what boto3 raises into one sentence that names the object and the remedy."""
    try:
        import boto3.exceptions
        from botocore import exceptions as boto
    except ImportError as error:
        raise MissingExtraError("boto3", "s3") from error
    try:
        yield
    except boto.ClientError as error:
        raise StorageError(_describe_refusal(error, uri, verb)) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise StorageError(
            f"credentials must be given to {verb} {uri}, got none that are complete. "
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    except boto3.exceptions.Boto3Error as error:
        cause = error.__context__
        reason = (
            _describe_refusal(cause, uri, verb)
            if isinstance(cause, boto.ClientError)
            else f"{uri} must be open to {verb}, got: {redact_text(str(error))}. "
            "Run again, or check the store."
        )
        raise StorageError(reason) from error
    except boto.BotoCoreError as error:
        raise StorageError(
            f"{uri} must be within reach to {verb}, got: {redact_text(str(error))}. "
            "Check AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL and the network."
        ) from error
    except OSError as error:
        raise StorageError(
            f"a local file must be readable and have room to {verb} {uri}, got: {error}."
        ) from error


def _describe_refusal(error: Any, uri: RemoteUri, verb: str) -> str:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _MISSING_CODES:
        return f"{uri} must exist to {verb} it, got {code}. Check bucket and key."
    if code in _REFUSED_CODES:
        return (
            f"credentials must allow to {verb} {uri}, got {code}. Check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and the bucket's policy."
        )
    return f"{uri} must be open to {verb}, got {code}. Run again, or check the store."


def _progress_logger(what: str, num_bytes: int) -> Callable[[int], None]:
    """Return a callback for boto3's threads that logs rate and time left, now and then."""
    lock = threading.Lock()
    start_s = last_s = time.monotonic()
    num_done = 0

    def count(num_new: int) -> None:
        nonlocal last_s, num_done
        with lock:
            num_done += num_new
            now_s = time.monotonic()
            if now_s - last_s < _PROGRESS_INTERVAL_S or not num_done:
                return
            last_s = now_s
            rate = num_done / (now_s - start_s)
            left_s = (num_bytes - num_done) / rate
            _log.info(
                "%s: %d of %d MB, %.1f MB/s, %d s left",
                what, num_done // 10**6, num_bytes // 10**6, rate / 1e6, left_s,
            )  # fmt: skip

    return count
