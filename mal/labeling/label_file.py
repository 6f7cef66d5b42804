"""The output of inference: the input annotations with a mask for every box."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mal.artifacts import writing_atomically
from mal.data.annotation_stream import Entry, read_members
from mal.data.annotations import CocoBoxes
from mal.data.points import is_without_box
from mal.data.segmentations import file_has_changed
from mal.labeling.coco_rle import rle_to_json
from mal.labeling.masks import PredictedMasks

PROMPTS = BOX_AND_POINTS, POINT = "box+points", "point"


def write_labels(path: Path, boxes: CocoBoxes, masks: PredictedMasks) -> None:
    """Write the COCO file: `segmentation`, `area` and `score` of every usable object are new.

    So is `prompt` of those with points, and `estimated_bbox` of those with points only; what an
    earlier labelling said so of others goes.

    All other fields, images without boxes and annotations that cannot be used stay as they were;
    the latter get a score of 0. The file is read again and copied entry by entry.

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
    row = 0  # of the next usable box: they are in the order of the file
    for position, (annotation, _, _) in enumerate(entries):
        if row < len(boxes) and boxes.annotation_position_N[row] == position:
            if not _is_same(annotation, boxes, row):
                raise file_has_changed(boxes.path)
            mask = masks.mask_of(row)
            annotation.update(
                segmentation=rle_to_json(mask.rle), area=mask.area, score=round(mask.score, 6)
            )
            _renew_prompt_fields(annotation, boxes, row)
            row += 1
        elif isinstance(annotation, dict):
            annotation["score"] = 0.0
        yield annotation
    if row < len(boxes):
        raise file_has_changed(boxes.path)


def _renew_prompt_fields(annotation: dict[str, Any], boxes: CocoBoxes, row: int) -> None:
    """Say what an object's mask was made of where that is more than a box."""
    annotation.pop("estimated_bbox", None)
    if annotation.get("prompt") in PROMPTS:  # others are not ours
        del annotation["prompt"]
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
