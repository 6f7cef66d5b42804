"""Opens images - a folder, an archive, a bucket folder - as a local folder."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from mal.artifacts import sha256_of_file
from mal.errors import StorageError
from mal.shown import shown
from mal.spec.uri_list import split_uris
from mal.storage.archives import ARCHIVE_SUFFIXES, is_archive, relative_path_of, unpack_archive
from mal.storage.cache import (
    build_folder_once,
    cache_dir,
    check_room,
    fetch_file,
    fetch_object,
    is_complete,
    key_of,
    key_of_object,
    read_marker,
)
from mal.storage.file_names import direct_path
from mal.storage.image_search import (
    FileIndex,
    FoundImages,
    find_by_own_name,
    find_images,
    image_paths,
    is_image_name,
    search_index,
    search_roots,
)
from mal.storage.merged_folder import merge_folders
from mal.storage.objects import StoredObject, head_object, list_objects
from mal.storage.uris import RemoteUri, parse_remote_uri

_SHA256 = "sha256"
_UNPACKED = "archive, all checksums read"  # older entries may hold what a checksum refuses
_NUM_TRANSFERS = 16
_NUM_HASHERS = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFile:
    """An image, or an archive of images.

    Attributes:
        size: Bytes.
        checksum: `sha256:...` of a local file, `etag:...` of a remote one.
        modified_s: Time of the last write, seconds since 1970; not compared.
    """

    size: int
    checksum: str
    modified_s: float = field(compare=False)


def open_image_folder(source: str) -> Path:
    """Return a local folder with the images of a source.

    An archive may wrap its files in one top folder: look images up by `find_images`.

    Args:
        source: A folder, an archive (.tar.gz, .tgz, .tar, .zip), or either behind `s3://` or
            `minio://`; several of these (`mal.spec.uri_list`) become one folder with a link to
            each. Archives are unpacked, and bucket folders fetched, once into the cache.
            Of a bucket folder only files with an image's suffix are fetched.

    Raises:
        StorageError: The source is missing, empty, broken, unsafe or too large for the disk.
    """
    several = split_uris(source)
    if len(several) > 1:
        return merge_folders(several, [open_image_folder(one) for one in several])
    source = several[0]
    if not source:
        raise StorageError("image source must be given, got ''. Give a folder or an archive.")
    remote = parse_remote_uri(source)
    if remote is not None:
        return _fetch_archive(remote) if is_archive(remote.key) else _fetch_folder(remote)
    path = Path(source).expanduser()
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise StorageError(
                f"Cannot read the image folder {source}: access is denied. Change its permissions."
            )
        return path
    if not path.is_file():
        raise StorageError(f"image source {source} does not exist. Check the path.")
    if not is_archive(path.name):
        raise StorageError(
            f"image source must be a folder or one of {', '.join(ARCHIVE_SUFFIXES)}, got {source}. "
            "Give the images' folder or pack it as one of these."
        )
    return build_folder_once(
        key_of(_UNPACKED, sha256_of_file(path)), source, partial(_unpack, path, source)
    )


def find_image(folder: Path, file_name: str) -> Path | None:
    """Find an image by its COCO `file_name` alone; None where there is none.

    `find_images` also finds files whose names differ from those of the set.
    """
    return find_by_own_name(search_roots(folder), file_name)


def fetch_images(source: str, file_names: Iterable[str], folder: Path) -> str:
    """Fetch the named images of a bucket folder into `folder`, and return that.

    Missing images are left out. Any other source is returned as it is.
    """
    remote = parse_remote_uri(source)
    if remote is None or is_archive(remote.key):
        return source
    found = _find_remote_images(remote, list(dict.fromkeys(file_names)))
    check_room(folder.parent, sum(stored.size for stored in found.values()), str(remote))
    targets = {folder / (direct_path(name) or _below(remote, found[name])): name for name in found}
    with ThreadPoolExecutor(_NUM_TRANSFERS) as pool:
        list(pool.map(lambda target: fetch_object(found[targets[target]], target), targets))
    return str(folder)


def describe_images(source: str, file_names: Iterable[str]) -> dict[str, ImageFile]:
    """Return the images that exist, by file name. A bucket folder is listed, not fetched."""
    names = list(dict.fromkeys(file_names))
    remote = parse_remote_uri(source)
    if remote is not None and not is_archive(remote.key):
        remote_images = _find_remote_images(remote, names)
        return {name: _describe_object(stored) for name, stored in remote_images.items()}
    found = find_images(open_image_folder(source), names)
    paths = {
        name: path
        for index, name in enumerate(names)
        if (path := found.path_of(index, name)) is not None
    }
    with ThreadPoolExecutor(_NUM_HASHERS) as pool:
        return dict(zip(paths, pool.map(_describe_file, paths.values()), strict=True))


def describe_source(source: str, file_names: Iterable[str]) -> dict[str, ImageFile]:
    """Return the images of a source, or its one archive, which stays packed."""
    if len(split_uris(source)) > 1:
        return describe_images(source, file_names)
    remote = parse_remote_uri(source)
    if remote is not None and is_archive(remote.key):
        return {PurePosixPath(remote.key).name: _describe_object(head_object(remote))}
    path = Path(source).expanduser()
    if remote is None and path.is_file() and is_archive(path.name):
        return {path.name: _describe_file(path)}
    return describe_images(source, file_names)


def sha256_of_unpacked(remote: RemoteUri) -> str | None:
    """Return the sha256 of a remote archive's present content; None if it was not unpacked here."""
    return read_marker(_archive_key(remote)).get(_SHA256)


