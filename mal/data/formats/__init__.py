"""The annotation formats that MAL reads: one table, COCO first.

A new format is one file and one line: docs/extending/annotation_format.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from mal.data.formats import kitti, labelme, labelstudio, voc, yolo
from mal.data.formats.content import outline_of, read_head, text_of
from mal.data.formats.merging import folders_of, merge_sources
from mal.data.formats.opening import AUTO, AnnotationSource, open_source, readable_path
from mal.data.formats.table import (
    AnnotationFormat,
    AnnotationTable,
    BoxRow,
    ImageRow,
    image_rows,
)
from mal.errors import AnnotationError
from mal.spec.uri_list import split_uris

__all__ = [
    "AUTO",
    "FORMATS",
    "AnnotationFormat",
    "AnnotationSource",
    "AnnotationTable",
    "BoxRow",
    "ImageRow",
    "image_rows",
    "open_annotations",
    "readable_path",
]


def _is_coco(path: Path) -> bool:
    """Return whether a file is JSON of none of the other formats; the reader finds all else."""
    if not path.is_file() or path.suffix.lower() in (".yaml", ".yml"):
        return False
    text = text_of(read_head(path))
    outline = outline_of(text)
    return text.lstrip()[:1] in ("{", "[") and not (
        labelme.is_labelme(outline) or labelstudio.is_labelstudio(outline)
    )


COCO = AnnotationFormat("coco", _is_coco, read=None)

FORMATS: tuple[AnnotationFormat, ...] = (
    COCO,
    voc.FORMAT,
    yolo.FORMAT,
    labelme.FORMAT,
    labelstudio.FORMAT,
    kitti.FORMAT,
)
"""The formats of this package. Other packages add theirs as entry points of ENTRY_POINT_GROUP."""

ENTRY_POINT_GROUP = "mal.annotation_formats"


def open_annotations(
    uri: str | Path | Sequence[str], annotation_type: str = AUTO, *, images: str = ""
) -> AnnotationSource:
    """Open annotations of any known format. Everything that reads annotations calls this.

    Args:
        uri: A file, a folder or an archive, local or remote. Of COCO and Label Studio: one file,
            which may be compressed with gzip or in UTF-16. Several, as a list or as the text of
            `mal.spec.uri_list.join_uris`, become one set with new ids.
        annotation_type: As `dataset.type`: auto recognises the content. So does coco, because
            it is TAO's default: a spec that sets it and one that does not are the same.
        images: Folder or archive of the images, for formats that leave out image sizes or names;
            for several files one folder, or as many in the same order.

    Raises:
        AnnotationError: The content is not of the format, or of none, or cannot be read.
        StorageError: It does not exist, or the images are needed and cannot be opened.
    """
    uris = split_uris(str(uri)) if isinstance(uri, str | Path) else list(uri)
    if len(uris) == 1:
        return open_source(uris[0], annotation_type, images, format_of)
    folders = folders_of(len(uris), split_uris(images))
    sources = [
        open_source(one, annotation_type, folder, format_of)
        for one, folder in zip(uris, folders, strict=True)
    ]
    return merge_sources(sources, folders)


def format_of(path: Path, annotation_type: str = AUTO) -> AnnotationFormat:
    """Return the format that recognises a file or folder; COCO where none does.

    Raises:
        AnnotationError: Several formats recognise it, it is not of the given type, or a format
            cannot be loaded.
    """
    formats = _all_formats()
    found = [one for one in formats if one.matches(path)]
    if annotation_type not in (AUTO, COCO.name):
        return _of_type(path, annotation_type, formats, found)
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise AnnotationError(
            f"The format of {path} is ambiguous: {names} recognise it. Set dataset.type to one of "
            "them, or remove the files of the others."
        )
    return found[0] if found else COCO


def _of_type(
    path: Path,
    annotation_type: str,
    formats: Sequence[AnnotationFormat],
    found: Sequence[AnnotationFormat],
) -> AnnotationFormat:
    chosen = next((one for one in formats if one.name == annotation_type), None)
    if chosen is None:
        names = ", ".join((AUTO, *(one.name for one in formats)))
        raise AnnotationError(
            f"dataset.type must be a known format, got {annotation_type}. Use one of {names}."
        )
    if found and chosen not in found:
        raise AnnotationError(
            f"dataset.type must fit the annotations, got {annotation_type}, but {path} is "
            f"{found[0].name}. Set dataset.type={found[0].name}, or auto."
        )
    return chosen


@functools.cache
def _all_formats() -> tuple[AnnotationFormat, ...]:
    formats = [*FORMATS, *map(_load, entry_points(group=ENTRY_POINT_GROUP))]
    names = [one.name for one in formats]
    for name in names:
        if names.count(name) > 1:
            raise AnnotationError(
                f"Annotation format {name!r} is registered twice. Rename or remove one of the two."
            )
    return tuple(formats)


def _load(point: EntryPoint) -> AnnotationFormat:
    try:
        loaded = point.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise AnnotationError(
            f"Cannot load annotation format {point.name!r} ({point.value}): {error}. Fix or "
            "uninstall its package."
        ) from error
    if not isinstance(loaded, AnnotationFormat):
        raise AnnotationError(
            f"Annotation format {point.name!r} must be an AnnotationFormat, got "
            f"{type(loaded).__name__} from {point.value}. Let the entry point name one."
        )
    return loaded
