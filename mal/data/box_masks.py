"""Detects masks that are only the boxes: such masks measure nothing.

Some tools write a box's four corners as its `segmentation`, or its filled rectangle as RLE. Against
these masks the plain box is perfect and every real outline is wrong: the first epoch gets the best
mIoU, and a search prefers settings that fill the box.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mal.data.annotations import CocoBoxes, Rle
from mal.errors import AnnotationError

# A set of real outlines has hardly any rectangle.
MIN_SHARE = 0.5
# The few pixels of smaller objects often form a rectangle.
MIN_SIDE_PX = 8.0
# Rasterised polygons lose up to half a pixel a side; boxes are often rounded outwards.
_TOLERANCE_PX = 1.0
_MIN_FILL = 0.98
_MAX_CHECKED = 500

NO_MASKS = "it has no masks"


def reason_without_true_masks(boxes: CocoBoxes) -> str:
    """Return why a set's masks measure nothing, as the end of a sentence; '' if they are fine."""
    if not boxes.has_masks():
        return NO_MASKS
    return reason_masks_are_boxes(boxes)


def reason_masks_are_boxes(boxes: CocoBoxes) -> str:
    """Return that a set's masks are its boxes, as the end of a sentence; '' if they are not."""
    num_boxes, num_checked = _count_box_masks(boxes)
    if not num_checked or num_boxes < MIN_SHARE * num_checked:
        return ""
    return (
        f"its masks are the boxes themselves ({num_boxes} of the {num_checked} checked), "
        "not outlines"
    )


def reason_masks_are_unusable(boxes: CocoBoxes) -> str:
    """Return that none of a set's masks can be used, as the end of a sentence; '' if some can."""
    if not boxes.has_masks():
        return ""
    _, num_usable = _count_box_masks(boxes)
    num_looked_at = len(_rows_to_check(boxes))
    if num_usable or not num_looked_at:
        return ""
    return f"none of its masks can be read and has a pixel ({num_looked_at} checked)"


def is_box_mask(rle: Rle, box_xywh: NDArray[np.float64]) -> bool:
    """Return whether a mask is the filled rectangle of its box."""
    x, y, width, height = (float(value) for value in coco_mask.toBbox(cast("Any", rle)))
    if coco_mask.area(cast("Any", rle)) < _MIN_FILL * width * height:
        return False
    found = np.array([x, y, x + width, y + height])
    image_height, image_width = rle["size"]
    given = np.concatenate([box_xywh[:2], box_xywh[:2] + box_xywh[2:]])
    given = given.clip(0, [image_width, image_height] * 2)
    return bool((np.abs(found - given) <= _TOLERANCE_PX).all())


def _count_box_masks(boxes: CocoBoxes) -> tuple[int, int]:
    """Return how many masks are boxes, of how many that have a pixel, evenly over the file."""
    num_boxes = num_checked = 0
    for index in _rows_to_check(boxes).tolist():
        try:
            rle = boxes.rle_of(index)
        except AnnotationError:
            continue
        if rle is not None and coco_mask.area(cast("Any", rle)):
            num_checked += 1
            num_boxes += is_box_mask(rle, boxes.box_xywh_N4[index])
    return num_boxes, num_checked


def _rows_to_check(boxes: CocoBoxes) -> NDArray[np.int64]:
    if boxes.segmentations is None:
        return np.array([], dtype=np.int64)
    is_candidate_N = boxes.segmentations.is_given_N & ~boxes.is_crowd_N
    # Objects of points have no box (NaN): the comparison leaves them out.
    is_large_N = is_candidate_N & (boxes.box_xywh_N4[:, 2:].min(axis=1) >= MIN_SIDE_PX)
    rows = np.flatnonzero(is_large_N if is_large_N.any() else is_candidate_N)
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), _MAX_CHECKED)).astype(np.int64)]
