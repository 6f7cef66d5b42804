"""The values of an entry's fields, as tools really write them; each is read or refused by name.

The reader of JSON gives any value: every number is bounded here, before NumPy or C code gets it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from mal.data.ids import Id, IdError, exact_id, number_of_id
from mal.data.problems import FieldError
from mal.data.segmentations import box_of_segmentation, is_segmentation_given
from mal.errors import AnnotationError
from mal.redaction import redact_file_name
from mal.shown import shown

Box = tuple[float, float, float, float]

# The most that a JPEG can have on a side is 65,535; RLE counts pixels in 32 bits.
MAX_SIDE_PX = 1_000_000
MAX_PIXELS = 2**31 - 1
MAX_COORDINATE_PX = 1e9
MAX_NAME_CHARS = 4096  # the longest path that Linux opens

_DECIMAL = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?\s*", re.ASCII)
_BOX_REMEDY = "Write [x, y, width, height] in pixels."
_CROWD_OF_TEXT = {"0": False, "1": True, "false": False, "true": True, "": False}
_NUM_BOX = 4
_MAX_INT64 = 2**63 - 1


def id_of(entry: Mapping[str, Any], key: str, owner: str) -> Id:
    """Return the id in a field of an `owner`, "image" or "annotation".

    Raises:
        FieldError: It is missing or no id.
    """
    value = entry.get(key)
    if type(value) is int and -_MAX_INT64 <= value <= _MAX_INT64:  # a million times
        return value
    if key not in entry:
        raise FieldError(f"{owner} without {key}", _fields_of(entry))
    try:
        return exact_id(value)
    except IdError as error:
        raise _refused(f"{key} that is neither a whole number nor text", key, value) from error


def category_id_of(entry: Mapping[str, Any]) -> int:
    """Return the category of an annotation; 1 where it names none.

    Raises:
        FieldError: It is no number.
    """
    return _number_in(entry, "category_id", "Write the id of a category, as in 'categories'.")


def number_id_of(entry: Mapping[str, Any]) -> int:
    """Return the id of a category.

    Raises:
        FieldError: It is missing or no number.
    """
    if "id" not in entry:
        raise FieldError("category without id", _fields_of(entry))
    return _number_in(entry, "id", "Number the categories.")


def _number_in(entry: Mapping[str, Any], key: str, remedy: str) -> int:
    value = entry.get(key, 1)
    if type(value) is int and -_MAX_INT64 <= value <= _MAX_INT64:
        return value
    try:
        number = number_of_id(exact_id(value))
    except IdError:
        number = None
    if number is None or abs(number) > _MAX_INT64:
        raise _refused(f"{key} that is not a whole number", key, value, remedy)
    return number


def box_of(entry: Mapping[str, Any]) -> Box:
    """Return the box of an annotation.

    Where `bbox` is missing, null or [], the box is that of the segmentation.

    Raises:
        FieldError: There is no box, or it is not four numbers.
    """
    bbox = entry.get("bbox")
    if bbox is None or bbox == []:
        return _box_of_segmentation_in(entry)
    if isinstance(bbox, dict):
        raise _refused("bbox that is an object", "bbox", bbox, _BOX_REMEDY)
    if not isinstance(bbox, list):
        raise _refused("bbox that is not four numbers", "bbox", bbox, _BOX_REMEDY)
    if len(bbox) == _NUM_BOX + 1:
        raise _refused(
            "bbox of 5 numbers", "bbox", bbox,
            f"Rotated boxes are not taken: write the upright box. {_BOX_REMEDY}",
        )  # fmt: skip
    if len(bbox) != _NUM_BOX:
        raise _refused("bbox that is not four numbers", "bbox", bbox, _BOX_REMEDY)
    if not set(map(type, bbox)) <= {int, float} or not _are_in_bounds(*bbox):
        bbox = [_float_in_box(value, bbox) for value in bbox]
    x, y, width, height = bbox
    return float(x), float(y), float(width), float(height)


def takes_box_of_segmentation(entry: Mapping[str, Any]) -> bool:
    """Return whether an annotation with a box has it from its segmentation."""
    return entry.get("bbox") in (None, [])


def _are_in_bounds(x: float, y: float, width: float, height: float) -> bool:
    low, high = -MAX_COORDINATE_PX, MAX_COORDINATE_PX
    return low <= x <= high and low <= y <= high and low <= width <= high and low <= height <= high


def _float_in_box(value: Any, bbox: list[Any]) -> float:
    if isinstance(value, str):
        if not _DECIMAL.fullmatch(value):
            remedy = "Write a decimal point. " if "," in value else ""
            raise _refused("bbox that is not four numbers", "bbox", bbox, f"{remedy}{_BOX_REMEDY}")
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused("bbox that is not four numbers", "bbox", bbox, _BOX_REMEDY)
    if isinstance(value, float) and not math.isfinite(value):
        raise _refused("bbox that is not four finite numbers", "bbox", bbox, _BOX_REMEDY)
    if abs(value) > MAX_COORDINATE_PX:
        raise _refused(f"bbox of numbers beyond {MAX_COORDINATE_PX:g}", "bbox", bbox, _BOX_REMEDY)
    return float(value)


def _box_of_segmentation_in(entry: Mapping[str, Any]) -> Box:
    segmentation = entry.get("segmentation")
    if not is_segmentation_given(segmentation):
        subject = f".bbox is {shown(entry['bbox'])}" if "bbox" in entry else _fields_of(entry)
        raise FieldError("annotation without bbox, segmentation or points", subject, _BOX_REMEDY)
    try:
        return box_of_segmentation(segmentation)
    except AnnotationError as error:
        raise FieldError(
            "annotation without bbox, whose segmentation cannot be read", f".segmentation: {error}"
        ) from error


def is_crowd_of(entry: Mapping[str, Any]) -> bool:
    """Return whether an annotation is a crowd; tools write 0, false, "0" and null for "no".

    Raises:
        FieldError: The value is none of these.
    """
    value = entry.get("iscrowd")
    if value == 0:
        return False
    if value is None or value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _CROWD_OF_TEXT:
        return _CROWD_OF_TEXT[value.strip().lower()]
    raise _refused("iscrowd that is neither 0 nor 1", "iscrowd", value)


def has_rotation(entry: Mapping[str, Any]) -> bool:
    """Return whether a tool such as CVAT drew the box turned: `bbox` is then not the object's."""
    attributes = entry.get("attributes")
    rotation = attributes.get("rotation") if isinstance(attributes, dict) else None
    return isinstance(rotation, int | float) and bool(rotation)


