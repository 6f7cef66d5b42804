"""Joins several annotation sources into one COCO file with new ids.

Categories of one name are one category. Of several image folders, each image is named by its folder
too, so that equal names stay apart; in one folder, an image that several files list is one image.

The file lists its sources as `mal_sources`, with their `info` and `licenses`; each image and
annotation has `mal_source`, the index in that list and its id there. The label file of
`mal inference` keeps both.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mal.artifacts import sha256_of_file
from mal.data.annotation_stream import Entry, read_members, write_members
from mal.data.formats.opening import AnnotationSource
from mal.data.problems import Problems
from mal.errors import AnnotationError, StorageError
from mal.spec.uri_list import join_uris
from mal.storage import find_image, open_image_folder, redact_uri
from mal.storage.cache import cache_dir, locked, wrap_cache_errors
from mal.storage.merged_folder import names_in_merged_folder

MERGED = "merged"
SOURCES_KEY, SOURCE_KEY = "mal_sources", "mal_source"
_LISTS = ("images", "annotations", "categories", SOURCES_KEY)
_UNKNOWN_ID = -1

log = logging.getLogger(__name__)


def folders_of(num_sources: int, images: Sequence[str]) -> list[str]:
    """Return the image folder of each source.

    Raises:
        AnnotationError: There are neither as many folders as sources, nor one.
    """
    if len(images) == 1:
        return list(images) * num_sources
    if len(images) != num_sources:
        raise AnnotationError(
            f"image folders must be one, or one for each of the {num_sources} annotation files, "
            f"got {len(images)}. Give both lists in the same order."
        )
    return list(images)


def merge_sources(sources: Sequence[AnnotationSource], images: Sequence[str]) -> AnnotationSource:
    """Write the sources as one COCO file in the cache.

    Args:
        sources: The opened files.
        images: The image folder of each.

    Raises:
        AnnotationError: A source cannot be read.
        StorageError: The folders are several, and one cannot be opened.
    """
    folder = cache_dir() / "annotations"
    with wrap_cache_errors("the merged annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as partial:
        written = Path(partial) / "coco.json"
        merging = _Merging(sources, images)
        write_members(written, merging.members())
        key = sha256_of_file(written)[:32]
        target = folder / key / "merged.json"
        with locked(key):
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                written.rename(target)
    left_out, notes = Problems(), Problems()
    for source in sources:
        for own, each in ((left_out, source.left_out), (notes, source.notes)):
            for kind, subjects in each.subjects.items():
                own.subjects.setdefault(kind, []).extend(
                    f"{subject} of {redact_uri(source.uri)}" for subject in subjects
                )
    log.info("joined %d annotation files to %s", len(sources), target)
    uri = join_uris([source.uri for source in sources])
    folders = join_uris(list(dict.fromkeys(images)))
    return AnnotationSource(uri, target, MERGED, folders, left_out, notes, merging.described)


class _Merging:
    """The members of the merged file."""

    def __init__(self, sources: Sequence[AnnotationSource], images: Sequence[str]) -> None:
        self._sources = sources
        self._images = images
        # None where all have one folder: names stay as they are.
        self._prefixes = names_in_merged_folder(images) if len(set(images)) > 1 else None
        self.described = [
            {
                "annotations": redact_uri(source.uri),
                "annotations_sha256": sha256_of_file(source.path),
                "images": redact_uri(folder),
                "prefix": f"{self._prefixes[number]}/" if self._prefixes else "",
            }
            for number, (source, folder) in enumerate(zip(sources, images, strict=True))
        ]
        self._category_ids: dict[str, int] = {}
        self._categories: list[dict[str, Any]] = []
        self._new_category: list[dict[str, int]] = [{} for _ in sources]
        self._new_image: list[dict[str, int]] = [{} for _ in sources]
        # Source and new id of each name and size.
        self._shared: dict[tuple[str, str, str], tuple[int, int]] = {}

    def members(self) -> Iterator[tuple[str, Any]]:
        for source in self._sources:
            keys = {key for key, _, entries in read_members(source.path) if entries is not None}
            for missing in ("images", "annotations"):
                if missing not in keys:
                    raise AnnotationError(
                        f"Cannot use {redact_uri(source.uri)} as a COCO file: it has no list "
                        f"'{missing}'. Give a COCO instance file."
                    )
        yield (
            SOURCES_KEY,
            [
                {**described, **_other_members(source.path)}
                for described, source in zip(self.described, self._sources, strict=True)
            ],
        )
        self._number_categories()
        yield "images", self._all_images()
        yield "annotations", self._all_annotations()
        yield "categories", self._categories

    def _number_categories(self) -> None:
        for number, source in enumerate(self._sources):
            for entry in _entries(source.path, "categories"):
                if isinstance(entry.value, dict) and (key := _key_of(entry.value.get("id"))):
                    name = str(entry.value.get("name", entry.value["id"]))
                    self._new_category[number].setdefault(key, self._category(name, entry.value))

    def _category(self, name: str, fields: dict[str, Any]) -> int:
        if name not in self._category_ids:
            self._category_ids[name] = len(self._category_ids) + 1
            self._categories.append({**fields, "id": self._category_ids[name], "name": name})
        return self._category_ids[name]

    def _all_images(self) -> Iterator[dict[str, Any]]:
        number = 0
        for index, source in enumerate(self._sources):
            folder = self._folder_of(index)
            for entry in _entries(source.path, "images"):
                image = entry.value
                if not isinstance(image, dict):
                    yield {SOURCE_KEY: {"index": index}}  # the reader names it
                    continue
                key = _key_of(image.get("id"))
                earlier = self._shared.get(_shared_key(image)) if self._prefixes is None else None
                if earlier is not None and earlier[0] != index and key:
                    self._new_image[index].setdefault(key, earlier[1])
                    continue
                # The second of two images with one id keeps it: the reader names it.
                new_id = self._new_image[index].get(key) or number + 1
                number = max(number, new_id)
                if key:
                    self._new_image[index].setdefault(key, new_id)
                    self._shared.setdefault(_shared_key(image), (index, new_id))
                yield {
                    **image,
                    "id": new_id if key else None,
                    "file_name": self._name_of(image.get("file_name"), index, folder),
                    SOURCE_KEY: {"index": index, "id": image.get("id")},
                }

    def _folder_of(self, index: int) -> Path | None:
        return None if self._prefixes is None else open_image_folder(self._images[index])

    def _name_of(self, file_name: Any, index: int, folder: Path | None) -> Any:
        """Return the name in the merged folder, by the file where there is one."""
        if self._prefixes is None or folder is None or not isinstance(file_name, str):
            return file_name
        name = file_name
        try:
            path = find_image(folder, file_name)
            if path is not None:
                name = path.relative_to(folder).as_posix()
        except (AnnotationError, StorageError, OSError, ValueError):
            pass  # the reader names it
        return f"{self._prefixes[index]}/{name}"

    def _all_annotations(self) -> Iterator[Any]:
        number = 0
        for index, source in enumerate(self._sources):
            names: dict[str, int] = self._new_category[index]
            for entry in _entries(source.path, "annotations"):
                number += 1
                annotation = entry.value
                if not isinstance(annotation, dict):
                    yield annotation
                    continue
                image_key = _key_of(annotation.get("image_id"))
                category_key = _key_of(annotation.get("category_id", 1))
                new = {
                    **annotation,
                    "id": number,
                    "image_id": self._new_image[index].get(image_key, _UNKNOWN_ID),
                    SOURCE_KEY: {"index": index, "id": annotation.get("id")},
                }
                if category_key in names:
                    new["category_id"] = names[category_key]
                elif not names and category_key:  # a file without categories names them by number
                    shown = str(annotation.get("category_id", 1))
                    new["category_id"] = self._category(shown, {})
                else:
                    new["category_id"] = _UNKNOWN_ID
                yield new


def _other_members(path: Path) -> dict[str, Any]:
    return {
        key: value if entries is None else [entry.value for entry in entries]
        for key, value, entries in read_members(path)
        if key not in _LISTS
    }


def _entries(path: Path, wanted: str) -> Iterator[Entry]:
    for key, _, entries in read_members(path):
        if key == wanted and entries is not None:
            yield from entries
            return


def _key_of(value: Any) -> str:
    """Return an exact key of an id; '' for what is no id. 1 and 1.0 are one, 1 and "1" are not."""
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value
    return json.dumps(value) if isinstance(value, int | float | str) else ""


def _shared_key(image: dict[str, Any]) -> tuple[str, str, str]:
    return str(image.get("file_name")), str(image.get("width")), str(image.get("height"))
