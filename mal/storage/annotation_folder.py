"""Fetches a bucket folder of annotation files into the cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from mal.errors import StorageError
from mal.redaction import redact_uri
from mal.storage.archives import relative_path_of
from mal.storage.cache import build_folder_once, check_room, fetch_object, key_of
from mal.storage.objects import StoredObject, list_objects
from mal.storage.uris import RemoteUri, parse_remote_uri

ANNOTATION_SUFFIXES = (".json", ".txt", ".xml", ".yaml", ".yml", ".names", ".labels")

_NUM_TRANSFERS = 16


def is_folder_uri(uri: str) -> bool:
    """Return whether a remote URI is that of a folder: its last part has no suffix.

    Raises:
        StorageError: The URI is not valid.
    """
    remote = parse_remote_uri(uri)
    if remote is None:
        return False
    return remote.key.endswith("/") or not PurePosixPath(remote.key).suffix


def fetch_annotation_folder(uri: str) -> Path | None:
    """Return a local folder with the annotation files of a bucket folder, by their suffixes.

    Returns:
        None for a URI without a trailing slash below which there are none: it may be an object.

    Raises:
        StorageError: There are none, or the store cannot be read.
    """
    remote = parse_remote_uri(uri)
    assert remote is not None, "a local folder is not fetched"
    found = list_annotation_files(remote)
    if not found and not uri.endswith("/"):
        return None
    if not found:
        raise StorageError(
            f"Cannot read the annotations {remote}: it holds no file of "
            f"{', '.join(ANNOTATION_SUFFIXES)}. Check bucket and prefix."
        )

    def fill(folder: Path) -> None:
        check_room(folder, sum(stored.size for stored in found), str(remote))
        with ThreadPoolExecutor(_NUM_TRANSFERS) as pool:
            list(pool.map(lambda stored: fetch_object(stored, folder / name_of(stored)), found))

    def name_of(stored: StoredObject) -> PurePosixPath:
        return relative_path_of(stored.uri.key[len(remote.folder_prefix) :], str(remote))

    versions = [f"{stored.uri.key} {stored.etag} {stored.size}" for stored in found]
    key = key_of("annotations", remote.bucket, remote.folder_prefix, *versions)
    return build_folder_once(key, str(remote), fill)


def last_write_s(uri: str) -> float:
    """Return the time of the last write to a local file, or to a file of a folder.

    Raises:
        StorageError: There is no such file, or the store cannot be read.
    """
    remote = parse_remote_uri(uri)
    if remote is not None:
        found = list_annotation_files(remote)
        times = [stored.modified.timestamp() for stored in found]
    else:
        path = Path(uri).expanduser()
        files = path.rglob("*") if path.is_dir() else [path]
        times = [file.stat().st_mtime for file in files if file.is_file()]
    if not times:
        raise StorageError(f"Cannot read {redact_uri(uri)}: it has no annotations. Check the path.")
    return max(times)


def list_annotation_files(remote: RemoteUri) -> list[StoredObject]:
    """List the objects of a bucket folder that hold annotations, by their suffixes."""
    return [
        stored
        for stored in list_objects(remote)
        if PurePosixPath(stored.uri.key).name.lower().endswith(ANNOTATION_SUFFIXES)
    ]
