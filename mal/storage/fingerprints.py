"""Digests of inputs for manifests, so that a later run can detect a change."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from mal.artifacts import sha256_of_file
from mal.errors import MalError
from mal.spec.uri_list import split_uris
from mal.storage.annotation_folder import (
    ANNOTATION_SUFFIXES,
    is_folder_uri,
    list_annotation_files,
)
from mal.storage.archives import is_archive
from mal.storage.cache import fetched_file
from mal.storage.image_folder import list_images, sha256_of_unpacked
from mal.storage.image_search import is_image_name
from mal.storage.uris import RemoteUri, parse_remote_uri

_ANNOTATION_KEYS = "ann_path"


def describe_inputs(uris: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Describe inputs by their spec keys; keys without a URI are left out."""
    kinds = {(uri, key.endswith(_ANNOTATION_KEYS)) for key, uri in uris.items() if uri}
    described = {kind: describe_input(kind[0], has_annotations=kind[1]) for kind in kinds}
    return {key: described[uri, key.endswith(_ANNOTATION_KEYS)] for key, uri in uris.items() if uri}


def describe_input(uri: str, *, has_annotations: bool = False) -> dict[str, str]:
    """Return URI and digest of an input, without fetching anything.

    A file has `sha256`; that of a remote file is of the content that was fetched. A folder of
    images has `sha256_of_listing`, of names and sizes, because reading it may take too long. A
    folder of annotations has one of names, sizes and contents. An input that cannot be read, or
    has changed since it was fetched, has neither.
    """
    described = {"uri": uri}
    if len(uris := split_uris(uri)) > 1:
        return described | _describe_several(uris, has_annotations=has_annotations)
    with contextlib.suppress(MalError, OSError, RuntimeError):
        remote = parse_remote_uri(uri)
        if remote is None:
            described |= _describe_local(Path(uri).expanduser(), has_annotations=has_annotations)
        elif has_annotations and is_folder_uri(uri):
            described |= {"sha256_of_listing": _sha256_of_remote_annotations(remote)}
        else:
            described |= _describe_remote(remote)
    return described


def _describe_several(uris: list[str], *, has_annotations: bool) -> dict[str, str]:
    """Return one digest of all, and the digest of each."""
    each = [describe_input(uri, has_annotations=has_annotations) for uri in uris]
    digests = [one.get("sha256") or one.get("sha256_of_listing") for one in each]
    if not all(digests):
        return {}
    text = "\n".join(map(str, digests))
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "sha256_of_each": ", ".join(map(str, digests)),
    }


def _sha256_of_remote_annotations(remote: RemoteUri) -> str:
    prefix_length = len(remote.folder_prefix)
    found = list_annotation_files(remote)
    return sha256_of_listing(
        (f"{stored.etag} {stored.uri.key[prefix_length:]}", stored.size) for stored in found
    )


def _describe_local(path: Path, *, has_annotations: bool) -> dict[str, str]:
    if path.is_file():
        return {"sha256": sha256_of_file(path)}
    if not path.is_dir():
        return {}
    if has_annotations:
        files = (
            (f"{sha256_of_file(file)} {file.relative_to(path).as_posix()}", file.stat().st_size)
            for file in path.rglob("*")
            if file.name.lower().endswith(ANNOTATION_SUFFIXES) and file.is_file()
        )
        return {"sha256_of_listing": sha256_of_listing(files)}
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
