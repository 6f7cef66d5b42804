"""Digests of inputs for manifests, so that a later run can detect a change."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from mal.artifacts import sha256_of_file
from mal.errors import MalError
from mal.storage.archives import is_archive
from mal.storage.cache import fetched_file
from mal.storage.image_folder import list_images, sha256_of_unpacked
from mal.storage.image_search import is_image_name
from mal.storage.uris import RemoteUri, parse_remote_uri


def describe_inputs(uris: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Describe inputs by their spec keys; keys without a URI are left out."""
    described = {uri: describe_input(uri) for uri in set(uris.values()) if uri}
    return {key: described[uri] for key, uri in uris.items() if uri}


def describe_input(uri: str) -> dict[str, str]:
    """Return URI and digest of an input, without fetching anything.

    A file has `sha256`; that of a remote file is of the content that was fetched. A folder of
    images has `sha256_of_listing`, of names and sizes, because reading it may take too long. An
    input that cannot be read, or has changed since it was fetched, has neither.
    """
    described = {"uri": uri}
    with contextlib.suppress(MalError, OSError, RuntimeError):
        remote = parse_remote_uri(uri)
        described |= (
            _describe_local(Path(uri).expanduser()) if remote is None else _describe_remote(remote)
        )
    return described


def _describe_local(path: Path) -> dict[str, str]:
    if path.is_file():
        return {"sha256": sha256_of_file(path)}
    if not path.is_dir():
        return {}
    images = (
        (file.relative_to(path).as_posix(), file.stat().st_size)
        for file in path.rglob("*")
        if is_image_name(file.name) and file.is_file()
    )
    return {"sha256_of_listing": sha256_of_listing(images)}


def _describe_remote(remote: RemoteUri) -> dict[str, str]:
    if is_archive(remote.key):
        sha256 = sha256_of_unpacked(remote)
        return {"sha256": sha256} if sha256 else {}
    if PurePosixPath(remote.key).suffix and not remote.key.endswith("/"):
        path = fetched_file(remote)
        return {"sha256": sha256_of_file(path)} if path else {}
    prefix_length = len(remote.folder_prefix)
    images = ((image.uri.key[prefix_length:], image.size) for image in list_images(remote))
    return {"sha256_of_listing": sha256_of_listing(images)}


def sha256_of_listing(images: Iterable[tuple[str, int]]) -> str:
    """Digest names and sizes of files, in any order."""
    digest = hashlib.sha256()
    for name, size in sorted(images):
        digest.update(f"{size} {name}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
