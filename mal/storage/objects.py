"""S3 and stores with its protocol (MinIO, SeaweedFS); boto3 is imported when it is needed.

boto3 reads credentials, region and endpoint itself: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_PROFILE, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL. `minio://` is the scheme of
KFP's own artifacts. Without an endpoint in the AWS variables it means MINIO_SERVICE_SERVICE_HOST
and _PORT, which Kubernetes injects beside the `minio-service`, or else that service's default name.

Why boto3 and not obstore: docs/decisions/0007-object-store-client.md.
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
_DENIED_CODES = frozenset(
    {"401", "403", "AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken",
     "SignatureDoesNotMatch"}
)  # fmt: skip
# S3 answers NoSuchKey to If-Match where the object is gone, and 409 to a writer that lost to
# another one at the same moment.
_CONFLICT_CODES = frozenset(
    {"412", "PreconditionFailed", "409", "ConditionalRequestConflict", "NoSuchKey"}
)
_MAX_ATTEMPTS = 5
_CONNECT_TIMEOUT_S = 10
_PROGRESS_INTERVAL_S = 10.0
_ONE_REQUEST_BYTES = 8 << 20  # boto3 reads larger objects in parts

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredObject:
    """An object as the store describes it.

    Attributes:
        size: Bytes.
        etag: Changes with the content; not always an MD5.
        modified: Time of the last write, with time zone.
        version_id: '' in a listing, or where the bucket has no versions.
    """

    uri: RemoteUri
    size: int
    etag: str
    modified: datetime.datetime
    version_id: str = ""


def endpoint_of(scheme: str) -> str | None:
    """Return the endpoint of a scheme, or None where boto3 finds it itself."""
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if scheme != "minio" or given:
        return None
    host = os.environ.get("MINIO_SERVICE_SERVICE_HOST")
    if not host:
        return KFP_MINIO_ENDPOINT
    return f"http://{host}:{os.environ.get('MINIO_SERVICE_SERVICE_PORT') or 9000}"


def head_object(uri: RemoteUri) -> StoredObject:
    """Ask the store for the description of one object."""
    with _wrap_store_errors(uri, "read"):
        answer = _client(uri.scheme).head_object(Bucket=uri.bucket, Key=uri.key)
    return StoredObject(
        uri, int(answer["ContentLength"]), answer["ETag"].strip('"'), answer["LastModified"],
        answer.get("VersionId", ""),
    )  # fmt: skip


def list_objects(folder: RemoteUri) -> list[StoredObject]:
    """List every object below a folder, sorted by key, without the empty objects for folders."""
    found = []
    with _wrap_store_errors(folder, "list"):
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
    """Write an object to `path` and check its size."""
    uri = stored.uri
    with _wrap_store_errors(uri, "read"):
        from boto3.s3.transfer import TransferConfig

        _client(uri.scheme).download_file(
            uri.bucket, uri.key, str(path),
            Callback=_progress_logger(f"fetching {uri}", stored.size),
            # Starting boto3's threads takes longer than fetching a photograph.
            Config=TransferConfig(use_threads=stored.size > _ONE_REQUEST_BYTES),
        )  # fmt: skip
    size = path.stat().st_size
    if size != stored.size:
        raise StorageError(
            f"Cannot read {uri}: {size} of {stored.size} bytes arrived. The object changed during "
            "the download, or the connection broke. Run again."
        )


def upload_object(path: Path, uri: RemoteUri) -> None:
    """Write a local file to an object."""
    with _wrap_store_errors(uri, "write"):
        progress = _progress_logger(f"writing {uri}", path.stat().st_size)
        _client(uri.scheme).upload_file(str(path), uri.bucket, uri.key, Callback=progress)


def read_object(uri: RemoteUri) -> tuple[bytes, str] | None:
    """Return content and etag of a small object; None where there is none."""
    answer = _get(uri)
    return None if answer is None else (answer["Body"], answer["ETag"].strip('"'))


def age_of_object_s(uri: RemoteUri) -> float | None:
    """Return the time since an object was written, by the store's own clock.

    None where there is no object, or the answer of the store has no date.
    """
    answer = _get(uri)
    if answer is None:
        return None
    try:
        text = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
        now = email.utils.parsedate_to_datetime(text)
        return max(0.0, float((now - answer["LastModified"]).total_seconds()))
    except (KeyError, TypeError, ValueError):
        return None


def _get(uri: RemoteUri) -> dict[str, Any] | None:
    client = _client(uri.scheme)
    with _wrap_store_errors(uri, "read"):
        try:
            answer: dict[str, Any] = client.get_object(Bucket=uri.bucket, Key=uri.key)
        except client.exceptions.NoSuchKey:
            return None
        return answer | {"Body": answer["Body"].read()}


def write_object_if(content: bytes, uri: RemoteUri, *, expected_etag: str) -> str | None:
    """Write a small object if the store still has the expected one ('': none).

    Returns:
        The new etag; None where the store has another object. Nothing is written then.
    """
    from botocore.exceptions import ClientError

    condition = {"IfMatch": expected_etag} if expected_etag else {"IfNoneMatch": "*"}
    with _wrap_store_errors(uri, "write"):
        try:
            answer = _client(uri.scheme).put_object(
                Bucket=uri.bucket, Key=uri.key, Body=content, **condition
            )
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in _CONFLICT_CODES:
                return None
            raise
    return str(answer["ETag"].strip('"'))


def write_object(content: bytes, uri: RemoteUri) -> None:
    """Write a small object and replace the one that is there."""
    with _wrap_store_errors(uri, "write"):
        _client(uri.scheme).put_object(Bucket=uri.bucket, Key=uri.key, Body=content)


def delete_object(uri: RemoteUri) -> None:
    """Delete an object; a missing one is no error."""
    with _wrap_store_errors(uri, "delete"):
        _client(uri.scheme).delete_object(Bucket=uri.bucket, Key=uri.key)


def copy_object(source: RemoteUri, target: RemoteUri) -> None:
    """Copy inside one store; the content does not pass through this machine."""
    with _wrap_store_errors(target, "write"):
        _client(target.scheme).copy(
            {"Bucket": source.bucket, "Key": source.key}, target.bucket, target.key
        )


def store_address(scheme: str) -> str:
    """Return the endpoint of a scheme's store."""
    return str(_client(scheme).meta.endpoint_url).rstrip("/").lower()


