"""S3 and stores with its protocol (MinIO, SeaweedFS); boto3 is imported when it is needed.

`mal.storage.stores` decides which store a bucket is in. A store that does not answer is asked again
for as long as `mal.storage.patience` allows; what it refuses fails at once.

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mal.errors import MissingExtraError, StorageError, StoreAwayError
from mal.redaction import redact_text
from mal.storage.kfp_launcher import is_in_pod
from mal.storage.patience import asking_again
from mal.storage.stores import StoreSettings, store_of
from mal.storage.uris import RemoteUri

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
# With status 400: a stalled upload, too many requests, two writers of one object.
_BUSY_CODES = frozenset(
    {"OperationAborted", "RequestTimeout", "RequestTimeoutException", "Throttling",
     "ThrottlingException"}
)  # fmt: skip
_MAX_ATTEMPTS = 3
_CONNECT_TIMEOUT_S = 10
_PROGRESS_INTERVAL_S = 10.0
_ONE_REQUEST_BYTES = 8 << 20  # boto3 reads larger objects in parts

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


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


def head_object(uri: RemoteUri) -> StoredObject:
    """Ask the store for the description of one object."""
    answer = _ask(uri, "read", lambda client: client.head_object(Bucket=uri.bucket, Key=uri.key))
    return StoredObject(
        uri, int(answer["ContentLength"]), answer["ETag"].strip('"'), answer["LastModified"],
        answer.get("VersionId", ""),
    )  # fmt: skip


def list_objects(folder: RemoteUri) -> list[StoredObject]:
    """List every object below a folder, sorted by key, without the empty objects for folders."""

    def list_all(client: Any) -> list[StoredObject]:
        pages = client.get_paginator("list_objects_v2")
        return [
            StoredObject(
                RemoteUri(folder.scheme, folder.bucket, entry["Key"]),
                int(entry["Size"]),
                entry["ETag"].strip('"'),
                entry["LastModified"],
            )
            for page in pages.paginate(Bucket=folder.bucket, Prefix=folder.folder_prefix)
            for entry in page.get("Contents", ())
            if not entry["Key"].endswith("/")
        ]

    return sorted(_ask(folder, "list", list_all), key=lambda stored: stored.uri.key)


def download_object(stored: StoredObject, path: Path) -> None:
    """Write an object to `path` and check its size."""
    uri = stored.uri

    def download(client: Any) -> None:
        from boto3.s3.transfer import TransferConfig

        client.download_file(
            uri.bucket, uri.key, str(path),
            Callback=_progress_logger(f"fetching {uri}", stored.size),
            # Starting boto3's threads takes longer than fetching a photograph.
            Config=TransferConfig(use_threads=stored.size > _ONE_REQUEST_BYTES),
        )  # fmt: skip

    _ask(uri, "read", download)
    size = path.stat().st_size
    if size != stored.size:
        raise StorageError(
            f"Cannot read {uri}: {size} of {stored.size} bytes arrived. The object changed during "
            "the download, or the connection broke. Run again."
        )


def upload_object(path: Path, uri: RemoteUri) -> None:
    """Write a local file to an object."""

    def upload(client: Any) -> None:
        progress = _progress_logger(f"writing {uri}", path.stat().st_size)
        client.upload_file(str(path), uri.bucket, uri.key, Callback=progress)

    _ask(uri, "write", upload)


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
    def get(client: Any) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = client.get_object(Bucket=uri.bucket, Key=uri.key)
        except client.exceptions.NoSuchKey:
            return None
        return answer | {"Body": answer["Body"].read()}

    return _ask(uri, "read", get)


def write_object_if(content: bytes, uri: RemoteUri, *, expected_etag: str) -> str | None:
    """Write a small object if the store still has the expected one ('': none).

    Returns:
        The new etag; None where the store has another object. Nothing is written then.
    """
    condition = {"IfMatch": expected_etag} if expected_etag else {"IfNoneMatch": "*"}

    def write(client: Any) -> str | None:
        from botocore.exceptions import ClientError

        try:
            answer = client.put_object(Bucket=uri.bucket, Key=uri.key, Body=content, **condition)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in _CONFLICT_CODES:
                return None
            raise
        return str(answer["ETag"].strip('"'))

    return _ask(uri, "write", write)


def write_object(content: bytes, uri: RemoteUri) -> None:
    """Write a small object and replace the one that is there."""
    _ask(
        uri, "write", lambda client: client.put_object(Bucket=uri.bucket, Key=uri.key, Body=content)
    )


def delete_object(uri: RemoteUri) -> None:
    """Delete an object; a missing one is no error."""
    _ask(uri, "delete", lambda client: client.delete_object(Bucket=uri.bucket, Key=uri.key))


def copy_object(source: RemoteUri, target: RemoteUri) -> None:
    """Copy inside one store; the content does not pass through this machine."""
    content = {"Bucket": source.bucket, "Key": source.key}
    _ask(target, "write", lambda client: client.copy(content, target.bucket, target.key))


def store_address(uri: RemoteUri) -> str:
    """Return the endpoint of the store of a bucket."""
    settings = asking_again(lambda: store_of(uri), f"{uri.scheme}://{uri.bucket}")
    return str(_client_of(settings).meta.endpoint_url).rstrip("/").lower()


def _ask(uri: RemoteUri, verb: str, request: Callable[[Any], _T]) -> _T:
    """Send a request to the store of `uri`, again while the store is away.

    Raises:
        StorageError: The store refused the request, or was away for too long.
    """

    def ask() -> _T:
        settings = store_of(uri)
        with _wrap_store_errors(uri, verb, settings):
            return request(_client_of(settings))

    return asking_again(ask, f"{uri.scheme}://{uri.bucket}")


def _client_of(settings: StoreSettings) -> Any:
    return _client_of_process(os.getpid(), settings)


@functools.lru_cache(maxsize=16)
def _client_of_process(pid: int, settings: StoreSettings) -> Any:
    """Create the client of one process: connections do not survive a fork (`pid` is only a key)."""
    del pid
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise MissingExtraError("boto3", "s3") from error
    options: dict[str, Any] = {}
    if settings.is_path_style is not None:
        options["s3"] = {"addressing_style": "path" if settings.is_path_style else "virtual"}
    config = Config(
        retries={"mode": "standard", "max_attempts": _MAX_ATTEMPTS},
        connect_timeout=_CONNECT_TIMEOUT_S,
        # Older MinIO and SeaweedFS refuse the checksum trailers that boto3 sends by default.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=not settings.is_of_boto3,
        **options,
    )
    arguments = {} if settings.is_of_boto3 else _client_arguments(settings)
    try:
        return boto3.session.Session().client("s3", config=config, **arguments)
    except (BotoCoreError, ValueError) as error:
        raise StorageError(
            f"Cannot create an S3 client: {redact_text(f'{error}. {settings.endpoint_source}')} "
            f"Its keys come from {settings.keys_source}. Fix them."
        ) from error


def _client_arguments(settings: StoreSettings) -> dict[str, str]:
    arguments = {
        "endpoint_url": settings.endpoint,
        # A store behind an endpoint signs with any region; AWS_REGION may not be set.
        "region_name": settings.region or ("us-east-1" if settings.endpoint else ""),
    }
    if settings.keys is not None:
        arguments |= {
            "aws_access_key_id": settings.keys.access_key,
            "aws_secret_access_key": settings.keys.secret_key,
            "aws_session_token": settings.keys.session_token,
        }
    return {name: value for name, value in arguments.items() if value}


@contextlib.contextmanager
def _wrap_store_errors(uri: RemoteUri, verb: str, settings: StoreSettings) -> Iterator[None]:
    """Turn boto3's errors into a StorageError with object, reason, setting and remedy."""
    try:
        from boto3.exceptions import Boto3Error
        from botocore import exceptions as boto
    except ImportError as error:
        raise MissingExtraError("boto3", "s3") from error
    try:
        yield
    except (boto.ClientError, boto.BotoCoreError, Boto3Error, OSError) as error:
        cause: BaseException = error
        # Boto3Error of a transfer hides the answer of the store in its context.
        if isinstance(error.__context__, boto.ClientError | boto.BotoCoreError):
            cause = error.__context__
        where = redact_text(f"{settings.endpoint_source} {settings.remedy}.")
        error_type: type[StorageError] = StorageError
        if isinstance(cause, boto.ClientError):
            reason = _describe_answer(
                str(cause.response.get("Error", {}).get("Code", "")), settings
            )
            error_type = StoreAwayError if _is_overloaded(cause.response) else StorageError
        elif isinstance(cause, boto.NoCredentialsError | boto.PartialCredentialsError):
            keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            if is_in_pod():
                keys = "MAL_S3_ACCESS_KEY_ID and MAL_S3_SECRET_ACCESS_KEY in Secret mal-s3"
            reason = f"no complete credentials are set. Set {keys}"
        elif isinstance(cause, boto.BotoCoreError | Boto3Error):
            text = redact_text(str(cause)).rstrip(".")
            reason = f"{text}. Check that the store runs, and the network"
            error_type = StoreAwayError if _is_absence(cause) else StorageError
        else:
            reason = f"a local file failed: {cause}. Check its permissions and free disk space"
            where = ""
        raise error_type(f"Cannot {verb} {uri}: {reason}. {where}".rstrip()) from error


def _is_overloaded(answer: Mapping[str, Any]) -> bool:
    """Whether the store answers that it cannot work now."""
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = answer.get("Error", {}).get("Code", "")
    return status >= 500 or status in (408, 429) or code in _BUSY_CODES


def _is_absence(error: BaseException) -> bool:
    """Whether nothing answered, or the connection broke; not a certificate or a bad URL."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as boto

    if isinstance(error, boto.SSLError):
        return "CERTIFICATE" not in str(error).upper()
    return isinstance(
        error,
        boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError | Boto3Error,
    )


def _describe_answer(code: str, settings: StoreSettings) -> str:
    if code in _MISSING_CODES:
        return f"it does not exist ({code}). Check bucket and key"
    if code in _DENIED_CODES:
        return (
            f"the object store denied access ({code}). Check the keys, which come from "
            f"{settings.keys_source}, and the bucket's policy"
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
