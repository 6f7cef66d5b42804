"""The annotation formats that MAL reads: one table, COCO first.

A new format is one file and one line: docs/extending/annotation_format.md.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from mal.data.annotations import CocoBoxes, load_boxes
from mal.data.box_evidence import add_doubt, find_doubt_of_files
from mal.data.formats.conversion import convert_to_coco
from mal.data.formats.image_sizes import ImageSizes
from mal.data.formats.table import (
    AnnotationFormat,
    AnnotationTable,
    BoxRow,
    ImageRow,
    image_rows,
)
from mal.errors import AnnotationError

__all__ = [
    "FORMATS",
    "AnnotationFormat",
    "AnnotationTable",
    "BoxRow",
    "ImageRow",
    "image_rows",
    "open_annotations",
]

COCO = AnnotationFormat("coco", matches=lambda path: path.suffix == ".json", read=None)

FORMATS: tuple[AnnotationFormat, ...] = (COCO,)
"""The formats of this package. Other packages add theirs as entry points of ENTRY_POINT_GROUP."""

ENTRY_POINT_GROUP = "mal.annotation_formats"


def open_annotations(
    path: Path, image_source: str, *, with_masks: bool, refuse_points: bool = True
) -> CocoBoxes:
    """Read the boxes of an annotation file of any known format.

    Args:
        path: A local file.
        image_source: Folder or archive of the images, for formats that leave out image sizes.
        with_masks: As for `load_boxes`.
        refuse_points: As for `load_boxes`.

    Raises:
        AnnotationError: The file cannot be read, or its format breaks a rule of the page.
        StorageError: The images are needed and cannot be opened.
    """
    annotation_format = format_of(path)
    if annotation_format.read is None:
        boxes = load_boxes(
            path,
            with_masks=with_masks,
            refuse_points=refuse_points,
            read_size=ImageSizes(image_source),
        )
        doubt = find_doubt_of_files(
            boxes.box_xywh_N4, boxes.image_index_N, boxes.images, image_source
        )
        if doubt is not None:
            add_doubt(doubt, path, boxes.problems, refuse=refuse_points)
        return boxes
    coco_path, left_out = convert_to_coco(annotation_format, path, image_source)
    try:
        boxes = load_boxes(coco_path, with_masks=with_masks, refuse_points=refuse_points)
    except AnnotationError as error:
        reasons = "; ".join([str(error), *left_out.lines()])
        raise AnnotationError(f"Cannot use {path} ({annotation_format.name}): {reasons}") from error
    boxes.problems.update(left_out)
    return boxes


def format_of(path: Path) -> AnnotationFormat:
    """Return the format that recognises a file; COCO where none does.

    Raises:
        AnnotationError: Several formats recognise it, or one cannot be loaded.
    """
    found = [one for one in _all_formats() if one.matches(path)]
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise AnnotationError(
            f"The format of {path} is ambiguous: {names} recognise it. Rename the file, or remove "
            "a format."
        )
    return found[0] if found else COCO


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