def _client(scheme: str) -> Any:
    return _client_of_process(os.getpid(), endpoint_of(scheme))


@functools.lru_cache(maxsize=4)
def _client_of_process(pid: int, endpoint: str | None) -> Any:
    """Create the client of one process: connections do not survive a fork (`pid` is only a key)."""
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
            f"Cannot create an S3 client from the AWS_* variables: {redact_text(str(error))}. "
            "Fix them."
        ) from error


@contextlib.contextmanager
def _wrap_store_errors(uri: RemoteUri, verb: str) -> Iterator[None]:
    """Turn boto3's errors into a StorageError with object, reason and remedy."""
    try:
        from boto3.exceptions import Boto3Error
        from botocore import exceptions as boto
    except ImportError as error:
        raise MissingExtraError("boto3", "s3") from error
    try:
        yield
    except (boto.ClientError, boto.BotoCoreError, Boto3Error, OSError) as error:
        # Boto3Error of a transfer hides the answer of the store in its context.
        cause = error.__context__ if isinstance(error, Boto3Error) else error
        if isinstance(cause, boto.ClientError):
            reason = _describe_answer(str(cause.response.get("Error", {}).get("Code", "")))
        elif isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
            reason = (
                "no complete credentials are set. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        elif isinstance(error, Boto3Error):
            reason = f"{redact_text(str(error))}. Retry, or check the store"
        elif isinstance(error, boto.BotoCoreError):
            reason = (
                f"{redact_text(str(error))}. Check AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL and the "
                "network"
            )
        else:
            reason = f"a local file failed: {error}. Check its permissions and free disk space"
        raise StorageError(f"Cannot {verb} {uri}: {reason}.") from error


def _describe_answer(code: str) -> str:
    if code in _MISSING_CODES:
        return f"it does not exist ({code}). Check bucket and key"
    if code in _DENIED_CODES:
        return (
            f"the object store denied access ({code}). Check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and the bucket's policy"
        )
    return f"the object store answered {code}. Retry, or check the store"


def _progress_logger(what: str, num_bytes: int) -> Callable[[int], None]:
    """Return a callback for boto3's threads that logs rate and time left every few seconds."""
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
