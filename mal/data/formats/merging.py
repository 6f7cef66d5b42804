"""Joins several annotation sources into one COCO file with new ids.

Categories of one name are one category. Of several image folders, each image is named by its folder
too, so that equal names stay apart; in one folder, an image that several files list is one image.

The file lists its sources as `mal_sources`, with their `info` and `licenses`; each image and
annotation has `mal_source`, the index in that list and its id there. The label file of
`mal inference` keeps both.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mal.artifacts import sha256_of_file
from mal.data.annotation_stream import Entry, read_members, write_members
from mal.data.entry_values import category_id_of, file_name_of, number_id_of
from mal.data.formats.opening import AnnotationSource
from mal.data.ids import AMBIGUOUS, UNKNOWN, IdError, IdLookup, exact_id
from mal.data.image_entries import ID_TWICE
from mal.data.problems import FieldError, Problems
from mal.errors import AnnotationError
from mal.shown import shown
from mal.spec.uri_list import join_uris
from mal.storage import find_images, open_image_folder, redact_uri
from mal.storage.cache import cache_dir, locked, wrap_cache_errors
from mal.storage.merged_folder import names_in_merged_folder

_ImageKey = tuple[str, str, str]  # file name, width and height

MERGED = "merged"
SOURCES_KEY, SOURCE_KEY = "mal_sources", "mal_source"
_LISTS = ("images", "annotations", "categories", SOURCES_KEY)

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
    left_out, notes = merging.left_out, Problems()
    for source in sources:
        left_out.update(source.left_out)
        notes.update(source.notes)
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
        self._new_category: list[dict[int, int]] = [{} for _ in sources]
        self._new_image = [IdLookup() for _ in sources]
        # Source and new id of each name and size.
        self._shared: dict[_ImageKey, tuple[int, int]] = {}
        self.left_out = Problems()

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
                with contextlib.suppress(FieldError, TypeError):
                    name = str(entry.value.get("name", entry.value["id"]))
                    self._new_category[number].setdefault(
                        number_id_of(entry.value), self._category(name, entry.value)
                    )

    def _category(self, name: str, fields: dict[str, Any]) -> int:
        if name not in self._category_ids:
            self._category_ids[name] = len(self._category_ids) + 1
            self._categories.append({**fields, "id": self._category_ids[name], "name": name})
        return self._category_ids[name]

    def _all_images(self) -> Iterator[dict[str, Any]]:
        number = 0
        for index, source in enumerate(self._sources):
            lookup = self._new_image[index]
            keys: dict[int, _ImageKey] = {}
            for image, name in self._named_images(index, source):
                if not isinstance(image, dict):
                    yield {SOURCE_KEY: {"index": index}}  # the reader names it
                    continue
                key = _image_key(image)
                earlier = self._shared.get(key) if self._prefixes is None else None
                is_shared = earlier is not None and earlier[0] != index
                new_id = earlier[1] if earlier is not None and is_shared else number + 1
                with contextlib.suppress(IdError):
                    image_id = exact_id(image.get("id"))
                    if image_id in lookup:
                        if keys.get(lookup.find(image_id)) == key:
                            continue  # the same image again
                        lookup.add(image_id, AMBIGUOUS)
                        subject = f"{shown(image_id, quoted=True)} ({shown(name)})"
                        self.left_out.add(ID_TWICE, f"{subject} of {source.shown_uri}")
                    else:
                        lookup.add(image_id, new_id)
                        keys[new_id] = key
                if is_shared:
                    continue
                number += 1
                self._shared.setdefault(key, (index, new_id))
                yield {
                    **image,
                    "id": new_id,
                    "file_name": name,
                    SOURCE_KEY: {"index": index, "id": image.get("id")},
                }

    def _named_images(self, index: int, source: AnnotationSource) -> Iterator[tuple[Any, Any]]:
        """Yield the images with their names in the merged folder: those of their files."""
        if self._prefixes is None:
            for entry in _entries(source.path, "images"):
                yield entry.value, _name_of(entry.value)
            return
        names = [_name_of(entry.value) for entry in _entries(source.path, "images")]
        folder = open_image_folder(self._images[index])
        found = find_images(folder, [name if isinstance(name, str) else "" for name in names])
        for row, entry in enumerate(_entries(source.path, "images")):
            name = names[row]
            if isinstance(name, str):
                path = found.path_of(row, name)
                relative = name if path is None else path.relative_to(folder).as_posix()
                name = f"{self._prefixes[index]}/{relative}"
            yield entry.value, name

    def _all_annotations(self) -> Iterator[Any]:
        number = 0
        for index, source in enumerate(self._sources):
            lookup = self._new_image[index]
            for entry in _entries(source.path, "annotations"):
                number += 1
                annotation = entry.value
                if not isinstance(annotation, dict):
                    yield annotation
                    continue
                new = {
                    **annotation,
                    "id": number,
                    # What has no image in its own file has none in the merged one.
                    "image_id": max(lookup.find_value(annotation.get("image_id")), UNKNOWN),
                    SOURCE_KEY: {"index": index, "id": annotation.get("id")},
                }
                with contextlib.suppress(FieldError):  # the reader names it
                    new["category_id"] = self._category_of(category_id_of(annotation), index)
                yield new

    def _category_of(self, category_id: int, index: int) -> int:
        names = self._new_category[index]
        if not names:  # a file without categories names them by number
            return self._category(str(category_id), {})
        return names.get(category_id, UNKNOWN)


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


def _name_of(image: Any) -> Any:
    """Return the file name without secrets; what is no name, for the reader to name."""
    if not isinstance(image, dict):
        return None
    try:
        return file_name_of(image)[0]
    except FieldError:
        return image.get("file_name")


def _image_key(image: dict[str, Any]) -> _ImageKey:
    return str(image.get("file_name")), str(image.get("width")), str(image.get("height"))
