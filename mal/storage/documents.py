"""Small JSON documents that several writers share: one replaces only what it has read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.artifacts import write_text
from mal.errors import StorageError
from mal.storage.objects import read_object, write_object_if
from mal.storage.uris import parse_remote_uri

ABSENT = ""
"""The etag of a document that does not exist."""


class ConflictError(StorageError):
    """Another writer was faster."""


@dataclass(frozen=True)
class Document:
    """A document as it was read; `etag` names this state of it."""

    content: dict[str, Any]
    etag: str


def read_document(uri: str) -> Document | None:
    """Read a document; None where there is none.

    Raises:
        StorageError: It cannot be read, or is no JSON object.
    """
    found = _read_bytes(uri)
    if found is None:
        return None
    data, etag = found
    try:
        content = json.loads(data)
    except ValueError as error:
        raise StorageError(f"{uri} must be JSON, got {error}. Restore an earlier one.") from error
    if not isinstance(content, dict):
        raise StorageError(
            f"{uri} must hold a JSON object, got a {type(content).__name__}. Restore an older one."
        )
    return Document(content, etag)


def replace_document(uri: str, content: dict[str, Any], *, expected_etag: str) -> str:
    """Write a document in one piece, if nobody else has written it since it was read.

    Args:
        uri: A local path (on a file system with locks), or an object of a store that honours
            If-Match and If-None-Match.
        content: The new content.
        expected_etag: Of the document that was read; ABSENT where there was none.

    Returns:
        The new etag.

    Raises:
        ConflictError: Somebody has; nothing was written.
        StorageError: It cannot be written.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    remote = parse_remote_uri(uri)
    etag = (
        _replace_local(Path(uri).expanduser(), text, expected_etag)
        if remote is None
        else write_object_if(text.encode(), remote, expected_etag=expected_etag)
    )
    if etag is None:
        # Where the answer to a write is lost, boto3 writes again and meets what it wrote itself.
        found = _read_bytes(uri)
        if found is not None and found[0] == text.encode():
            return found[1]
        raise ConflictError(
            f"{uri} must be unchanged since it was read, got another writer's. Run again."
        )
    return etag


def _read_bytes(uri: str) -> tuple[bytes, str] | None:
    remote = parse_remote_uri(uri)
    if remote is not None:
        return read_object(remote)
    try:
        data = Path(uri).expanduser().read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{uri} must be readable, got {error.strerror}.") from error
    return data, hashlib.sha256(data).hexdigest()


def _replace_local(path: Path, text: str, expected_etag: str) -> str | None:
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the document and not in the cache: all who share the folder must share the lock.
        with FileLock(path.with_name(f".{path.name}.lock")):
            found = _read_bytes(str(path))
            if (found[1] if found else ABSENT) != expected_etag:
                return None
            write_text(path, text)
    except OSError as error:
        raise StorageError(
            f"{path} must lie in a folder that can be written, got {error.strerror}."
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()
