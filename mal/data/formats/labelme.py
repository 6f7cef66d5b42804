"""LabelMe: a JSON file for each image, with rectangles and polygons."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from mal.data.formats.content import Outline, outline_of, read_head, text_of
from mal.data.formats.image_files import (
    ImageAnnotations,
    ObjectRow,
    Parts,
    box_around,
    files_below,
    number_from,
    read_bounded,
    table_of_files,
)
from mal.data.formats.table import AnnotationFormat, AnnotationTable
from mal.errors import AnnotationError
from mal.shown import shown

BAD_SHAPE = "LabelMe shape without a label or usable points"
OTHER_SHAPE = "LabelMe shape that has no area, left out"

_WITHOUT_AREA = frozenset({"point", "points", "line", "linestrip"})
_NUM_LOOKED_AT = 20


def is_labelme(outline: Outline) -> bool:
    """Return whether a JSON file has LabelMe's keys."""
    return outline.has("{", "shapes") and outline.has_any(
        "{", "imagePath", "imageData", "imageHeight", "flags", "version"
    )


def matches(path: Path) -> bool:
    """Return whether a file, or one of the first JSON files of a folder, is LabelMe's."""
    files = [path] if path.is_file() else files_below(path, ".json")[:_NUM_LOOKED_AT]
    return any(is_labelme(outline_of(text_of(read_head(file)))) for file in files)


def read(path: Path, image_folder: Path) -> AnnotationTable:
    """Read a file, or all JSON files of a folder."""
    return table_of_files(files_below(path, ".json"), path, image_folder, _parse)


def _parse(path: Path, parts: Parts) -> ImageAnnotations:
    content = json.loads(read_bounded(path))
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise AnnotationError("it has no list 'shapes'")
    said = ImageAnnotations(image_name=str(content.get("imagePath") or ""))
    size = (content.get("imageWidth"), content.get("imageHeight"))
    if all(isinstance(side, int) and side > 0 for side in size):
        said.size = size  # type: ignore[assignment]  # checked above
    grouped: dict[tuple[str, str], list[ObjectRow]] = {}
    for number, shape in enumerate(content["shapes"], 1):
        where = f"shape {number} of {shown(parts.name)}"
        if isinstance(shape, dict) and shape.get("shape_type") in _WITHOUT_AREA:
            parts.notes.add(OTHER_SHAPE, f"{where} ({shape['shape_type']})")
            continue
        try:
            row = _row_from(shape, said.size)
        except (AnnotationError, LookupError, TypeError, ValueError, AttributeError, OSError,
                OverflowError) as error:  # fmt: skip
            parts.left_out.add(BAD_SHAPE, f"{where} ({shown(str(error))})")
            continue
        group = shape.get("group_id")
        key = ("", str(number)) if group is None else (row.category, f"group {group!r}")
        grouped.setdefault(key, []).append(row)
    said.objects = [_joined(rows) for rows in grouped.values()]
    return said


def _row_from(shape: dict[str, Any], size: tuple[int, int] | None) -> ObjectRow:
    category = str(shape["label"]).strip()
    if not category:
        raise ValueError("no label")
    points = [(number_from(x), number_from(y)) for x, y in shape["points"]]
    kind = shape.get("shape_type") or "polygon"
    if kind == "circle":
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(edge_x - x, edge_y - y)
        return ObjectRow((x - radius, y - radius, 2 * radius, 2 * radius), category)
    flat = [value for point in points for value in point]
    if kind == "mask":
        return _row_from_mask(shape["mask"], points, category, size)
    if kind == "rectangle" and len(points) >= 2:
        return ObjectRow(box_around([flat]), category)
    if kind != "polygon" or len(points) < 3:
        raise ValueError(f"{kind} of {len(points)} points")
    return ObjectRow(box_around([flat]), category, [flat])


def _row_from_mask(
    encoded: str, points: list[tuple[float, float]], category: str, size: tuple[int, int] | None
) -> ObjectRow:
    """Read a mask: an image of the size of its box."""
    from PIL import Image
    from pycocotools import mask as coco_mask

    (left, top), *_ = points
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        mask = np.asarray(image.convert("L")) > 0
    box = (left, top, float(mask.shape[1]), float(mask.shape[0]))
    if size is None:
        return ObjectRow(box, category)
    whole = np.zeros((size[1], size[0]), np.uint8, order="F")
    column, row = max(0, round(left)), max(0, round(top))
    part = whole[row : row + mask.shape[0], column : column + mask.shape[1]]
    part[:] = mask[: part.shape[0], : part.shape[1]]
    rle = coco_mask.encode(whole)
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return ObjectRow(box, category, (), {"size": [size[1], size[0]], "counts": text})


def _joined(rows: list[ObjectRow]) -> ObjectRow:
    """Join the shapes of a group, the parts of one object."""
    if len(rows) == 1:
        return rows[0]
    corners = [
        (x, y, x + width, y + height) for x, y, width, height in (row.box_xywh for row in rows)
    ]
    polygons = [polygon for row in rows for polygon in row.polygons]
    # Parts without a polygon leave the mask of the whole unknown.
    is_whole = all(row.polygons for row in rows)
    return ObjectRow(box_around(corners), rows[0].category, polygons if is_whole else ())


FORMAT = AnnotationFormat("labelme", matches, read)
