"""The local cache of remote files and unpacked archives: fetched once, by the first process.

Layout below `MAL_CACHE_DIR` (default: the user's cache folder):
    files/<key>/<name>      one fetched object; key = uri + etag + size
    objects/<kk>/<key>      objects of remote folders
    folders/<key>/          an unpacked archive or a remote folder; <key>.complete lies beside it
    results/<key>/<name>/   staging of a remote results folder
    locks/<key>.lock
Final names appear by a rename only. Leftovers of a killed process are removed by the next one that
gets the lock.
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
from mal.storage.objects import StoredObject, download_object, head_object
from mal.storage.uris import RemoteUri, parse_remote_uri, redact_uri

CACHE_VARIABLE = "MAL_CACHE_DIR"

_MAX_NAME_LENGTH = 200
_KEY_LENGTH = 32
_RESERVED_PART_OF_DISK = 0.01

_log = logging.getLogger(__name__)

_Facts = TypeVar("_Facts")


def cache_dir() -> Path:
    """Return the cache folder: MAL_CACHE_DIR, else the user's own."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("mal"))


def key_of(*facts: object) -> str:
    """Return a short file-name-safe digest of some facts."""
    return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:_KEY_LENGTH]


def fetch_file(uri: str) -> Path:
    """Return a local file that holds what `uri` names; a remote one is fetched once.

    Args:
        uri: A local path, or an `s3://` or `minio://` object.

    Raises:
        StorageError: It is missing, may not be read, or the cache cannot hold it.
        MissingExtraError: boto3 is needed and not installed.
    """
    remote = parse_remote_uri(uri)
    if remote is None:
        path = Path(uri).expanduser()
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing there"
            raise StorageError(f"{uri} must be a file, got {found}. Check the path.")
        return path
    if not remote.key or remote.key.endswith("/"):
        raise StorageError(f"{remote} must name one object, got a folder. Give the file's key.")
    stored = head_object(remote)
    path = _place_of(stored)
    with locked(path.parent.name):
        if not is_complete(path, stored):
            _log.info("fetching %s (%.1f MB) into %s", remote, stored.size / 1e6, path)
            fetch_object(stored, path)
    return path


def fetched_file(remote: RemoteUri) -> Path | None:
    """Return the cached file of an object as it is now; None if it was not fetched.

    Raises:
        StorageError: The object cannot be looked at.
    """
    stored = head_object(remote)
    path = _place_of(stored)
    return path if is_complete(path, stored) else None


def _place_of(stored: StoredObject) -> Path:
    key = key_of(stored.uri.bucket, stored.uri.key, stored.etag, stored.size)
    return cache_dir() / "files" / key / _file_name_of(stored.uri.key)


def is_complete(path: Path, stored: StoredObject) -> bool:
    """Whether a cached file has the object's size (a rename put it there, so it was whole)."""
    return path.is_file() and path.stat().st_size == stored.size


def fetch_object(stored: StoredObject, path: Path) -> None:
    """Download an object to `path`, which appears only when it is whole.

    Raises:
        StorageError: It cannot be read, or the cache cannot hold it.
    """
    check_room(path.parent, stored.size, str(stored.uri))
    with wrap_cache_errors(str(stored.uri)), writing_atomically(path) as temporary:
        download_object(stored, temporary)


def build_folder_once(
    key: str, source: str, fill: Callable[[Path], Mapping[str, str] | None]
) -> Path:
    """Return the cached folder `key`; the first process fills it, the others wait.

    Args:
        key: Names the content.
        source: For messages and the completion marker.
        fill: Writes the content into an empty folder, which is renamed when it returns. What it
            returns goes into the marker.
    """
    folder, marker = cache_dir() / "folders" / key, _marker_of(key)
    with locked(key):
        if folder.is_dir() and marker.is_file():
            return folder
        with wrap_cache_errors(source):
            facts = fill_folder(folder, fill)
            write_json(marker, {"source": redact_uri(source), **(facts or {})})
    return folder


def facts_of_folder(key: str) -> Mapping[str, str]:
    """Return what the completion marker of a cached folder says; {} if it was not built."""
    try:
        facts: Mapping[str, str] = json.loads(_marker_of(key).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts


def _marker_of(key: str) -> Path:
    return cache_dir() / "folders" / f"{key}.complete"


def fill_folder(folder: Path, fill: Callable[[Path], _Facts]) -> _Facts:
    """Fill a folder anew; it appears by a rename, once `fill` has returned."""
    partial = partial_of(folder)
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        facts = fill(partial)
        partial.rename(folder)
        return facts
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_of(folder: Path) -> Path:
    """Return where a folder is filled."""
    return folder.with_name(f"{folder.name}.part")


@contextlib.contextmanager
def locked(key: str) -> Iterator[None]:
    """Hold the lock of a cache entry; it is freed when the process ends, however it ends."""
    from filelock import FileLock

    folder = cache_dir() / "locks"
    with wrap_cache_errors("its locks"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        lock.acquire()
    try:
        _remove_partial_files(cache_dir() / "files" / key)
        yield
    finally:
        lock.release()


def check_room(folder: Path, num_bytes: int, what: str) -> None:
    """Refuse to fill the disk.

    Raises:
        StorageError: Less than `num_bytes`, and a small reserve, are free.
    """
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    num_free = max(0, disk.free - int(disk.total * _RESERVED_PART_OF_DISK))
    if num_bytes > num_free:
        raise StorageError(
            f"cache folder {cache_dir()} must have room for {num_bytes / 1e6:.1f} MB of {what}, "
            f"got {num_free / 1e6:.1f} MB free. Free some, or set {CACHE_VARIABLE} to another disk."
        )


@contextlib.contextmanager
def wrap_cache_errors(what: str) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence that names the cache folder."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cache folder {cache_dir()} must take {redact_uri(what)}, got: "
            f"{error.strerror or error}. Free some room, or set {CACHE_VARIABLE} to another disk."
        ) from error


def _file_name_of(key: str) -> str:
    name = PurePosixPath(key).name[-_MAX_NAME_LENGTH:]
    return name if name not in ("", ".", "..") else "object"


def _remove_partial_files(folder: Path) -> None:
    if folder.is_dir():
        for leftover in folder.glob(".*.part*"):
            leftover.unlink(missing_ok=True)