def side_of(entry: Mapping[str, Any], key: str) -> int | None:
    """Return an image's width or height, px; None where it is missing, null, zero or negative.

    Raises:
        FieldError: It is anything else, or too large.
    """
    value = entry.get(key)
    if value is None:
        return None
    try:
        side = number_of_id(exact_id(value))
    except IdError:
        side = None
    if side is None:
        raise _refused("image whose size is not a whole number", key, value)
    if side > MAX_SIDE_PX:
        raise _refused(f"image with a side above {MAX_SIDE_PX:,} px", key, value)
    return side if side > 0 else None


def file_name_of(entry: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the file name of an image, and whether it comes from `coco_url` as in LVIS.

    A signed URL loses its query: no secret leaves this function.

    Raises:
        FieldError: There is none, or it cannot be a file's name.
    """
    name = entry.get("file_name")
    url = entry.get("coco_url")
    if name in (None, "") and isinstance(url, str):
        try:
            of_url = urlsplit(url).path.rpartition("/")[2]
        except ValueError:
            of_url = ""
        if of_url and len(of_url) <= MAX_NAME_CHARS and "\0" not in of_url:
            return of_url, True
    if "file_name" not in entry:
        raise FieldError("image without file_name", _fields_of(entry))
    if name in (None, ""):
        raise _refused("image without file_name", "file_name", name)
    if not isinstance(name, str):
        raise _refused("image whose file_name is not text", "file_name", name)
    if len(name) > MAX_NAME_CHARS:
        raise _refused(
            f"image whose file_name is longer than {MAX_NAME_CHARS:,} characters", "file_name", name
        )
    if "\0" in name:
        raise _refused("image whose file_name has a NUL", "file_name", name)
    return redact_file_name(name), False


def _refused(kind: str, key: str, value: Any, remedy: str = "") -> FieldError:
    return FieldError(kind, f".{key} is {shown(value, quoted=True)}", remedy)


def _fields_of(entry: Mapping[str, Any]) -> str:
    """Return which fields an entry has, for one that lacks a field."""
    return f" with the fields {shown(', '.join(map(str, entry))) or 'none'}"