def list_images(remote: RemoteUri) -> list[StoredObject]:
    """List the objects of a bucket folder that have an image's suffix."""
    images = [stored for stored in list_objects(remote) if is_image_name(stored.uri.key)]
    if not images:
        raise StorageError(f"image source {remote} holds no images. Check bucket and prefix.")
    return images


def _unpack(archive: Path, source: str, folder: Path) -> None:
    _log.info("unpacking %s", source)
    unpack_archive(archive, folder)
    if not any(folder.iterdir()):
        raise StorageError(f"The archive {source} holds no file. Pack it again.")
    if next(image_paths(folder), None) is None:
        inner = next((path.name for path in folder.rglob("*") if is_archive(path.name)), None)
        if inner is not None:
            raise StorageError(
                f"The archive {source} holds no image, but the archive {shown(inner)}. Unpack it, "
                "and give that one."
            )


def _fetch_archive(remote: RemoteUri) -> Path:
    """Fetch and unpack; the archive itself is deleted afterwards."""

    def fill(folder: Path) -> dict[str, str]:
        archive = fetch_file(f"{remote.scheme}://{remote.bucket}/{remote.key}")
        sha256 = sha256_of_file(archive)
        _unpack(archive, str(remote), folder)
        archive.unlink()
        return {_SHA256: sha256}

    return build_folder_once(_archive_key(remote), str(remote), fill)


def _archive_key(remote: RemoteUri) -> str:
    stored = head_object(remote)
    return key_of(_UNPACKED, remote.bucket, remote.key, stored.etag, stored.size)


def _fetch_folder(remote: RemoteUri) -> Path:
    images = list_images(remote)
    prefix_length = len(remote.folder_prefix)

    def fill(folder: Path) -> None:
        paths = {image: _object_path(image) for image in images}
        absent = [image for image, path in paths.items() if not is_complete(path, image)]
        num_bytes = sum(image.size for image in absent)
        check_room(folder, num_bytes, str(remote))
        _log.info("fetching %d images (%.1f MB) of %s", len(absent), num_bytes / 1e6, remote)
        with ThreadPoolExecutor(_NUM_TRANSFERS) as pool:
            list(pool.map(lambda image: fetch_object(image, paths[image]), absent))
        for image, path in paths.items():
            name = relative_path_of(image.uri.key[prefix_length:], str(remote))
            _link_or_copy(path, folder / name)

    versions = [f"{image.uri.key} {image.etag} {image.size}" for image in images]
    key = key_of("folder", remote.bucket, remote.folder_prefix, *versions)
    return build_folder_once(key, str(remote), fill)


def _object_path(stored: StoredObject) -> Path:
    key = key_of_object(stored)
    return cache_dir() / "objects" / key[:2] / key


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _describe_file(path: Path) -> ImageFile:
    stat = path.stat()
    return ImageFile(stat.st_size, f"sha256:{sha256_of_file(path)}", stat.st_mtime)


def _describe_object(stored: StoredObject) -> ImageFile:
    return ImageFile(stored.size, f"etag:{stored.etag}", stored.modified.timestamp())


def _below(remote: RemoteUri, stored: StoredObject) -> PurePosixPath:
    """Return the path of an object below the folder that was listed."""
    return relative_path_of(stored.uri.key[len(remote.folder_prefix) :], str(remote))


def _find_remote_images(remote: RemoteUri, names: Sequence[str]) -> dict[str, StoredObject]:
    by_path = {str(_below(remote, stored)): stored for stored in list_images(remote)}
    top_folders = {path.partition("/")[0] if "/" in path else "" for path in by_path}
    top = top_folders.pop() if len(top_folders) == 1 else ""
    prefixes = ["", f"{top}/"] if top else [""]
    images, absent = {}, []
    for index, name in enumerate(names):
        path = direct_path(name)
        stored = next((by_path[p] for x in prefixes if (p := f"{x}{path}") in by_path), None)
        if path is not None and stored is not None:
            images[name] = stored
        else:
            absent.append(index)
    if absent:
        found = FoundImages([Path()], len(names))
        search_index(FileIndex(by_path), names, absent, prefixes, found)
        found.log_rules(names)
        for index in absent:
            if (found_path := found.relative_path_of(index)) is not None:
                images[names[index]] = by_path[found_path]
    return images
