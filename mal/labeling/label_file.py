"""The output of inference: the input annotations with a mask for every box."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.data.annotation_stream import Entry, read_members, write_members
from mal.data.annotations import CocoBoxes, Rle
from mal.data.entry_values import box_of, is_crowd_of, takes_box_of_segmentation
from mal.data.ids import IdLookup
from mal.data.image_table import lookup_of
from mal.data.points import is_without_box
from mal.data.problems import FieldError
from mal.data.segmentations import file_has_changed, rle_from_segmentation
from mal.errors import AnnotationError
from mal.labeling.coco_rle import area_of_rle, box_of_rle, empty_rle, rle_to_json
from mal.labeling.label_counts import EMPTY_REASON, LEFT_OUT, LabelCounter, LabelCounts
from mal.labeling.masks import (
    BELOW_THRESHOLD,
    CROWD,
    OUTSIDE_IMAGE,
    InstanceMask,
    PredictedMasks,
)
from mal.labeling.polygons import polygons_from_rle

PROMPTS = BOX_AND_POINTS, POINT = "box+points", "point"
MASK_SOURCE, FROM_INPUT = "mask_source", "input"
GIVEN_BOX = "given_bbox"


@dataclass(frozen=True)
class LabelForm:
    """What a label file has, by the keys of `inference`.

    Attributes:
        label_format: rle, or polygon.
        keep: What stays as the input has it: masks, scores, crowds.
        tight_boxes: Whether `bbox` is the extent of the mask.
    """

    label_format: str = "rle"
    keep: Collection[str] = ()
    tight_boxes: bool = False

    def keeps_mask(self, *, is_crowd: bool) -> bool:
        """Whether a readable mask of the input stays."""
        return "masks" in self.keep or (is_crowd and "crowds" in self.keep)

    def kept_rows(self, boxes: CocoBoxes) -> NDArray[np.bool_]:
        """Return which boxes keep the mask of the input, and need no prediction."""
        is_kept_N = np.zeros(len(boxes), dtype=np.bool_)
        if boxes.segmentations is None or not {"masks", "crowds"} & set(self.keep):
            return is_kept_N
        for row in np.flatnonzero(boxes.segmentations.is_given_N).tolist():
            if self.keeps_mask(is_crowd=bool(boxes.is_crowd_N[row])):
                image = boxes.image_of(row)
                is_kept_N[row] = bool(
                    _given_rle(boxes.segmentations[row], image.height, image.width)
                )
        return is_kept_N


def write_labels(
    path: Path, boxes: CocoBoxes, masks: PredictedMasks, form: LabelForm | None = None
) -> LabelCounts:
    """Write the input file with new `segmentation`, `area` and `score` of every annotation.

    An annotation without a prediction gets an empty mask and the score 0, because a mask of the
    input is no prediction. The mask has the size of its image, or 0 x 0 where the file does not
    list the image. `empty_reason` says why a mask is empty.

    Objects with points get `prompt`; those with points only get `estimated_bbox` too; those with a
    `score` in the input get `mask_score`. Values of these fields from an earlier inference are
    removed. All other fields and images stay.

    Returns:
        How many annotations have a mask, and why the others have none.

    Raises:
        AnnotationError: The input file has changed since the boxes were read.
    """
    labels = _Labels(boxes, masks, form or LabelForm())
    write_members(path, labels.members())
    return labels.counter.counts()


class _Labels:
    """The members of a label file, written while the input is read a second time."""

    def __init__(self, boxes: CocoBoxes, masks: PredictedMasks, form: LabelForm) -> None:
        self.boxes = boxes
        self.masks = masks
        self.form = form
        self.is_kept_N = form.kept_rows(boxes)
        self.counter = LabelCounter()
        self._lookup: IdLookup | None = None  # created when the first is needed

    def members(self) -> Iterator[tuple[str, Any]]:
        is_labeled = False
        for key, value, entries in read_members(self.boxes.path):
            if entries is None:
                yield key, value
            elif key == "annotations":
                is_labeled = True
                yield key, self.counter.passing(self._with_masks(entries))
            else:
                yield key, (entry.value for entry in entries)
        if not is_labeled:
            raise file_has_changed(self.boxes.path)

    def _with_masks(self, entries: Iterable[Entry]) -> Iterator[Any]:
        """Yield the annotations of the file, labeled.

        Raises:
            AnnotationError: A box differs from the one that was read.
        """
        boxes = self.boxes
        row = 0  # the next usable box: `boxes` has the order of the file
        for position, (annotation, _, _) in enumerate(entries):
            if row < len(boxes) and boxes.annotation_position_N[row] == position:
                if not _is_same(annotation, boxes, row):
                    raise file_has_changed(boxes.path)
                self._label(annotation, row)
                row += 1
            elif isinstance(annotation, dict):
                self._label_unusable(annotation)
            yield annotation
        if row < len(boxes):
            raise file_has_changed(boxes.path)

    def _label(self, annotation: dict[str, Any], row: int) -> None:
        _drop_earlier_fields(annotation)
        image = self.boxes.image_of(row)
        if takes_box_of_segmentation(annotation) and not is_without_box(annotation):
            # The segmentation, from which the box comes, is replaced.
            annotation["bbox"] = self.boxes.box_xywh_N4[row].tolist()
        if self.is_kept_N[row]:
            rle = _given_rle(annotation.get("segmentation"), image.height, image.width)
            if rle is None:
                raise file_has_changed(self.boxes.path)
            self._keep(annotation, rle)
        else:
            mask = self.masks.mask_of(row)
            self._set_mask(annotation, mask, is_crowd=bool(self.boxes.is_crowd_N[row]))
        annotation.update(_prompt_fields(self.boxes, row))

    def _label_unusable(self, annotation: dict[str, Any]) -> None:
        _drop_earlier_fields(annotation)
        size = self._size_of(annotation.get("image_id"))
        if self.form.keeps_mask(is_crowd=_is_crowd(annotation)):
            rle = _given_rle(annotation.get("segmentation"), *size)
            if rle is not None:
                self._keep(annotation, rle)
                return
        reason = OUTSIDE_IMAGE if _is_outside(annotation, size) else LEFT_OUT
        self._set_mask(annotation, InstanceMask(-1, empty_rle(*size), 0.0, 0, reason))

    def _size_of(self, image_id: Any) -> tuple[int, int]:
        """Return height and width of an image; zeros for one that the file does not list."""
        self._lookup = self._lookup or lookup_of(self.boxes.images)
        index = self._lookup.find_value(image_id)
        if index < 0:
            return 0, 0
        image = self.boxes.images[index]
        return image.height, image.width

    def _set_mask(
        self, annotation: dict[str, Any], mask: InstanceMask, *, is_crowd: bool = False
    ) -> None:
        score = round(mask.score, 6)
        if annotation.get("score") is not None:
            annotation["mask_score"] = score
        if "scores" not in self.form.keep or annotation.get("score") is None:
            annotation["score"] = score
        annotation["segmentation"] = self._segmentation(mask.rle)
        annotation["area"] = mask.area
        if not mask.area:
            annotation[EMPTY_REASON] = (
                CROWD if is_crowd and mask.empty_reason == BELOW_THRESHOLD else mask.empty_reason
            )
        elif self.form.tight_boxes:
            _tighten(annotation, mask.rle)

    def _keep(self, annotation: dict[str, Any], rle: Rle) -> None:
        """Keep the mask of the input; one without a score is certain."""
        if annotation.get("score") is None:
            annotation["score"] = 1.0
        annotation.update({"area": area_of_rle(rle), MASK_SOURCE: FROM_INPUT})
        if self.form.tight_boxes:
            _tighten(annotation, rle)

    def _segmentation(self, rle: Rle) -> Any:
        return polygons_from_rle(rle) if self.form.label_format == "polygon" else rle_to_json(rle)


def _drop_earlier_fields(annotation: dict[str, Any]) -> None:
    """Drop what an earlier inference wrote; other values of these fields are the user's own."""
    annotation.pop("estimated_bbox", None)
    annotation.pop("mask_score", None)
    annotation.pop(EMPTY_REASON, None)
    if annotation.get("prompt") in PROMPTS:
        del annotation["prompt"]
    if annotation.get(MASK_SOURCE) == FROM_INPUT:
        del annotation[MASK_SOURCE]


def _given_rle(segmentation: Any, height: int, width: int) -> Rle | None:
    """Return the mask of the input; None if it has no pixel or cannot be read."""
    if not segmentation:
        return None
    try:
        rle = rle_from_segmentation(segmentation, height, width)
    except AnnotationError:
        return None
    return rle if area_of_rle(rle) else None


def _tighten(annotation: dict[str, Any], rle: Rle) -> None:
    """Set `bbox` to the extent of the mask; the first given box stays in `given_bbox`."""
    if not is_without_box(annotation):
        annotation.setdefault(GIVEN_BOX, annotation.get("bbox"))
    annotation["bbox"] = box_of_rle(rle)


def _is_outside(annotation: dict[str, Any], size: tuple[int, int]) -> bool:
    """Whether a box has a size, and no part of it is in its image."""
    height, width = size
    try:
        x, y, box_width, box_height = box_of(annotation)
    except FieldError:
        return False
    is_beside = x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0
    return bool(width) and box_width > 0 and box_height > 0 and is_beside


def _is_crowd(annotation: dict[str, Any]) -> bool:
    try:
        return is_crowd_of(annotation)
    except FieldError:
        return False


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
