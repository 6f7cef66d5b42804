"""Small JSON documents with several writers: each replaces only the version that it has read."""

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
    """Another writer replaced the document first."""


@dataclass(frozen=True)
class Document:
    """A document as it was read; `etag` names this version of it."""

    content: dict[str, Any]
    etag: str


def read_document(uri: str) -> Document | None:
    """Read a document; None where there is none.

    Raises:
        StorageError: It cannot be read, or is not a JSON object.
    """
    found = _read_bytes(uri)
    if found is None:
        return None
    data, etag = found
    try:
        content = json.loads(data)
    except ValueError as error:
        raise StorageError(
            f"Cannot read {uri} as JSON: {error}. Restore an earlier version."
        ) from error
    if not isinstance(content, dict):
        raise StorageError(
            f"Cannot use {uri}: it holds a JSON {type(content).__name__}, not an object. Restore "
            "an earlier version."
        )
    return Document(content, etag)


def replace_document(uri: str, content: dict[str, Any], *, expected_etag: str) -> str:
    """Write a document atomically, if it is still the version that was read.

    Args:
        uri: A local path (on a file system with locks), or an object of a store that honours
            If-Match and If-None-Match.
        content: The new content.
        expected_etag: The etag of the version that was read; ABSENT where there was none.

    Returns:
        The new etag.

    Raises:
        ConflictError: Another writer was first; nothing was written.
        StorageError: The document cannot be written.
    """
    data = (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
    remote = parse_remote_uri(uri)
    etag = (
        _replace_local(Path(uri).expanduser(), data, expected_etag)
        if remote is None
        else write_object_if(data, remote, expected_etag=expected_etag)
    )
    if etag is None:
        # If the answer to a write is lost, boto3 writes again and meets its own first write.
        found = _read_bytes(uri)
        if found is not None and found[0] == data:
            return found[1]
        raise ConflictError(
            f"Cannot replace {uri}: another writer changed it after it was read. Run again."
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
        raise StorageError(f"Cannot read {uri}: {error.strerror}. Check the path.") from error
    return data, hashlib.sha256(data).hexdigest()


def _replace_local(path: Path, data: bytes, expected_etag: str) -> str | None:
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The lock is beside the document, because all machines that share the folder must share it.
        with FileLock(path.with_name(f".{path.name}.lock")):
            found = _read_bytes(str(path))
            if (found[1] if found else ABSENT) != expected_etag:
                return None
            write_text(path, data.decode())
    except OSError as error:
        raise StorageError(
            f"Cannot write {path}: {error.strerror}. Choose a folder that can be written."
        ) from error
    return hashlib.sha256(data).hexdigest()
