"""Files and folders by path or `s3://` URI."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from mal.artifacts import writing_atomically
from mal.errors import StorageError
from mal.storage.objects import list_objects, upload_object
from mal.storage.uris import parse_remote_uri


def child_uri(folder: str, *names: str) -> str:
    """Join a folder and names below it."""
    return "/".join([folder.rstrip("/"), *names])


def list_files(folder: str) -> dict[str, int]:
    """Return size by relative name, without hidden local files; {} for a missing folder."""
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
    """Copy a local file to a path or URI atomically."""
    remote = parse_remote_uri(uri)
    if remote is not None:
        upload_object(path, remote)
        return
    try:
        with writing_atomically(Path(uri).expanduser()) as temporary:
            shutil.copyfile(path, temporary)
    except OSError as error:
        raise StorageError(
            f"Cannot write {uri}: {error.strerror}. Choose a folder that can be written."
        ) from error


def put_files(folder: Path, names: Iterable[str], uri: str) -> None:
    """Copy those files of a local folder that exist."""
    for name in names:
        if (folder / name).is_file():
            put_file(folder / name, child_uri(uri, name))
