"""The output of inference: the input annotations with a mask for every box."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mal.data.annotation_stream import Entry, read_members, write_members
from mal.data.annotations import CocoBoxes
from mal.data.entry_values import box_of, takes_box_of_segmentation
from mal.data.ids import IdLookup
from mal.data.image_table import lookup_of
from mal.data.points import is_without_box
from mal.data.problems import FieldError
from mal.data.segmentations import file_has_changed
from mal.labeling.coco_rle import empty_rle, rle_to_json
from mal.labeling.masks import PredictedMasks

PROMPTS = BOX_AND_POINTS, POINT = "box+points", "point"


def write_labels(path: Path, boxes: CocoBoxes, masks: PredictedMasks) -> None:
    """Write the input file with new `segmentation`, `area` and `score` of every annotation.

    An annotation without a prediction gets an empty mask and the score 0, because a mask of the
    input is no prediction. The mask has the size of its image, or 0 x 0 where the file does not
    list the image.

    Objects with points get `prompt`; those with points only get `estimated_bbox` too. Values of
    these fields from an earlier inference are removed. All other fields and images stay.

    Raises:
        AnnotationError: The input file has changed since the boxes were read.
    """
    write_members(path, _labeled_members(boxes, masks))


def _labeled_members(boxes: CocoBoxes, masks: PredictedMasks) -> Iterator[tuple[str, Any]]:
    is_labeled = False
    for key, value, entries in read_members(boxes.path):
        if entries is None:
            yield key, value
        elif key == "annotations":
            is_labeled = True
            yield key, _with_masks(entries, boxes, masks)
        else:
            yield key, (entry.value for entry in entries)
    if not is_labeled:
        raise file_has_changed(boxes.path)


def _with_masks(entries: Iterable[Entry], boxes: CocoBoxes, masks: PredictedMasks) -> Iterator[Any]:
    """Yield the annotations of the file, labeled.

    Raises:
        AnnotationError: A box differs from the one that was read.
    """
    lookup: IdLookup | None = None  # created when the first is needed
    row = 0  # the next usable box: `boxes` has the order of the file
    for position, (annotation, _, _) in enumerate(entries):
        if row < len(boxes) and boxes.annotation_position_N[row] == position:
            if not _is_same(annotation, boxes, row):
                raise file_has_changed(boxes.path)
            mask = masks.mask_of(row)
            if takes_box_of_segmentation(annotation) and not is_without_box(annotation):
                # The segmentation, from which the box comes, is replaced.
                annotation["bbox"] = boxes.box_xywh_N4[row].tolist()
            _set_mask(annotation, mask.rle, mask.area, round(mask.score, 6))
            annotation.update(_prompt_fields(boxes, row))
            row += 1
        elif isinstance(annotation, dict):
            lookup = lookup or lookup_of(boxes.images)
            index = lookup.find_value(annotation.get("image_id"))
            size = (boxes.images[index].height, boxes.images[index].width) if index >= 0 else (0, 0)
            _set_mask(annotation, empty_rle(*size), 0, 0.0)
        yield annotation
    if row < len(boxes):
        raise file_has_changed(boxes.path)


def _set_mask(annotation: dict[str, Any], rle: dict[str, Any], area: int, score: float) -> None:
    """Set the fields of a mask and drop the prompt fields of an earlier inference."""
    annotation.update(segmentation=rle_to_json(rle), area=area, score=score)
    annotation.pop("estimated_bbox", None)
    if annotation.get("prompt") in PROMPTS:  # any other value is the user's own field
        del annotation["prompt"]


def _prompt_fields(boxes: CocoBoxes, row: int) -> dict[str, Any]:
    """Return the fields of an object whose mask comes from more than its box."""
    if boxes.points is None or not boxes.points.count_of(row):
        return {}
    if not boxes.points.is_without_box_N[row]:
        return {"prompt": BOX_AND_POINTS}
    return {"prompt": POINT, "estimated_bbox": boxes.box_xywh_N4[row].round(2).tolist()}


def _is_same(annotation: Any, boxes: CocoBoxes, row: int) -> bool:
    if boxes.points is not None and boxes.points.is_without_box_N[row]:
        return isinstance(annotation, dict) and is_without_box(annotation)
    try:
        return isinstance(annotation, dict) and np.array_equal(
            box_of(annotation), boxes.box_xywh_N4[row]
        )
    except FieldError:
        return False
