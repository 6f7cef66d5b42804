"""The output of inference: the input annotations with a mask for every box."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mal.artifacts import write_json
from mal.data.annotations import CocoBoxes, read_annotation_document
from mal.labeling.coco_rle import rle_to_json
from mal.labeling.masks import InstanceMask


def write_labels(path: Path, boxes: CocoBoxes, masks: Iterable[InstanceMask]) -> int:
    """Write the COCO file: `segmentation`, `area` and `score` of every usable object are new.

    So is `prompt` of those with points, and `estimated_bbox` of those with points only.

    All other fields, images without boxes and annotations that cannot be used stay as they were;
    the latter get a score of 0.

    Returns:
        How many masks are not empty.
    """
    document: dict[str, Any] = read_annotation_document(boxes.path)
    annotations = document["annotations"]
    labeled: set[int] = set()
    num_masks = 0
    for mask in masks:
        position = int(boxes.annotation_position_N[mask.index])
        labeled.add(position)
        num_masks += mask.area > 0
        annotations[position].update(
            segmentation=rle_to_json(mask.rle), area=mask.area, score=round(mask.score, 6)
        )
        annotations[position].update(_prompt_fields(boxes, mask.index))
    for position, annotation in enumerate(annotations):
        if position not in labeled and isinstance(annotation, dict):
            annotation["score"] = 0.0
    write_json(path, document)
    return num_masks


def _prompt_fields(boxes: CocoBoxes, index: int) -> dict[str, Any]:
    """Return what the output says of an object's points; nothing where it has none."""
    if boxes.points is None or not boxes.points.count_N[index]:
        return {}
    if not boxes.points.is_without_box_N[index]:
        return {"prompt": "box+points"}
    return {"prompt": "point", "estimated_bbox": boxes.box_xywh_N4[index].round(2).tolist()}
