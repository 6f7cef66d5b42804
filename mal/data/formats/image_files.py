"""Formats with a file for each image: VOC, YOLO, LabelMe, KITTI."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mal.data.formats.image_names import ImageNames, find_named_images
from mal.data.formats.table import AnnotationTable, BoxRow, ImageRow
from mal.data.images import upright_size_of
from mal.data.problems import Problems
from mal.errors import AnnotationError
from mal.shown import shown

UNREADABLE_FILE = "annotation file that cannot be read"
WITHOUT_IMAGE = "annotation file without an image of its name"
AMBIGUOUS_IMAGE = "image that several annotation files name, none of them used"
TWO_IMAGES = "annotation file that names one image and has the name of another"
UNREADABLE_IMAGE = "annotation file whose image cannot be read"

MAX_FILE_BYTES = 256 << 20
_MAX_COORDINATE = 1e7


class ObjectRow(NamedTuple):
    """An object of a file.

    Attributes:
        box_xywh: Left, top, width and height, in pixels or as fractions of the image.
        polygons: Flat lists of x and y, in the unit of the box; () for none.
        segmentation: The mask as RLE in pixels; None for none.
    """

    box_xywh: Sequence[float]
    category: str
    polygons: Sequence[Sequence[float]] = ()
    segmentation: Any = None
    is_crowd: bool = False


@dataclass
class ImageAnnotations:
    """What a file says of its image.

    Attributes:
        image_name: The name that the file gives; '' for none.
        size: Width and height that the file gives, px; None for none.
        is_fraction: Boxes and polygons are fractions of width and height.
    """

    objects: list[ObjectRow] = field(default_factory=list)
    image_name: str = ""
    size: tuple[int, int] | None = None
    is_fraction: bool = False


class Parts(NamedTuple):
    """What a parser gets beside the file."""

    left_out: Problems
    notes: Problems
    name: str


Parse = Callable[[Path, Parts], ImageAnnotations]


def files_below(path: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix in a folder, sorted; hidden ones are left out."""
    if path.is_file():
        return [path]
    found = []
    for parent, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [
            Path(parent) / name
            for name in sorted(names)
            if name.lower().endswith(suffix) and not name.startswith(".")
        ]
    return found


def read_bounded(path: Path) -> bytes:
    """Return the content of a file for one image.

    Raises:
        AnnotationError: The file is far too large for that.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise AnnotationError(f"it has {path.stat().st_size >> 20} MiB. Give a file for each image")
    return path.read_bytes()


def box_around(polygons: Iterable[Sequence[float]]) -> list[float]:
    """Return left, top, width and height of the box around flat lists of x and y."""
    flat = [list(polygon) for polygon in polygons]
    xs = [x for polygon in flat for x in polygon[0::2]]
    ys = [y for polygon in flat for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def number_from(value: Any) -> float:
    """Convert a coordinate.

    Raises:
        ValueError: It is no number, not finite, or far larger than an image.
    """
    number = float(value)
    if not math.isfinite(number) or abs(number) > _MAX_COORDINATE:
        raise ValueError(f"{shown(value, quoted=True)} is no coordinate")
    return number


def table_of_files(
    files: Sequence[Path],
    root: Path,
    image_folder: Path,
    parse: Parse,
    *,
    categories: Sequence[str] = (),
) -> AnnotationTable:
    """Read a file for each image; one that cannot be used is left out, counted and named."""
    left_out, notes = Problems(), Problems()
    base = root if root.is_dir() else root.parent
    relative = {path: PurePosixPath(path.relative_to(base).as_posix()) for path in files}
    said_by: dict[PurePosixPath, ImageAnnotations] = {}
    for path, name in relative.items():
        try:
            said_by[name] = parse(path, Parts(left_out, notes, str(name)))
        except (AnnotationError, OSError, ValueError, LookupError, TypeError, AttributeError,
                RecursionError, OverflowError) as error:  # fmt: skip
            left_out.add(UNREADABLE_FILE, f"{shown(str(name))} ({shown(str(error))})")
    names = ImageNames(image_folder, relative.values())
    given = find_named_images(image_folder, [said.image_name for said in said_by.values()])
    of_image: dict[str, list[tuple[str, ImageAnnotations]]] = defaultdict(list)
    for (name, said), named in zip(said_by.items(), given, strict=True):
        image = _image_of(name, said, named, names.beside(name), left_out)
        if image is not None:
            of_image[image].append((str(name), said))
    images: list[ImageRow] = []
    boxes: list[BoxRow] = []
    for image, found in of_image.items():
        if len(found) > 1:
            left_out.add(AMBIGUOUS_IMAGE, f"{shown(image)} ({', '.join(n for n, _ in found[:3])})")
            continue
        file, said = found[0]
        size = _size_of(image_folder / image, said, file, left_out)
        if size is None:
            continue
        images.append(ImageRow(image, *size))
        for row in said.objects:
            boxes.append(_box_row(len(boxes) + 1, image, row, size if said.is_fraction else (1, 1)))
    return AnnotationTable(images, boxes, categories, left_out, notes)


def _image_of(
    file: PurePosixPath,
    said: ImageAnnotations,
    named: str | None,
    beside: str | None,
    left_out: Problems,
) -> str | None:
    """Return the one image that a file can mean; None, with a problem, for none or two."""
    name = shown(str(file))
    if named and beside and named != beside:
        left_out.add(TWO_IMAGES, f"{name} ({shown(named)} and {shown(beside)})")
        return None
    if not named and not beside:
        given = f" ({shown(said.image_name)})" if said.image_name else ""
        left_out.add(WITHOUT_IMAGE, f"{name}{given}")
    return named or beside


def _size_of(
    path: Path, said: ImageAnnotations, name: str, left_out: Problems
) -> tuple[int, int] | None:
    if said.size is not None and min(said.size) > 0 and not said.is_fraction:
        return said.size
    try:
        return upright_size_of(path)
    except AnnotationError as error:
        left_out.add(UNREADABLE_IMAGE, f"{shown(name)} ({shown(str(error))})")
        return None


def _box_row(number: int, image: str, row: ObjectRow, scale: tuple[int, int]) -> BoxRow:
    polygons = [[value * scale[i % 2] for i, value in enumerate(p)] for p in row.polygons]
    return BoxRow(
        number,
        image,
        tuple(value * scale[i % 2] for i, value in enumerate(row.box_xywh)),
        row.category,
        row.is_crowd,
        row.segmentation if row.segmentation is not None else (polygons or None),
    )
