"""Files and folders at a place that may be a local folder or `s3://`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from mal.artifacts import writing_atomically
from mal.errors import StorageError
from mal.storage.objects import list_objects, upload_object
from mal.storage.uris import parse_remote_uri


def child_uri(folder: str, *names: str) -> str:
    """Return the uri of something below a folder."""
    return "/".join([folder.rstrip("/"), *names])


def list_files(folder: str) -> dict[str, int]:
    """Return size by name, relative to the folder; a folder that is not there has none."""
    remote = parse_remote_uri(folder)
    if remote is not None:
        start = len(remote.folder_prefix)
        return {stored.uri.key[start:]: stored.size for stored in list_objects(remote)}
    root = Path(folder).expanduser()
    return {
        path.relative_to(root).as_posix(): path.stat().st_size
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def put_file(path: Path, uri: str) -> None:
    """Copy a local file to a place; it appears there whole or not at all.

    Raises:
        StorageError: It cannot be written.
    """
    remote = parse_remote_uri(uri)
    if remote is not None:
        upload_object(path, remote)
        return
    try:
        with writing_atomically(Path(uri).expanduser()) as temporary:
            shutil.copyfile(path, temporary)
    except OSError as error:
        raise StorageError(
            f"{uri} must lie in a folder that can be written, got {error.strerror}."
        ) from error


def put_files(folder: Path, names: Iterable[str], uri: str) -> None:
    """Copy those files of a local folder that exist to a place.

    Raises:
        StorageError: One cannot be written.
    """
    for name in names:
        if (folder / name).is_file():
            put_file(folder / name, child_uri(uri, name))
