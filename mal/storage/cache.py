"""The local cache of remote files and unpacked archives, shared by the processes of a machine.

Layout below `MAL_CACHE_DIR` (default: the user's cache folder):
    files/<key>/<name>      one fetched object; key = uri + etag + size
    objects/<kk>/<key>      objects of remote folders
    folders/<key>/          an unpacked archive or a remote folder; <key>.complete lies beside it
    annotations/<key>/      annotation files of other formats, converted to COCO
    results/<key>/<name>/   staging of a remote results folder
    locks/<key>.lock
A final name appears by a rename only. If a process is killed, the next one that gets the lock
removes its partial files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from mal.artifacts import write_json, writing_atomically
from mal.errors import StorageError
from mal.redaction import redact_uri
from mal.storage.objects import StoredObject, download_object, head_object
from mal.storage.uris import RemoteUri, parse_remote_uri

CACHE_VARIABLE = "MAL_CACHE_DIR"

_MAX_NAME_LENGTH = 200
_KEY_LENGTH = 32
_RESERVED_PART_OF_DISK = 0.01

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


def cache_dir() -> Path:
    """Return MAL_CACHE_DIR, else the user's own cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("mal"))


def key_of(*values: object) -> str:
    """Return a short digest of some values that can be a file name."""
    return hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()[:_KEY_LENGTH]


def key_of_object(stored: StoredObject) -> str:
    """Return the digest of an object's URI and content."""
    return key_of(stored.uri.bucket, stored.uri.key, stored.etag, stored.size)


def fetch_file(uri: str) -> Path:
    """Return the local file of a local path, or of an `s3://` or `minio://` object.

    Raises:
        StorageError: The file is missing, access is denied, or the cache is full.
        MissingExtraError: boto3 is needed and not installed.
    """
    remote = parse_remote_uri(uri)
    if remote is None:
        path = Path(uri).expanduser()
        if not path.is_file():
            reason = "it is a folder" if path.is_dir() else "it does not exist"
            raise StorageError(f"Cannot read the file {uri}: {reason}. Check the path.")
        return path
    if not remote.key or remote.key.endswith("/"):
        raise StorageError(f"Cannot read {remote}: it is a folder. Give the key of one object.")
    stored = head_object(remote)
    path = _file_of(stored)
    with locked(path.parent.name):
        if not is_complete(path, stored):
            _log.info("fetching %s (%.1f MB) into %s", remote, stored.size / 1e6, path)
            fetch_object(stored, path)
    return path


def fetched_file(remote: RemoteUri) -> Path | None:
    """Return the cached file of an object's present content; None if it was not fetched."""
    stored = head_object(remote)
    path = _file_of(stored)
    return path if is_complete(path, stored) else None


def _file_of(stored: StoredObject) -> Path:
    name = PurePosixPath(stored.uri.key).name[-_MAX_NAME_LENGTH:]
    safe_name = "object" if name in ("", ".", "..") else name
    return cache_dir() / "files" / key_of_object(stored) / safe_name


def is_complete(path: Path, stored: StoredObject) -> bool:
    """Return whether a cached file has the object's size; its rename proves that it was whole."""
    return path.is_file() and path.stat().st_size == stored.size


def fetch_object(stored: StoredObject, path: Path) -> None:
    """Download an object atomically."""
    check_room(path.parent, stored.size, str(stored.uri))
    with wrap_cache_errors(str(stored.uri)), writing_atomically(path) as temporary:
        download_object(stored, temporary)


def build_folder_once(
    key: str, source: str, fill: Callable[[Path], Mapping[str, str] | None]
) -> Path:
    """Return the cached folder `key`; the first process fills it, the others wait.

    Args:
        key: The digest of the content.
        source: For messages and the completion marker.
        fill: Writes the content into an empty folder, which is renamed afterwards. Its result
            becomes part of the marker.
    """
    folder, marker = cache_dir() / "folders" / key, _marker_of(key)
    with locked(key):
        if folder.is_dir() and marker.is_file():
            return folder
        with wrap_cache_errors(source):
            content = fill_folder(folder, fill)
            write_json(marker, {"source": redact_uri(source), **(content or {})})
    return folder


def read_marker(key: str) -> Mapping[str, str]:
    """Return the completion marker of a cached folder; {} if it was not built."""
    try:
        content: Mapping[str, str] = json.loads(_marker_of(key).read_bytes())
    except (OSError, ValueError):
        return {}
    return content


def _marker_of(key: str) -> Path:
    return cache_dir() / "folders" / f"{key}.complete"


def fill_folder(folder: Path, fill: Callable[[Path], _T]) -> _T:
    """Replace a folder by what `fill` writes; the new one appears by a rename."""
    partial = partial_of(folder)
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        result = fill(partial)
        partial.rename(folder)
        return result
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_of(folder: Path) -> Path:
    """Return the path at which a folder is filled."""
    return folder.with_name(f"{folder.name}.part")


@contextlib.contextmanager
def locked(key: str) -> Iterator[None]:
    """Hold the lock of a cache entry; the kernel frees it when the process ends."""
    from filelock import FileLock

    folder = cache_dir() / "locks"
    with wrap_cache_errors("its locks"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        lock.acquire()
    try:
        for leftover in (cache_dir() / "files" / key).glob(".*.part*"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def check_room(folder: Path, num_bytes: int, what: str) -> None:
    """Check that the disk has room, with a small reserve."""
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    num_free = max(0, disk.free - int(disk.total * _RESERVED_PART_OF_DISK))
    if num_bytes > num_free:
        raise StorageError(
            f"The cache folder {cache_dir()} has no room for {num_bytes / 1e6:.1f} MB of {what}: "
            f"{num_free / 1e6:.1f} MB are free. Free some, or set {CACHE_VARIABLE} to another disk."
        )


@contextlib.contextmanager
def wrap_cache_errors(what: str) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into a StorageError with the cache folder."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"The cache folder {cache_dir()} cannot store {redact_uri(what)}: "
            f"{error.strerror or error}. Free some room, or set {CACHE_VARIABLE} to another disk."
        ) from error
