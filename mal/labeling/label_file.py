"""The output of inference: the input annotations with a mask for every box."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from mal.artifacts import writing_atomically
from mal.data.annotation_columns import UNUSABLE, int64_from
from mal.data.annotation_stream import Entry, read_members
from mal.data.annotations import CocoBoxes, CocoImage
from mal.data.points import is_without_box
from mal.data.segmentations import file_has_changed
from mal.labeling.coco_rle import empty_rle, rle_to_json
from mal.labeling.masks import PredictedMasks

PROMPTS = BOX_AND_POINTS, POINT = "box+points", "point"


def write_labels(path: Path, boxes: CocoBoxes, masks: PredictedMasks) -> None:
    """Write the COCO file: `segmentation`, `area` and `score` of every annotation are new.

    What cannot be predicted gets an empty mask and a score of 0: a mask that the input has is no
    prediction. The mask is of the image's size, or 0 x 0 where the file has no such image.

    New, too, are `prompt` of objects with points, and `estimated_bbox` of those with points only;
    what an earlier labelling said so of others goes.

    All other fields, and images without boxes, stay as they were. The file is read again and
    copied entry by entry.

    Raises:
        AnnotationError: It is not the one that the boxes were read from.
    """
    with (
        writing_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        separator = "{\n"
        is_labeled = False
        for key, value, entries in read_members(boxes.path):
            file.write(f"{separator}{json.dumps(key)}: ")
            if entries is None:
                file.write(json.dumps(value))
            elif key == "annotations":
                is_labeled = True
                _write_list(file, _with_masks(entries, boxes, masks))
            else:
                _write_list(file, (entry.value for entry in entries))
            separator = ",\n"
        if not is_labeled:
            raise file_has_changed(boxes.path)
        file.write("\n}\n")


def _write_list(file: TextIO, values: Iterable[Any]) -> None:
    """Write a list, an element a line."""
    separator = "["
    for value in values:
        file.write(f"{separator}\n{json.dumps(value)}")
        separator = ","
    file.write("[]" if separator == "[" else "\n]")


def _with_masks(entries: Iterable[Entry], boxes: CocoBoxes, masks: PredictedMasks) -> Iterator[Any]:
    """Yield the annotations of the file, labelled.

    Raises:
        AnnotationError: A box is not where it was.
    """
    sizes = _ImageSizes(boxes.images)
    row = 0  # of the next usable box: they are in the order of the file
    for position, (annotation, _, _) in enumerate(entries):
        if row < len(boxes) and boxes.annotation_position_N[row] == position:
            if not _is_same(annotation, boxes, row):
                raise file_has_changed(boxes.path)
            mask = masks.mask_of(row)
            annotation.update(
                segmentation=rle_to_json(mask.rle), area=mask.area, score=round(mask.score, 6)
            )
            _drop_prompt_fields(annotation)
            _tell_prompt(annotation, boxes, row)
            row += 1
        elif isinstance(annotation, dict):
            rle = empty_rle(*sizes.height_width_of(annotation.get("image_id")))
            annotation.update(segmentation=rle_to_json(rle), area=0, score=0.0)
            _drop_prompt_fields(annotation)
        yield annotation
    if row < len(boxes):
        raise file_has_changed(boxes.path)


class _ImageSizes:
    """Sizes of images by COCO id; nothing is made before the first is asked for."""

    def __init__(self, images: Sequence[CocoImage]) -> None:
        self._images = images

    @functools.cached_property
    def _ids_and_places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids in order, and the place of each image."""
        ids = (image.id for image in self._images)
        id_I = np.fromiter(ids, dtype=np.int64, count=len(self._images))
        place_I = np.argsort(id_I)
        return id_I[place_I], place_I

    def height_width_of(self, image_id: Any) -> tuple[int, int]:
        """Return the size of an image in pixels, zeros where there is none of this id."""
        try:
            wanted = int64_from(image_id)
        except UNUSABLE:
            return 0, 0
        id_I, place_I = self._ids_and_places
        rank = int(np.searchsorted(id_I, wanted))
        if rank == len(id_I) or id_I[rank] != wanted:
            return 0, 0
        image = self._images[int(place_I[rank])]
        return image.height, image.width


def _drop_prompt_fields(annotation: dict[str, Any]) -> None:
    annotation.pop("estimated_bbox", None)
    if annotation.get("prompt") in PROMPTS:  # others are not ours
        del annotation["prompt"]


def _tell_prompt(annotation: dict[str, Any], boxes: CocoBoxes, row: int) -> None:
    """Say what an object's mask was made of where that is more than a box."""
    if boxes.points is None or not boxes.points.count_of(row):
        return
    is_without_box = boxes.points.is_without_box_N[row]
    annotation["prompt"] = POINT if is_without_box else BOX_AND_POINTS
    if is_without_box:
        annotation["estimated_bbox"] = boxes.box_xywh_N4[row].round(2).tolist()


def _is_same(annotation: Any, boxes: CocoBoxes, row: int) -> bool:
    if boxes.points is not None and boxes.points.is_without_box_N[row]:
        return isinstance(annotation, dict) and is_without_box(annotation)
    try:
        box_xywh = [float(value) for value in annotation["bbox"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    return np.array_equal(box_xywh, boxes.box_xywh_N4[row])
