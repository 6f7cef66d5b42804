"""COCO: a file copied entry by entry, with other masks; all other fields stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mal.data.annotation_stream import Entry, read_members, write_members
from mal.data.annotations import CocoBoxes, CocoImage, Rle
from mal.data.entry_values import box_of
from mal.data.image_table import lookup_of
from mal.data.problems import FieldError
from mal.data.segmentations import rle_from_segmentation
from mal.errors import AnnotationError
from mal.labeling.coco_rle import area_of_rle
from mal.labeling.polygons import polygons_from_rle
from mal.labeling.writers.objects import Empty


@dataclass
class CocoCopy:
    """What was written of a COCO file.

    Attributes:
        left_out: Number of annotations that were not written, by reason.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    num_written: int = 0

    def line(self) -> str:
        """Say how many annotations were written, and how many were left out for which reason."""
        reasons = [f"{count:,} {reason}" for reason, count in self.left_out.items() if count]
        rest = f"; left out: {', '.join(reasons)}" if reasons else ""
        return f"{self.num_written:,} annotations{rest}"


def write_coco(boxes: CocoBoxes, path: Path) -> CocoCopy:
    """Write the usable annotations of a set, unchanged."""
    copy = CocoCopy()
    if boxes.num_unusable:
        copy.left_out["that cannot be used"] = boxes.num_unusable
    is_usable = np.zeros(int(boxes.annotation_position_N.max(initial=-1)) + 1, dtype=np.bool_)
    is_usable[boxes.annotation_position_N] = True

    def usable(entries: Iterable[Entry]) -> Iterator[Any]:
        for position, entry in enumerate(entries):
            if position < len(is_usable) and is_usable[position]:
                copy.num_written += 1
                yield entry.value

    _copy_members(boxes.path, path, usable)
    return copy


def write_polygons(boxes: CocoBoxes, path: Path, empty: Empty) -> CocoCopy:
    """Write a COCO file whose masks are polygons: one for each part, with bridges to its holes.

    An empty mask is left out, or becomes the polygon of its box, or [].
    """
    copy = CocoCopy()
    lookup = lookup_of(boxes.images)

    def with_polygons(entries: Iterable[Entry]) -> Iterator[Any]:
        for annotation, _, _ in entries:
            if not isinstance(annotation, dict):
                copy.left_out["that are no annotations"] += 1
                continue
            index = lookup.find_value(annotation.get("image_id"))
            if index < 0:
                copy.left_out["of an unknown image"] += 1
                continue
            polygons = _polygons_of(annotation, boxes.images[index], empty)
            if not polygons and empty is not Empty.KEEP:
                copy.left_out["without a mask"] += 1
                continue
            copy.num_written += 1
            yield annotation | {"segmentation": polygons}

    _copy_members(boxes.path, path, with_polygons)
    return copy


def _polygons_of(annotation: dict[str, Any], image: CocoImage, empty: Empty) -> Any:
    segmentation = annotation.get("segmentation")
    rle = _rle_of(segmentation, image)
    if rle is None:
        return _box_polygon(annotation, image) if empty is Empty.BOX else []
    return segmentation if isinstance(segmentation, list) else polygons_from_rle(rle)


def _rle_of(segmentation: Any, image: CocoImage) -> Rle | None:
    if not segmentation:
        return None
    try:
        rle = rle_from_segmentation(segmentation, image.height, image.width)
    except AnnotationError:
        return None
    return rle if area_of_rle(rle) else None


def _box_polygon(annotation: dict[str, Any], image: CocoImage) -> list[list[float]]:
    """Return the part of a box that is in its image as a polygon; [] where there is none."""
    try:
        x, y, box_width, box_height = box_of(annotation)
    except FieldError:
        return []
    x0, y0 = max(x, 0.0), max(y, 0.0)
    x1, y1 = min(x + box_width, image.width), min(y + box_height, image.height)
    return [[x0, y0, x1, y0, x1, y1, x0, y1]] if x0 < x1 and y0 < y1 else []


def _copy_members(
    source: Path, path: Path, annotations: Callable[[Iterable[Entry]], Iterator[Any]]
) -> None:
    def members() -> Iterator[tuple[str, Any]]:
        for key, value, entries in read_members(source):
            if entries is None:
                yield key, value
            elif key == "annotations":
                yield key, annotations(entries)
            else:
                yield key, (entry.value for entry in entries)

    write_members(path, members())
