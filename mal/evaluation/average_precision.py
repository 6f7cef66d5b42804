"""COCO's average precision of masks over given boxes, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mal.data.annotations import CocoBoxes, Rle
from mal.labeling.coco_rle import area_of_rle
from mal.labeling.masks import InstanceMask

AP_METRICS = ("AP", "AP50", "AP75")

_ANY_AREA_PX2 = (0.0, float("inf"))
_IOU_50_COLUMN, _IOU_75_COLUMN = 0, 5


def average_precision(
    boxes: CocoBoxes, masks: Sequence[InstanceMask], true_rles: Mapping[int, Rle]
) -> dict[str, float | None]:
    """Rank the masks of each category by score and average precision over recall and IoU.

    COCO's limit of 100 detections per image is raised to the largest number that occurs, so that no
    instance is dropped.

    Args:
        boxes: The set.
        masks: Predictions, at most one per box.
        true_rles: True mask by row of `boxes`; only these are positives.

    Returns:
        AP over IoU 0.50 to 0.95, AP50 and AP75; None without true masks.
    """
    if not true_rles:
        return dict.fromkeys(AP_METRICS)
    truths = [_coco_entry(boxes, index, rle) for index, rle in true_rles.items()]
    found = [
        {**_coco_entry(boxes, mask.index, mask.rle), "score": float(mask.score)} for mask in masks
    ]
    precision_TRK = _precision(boxes, truths, found)
    return {
        "AP": _mean_of_present(precision_TRK),
        "AP50": _mean_of_present(precision_TRK[_IOU_50_COLUMN]),
        "AP75": _mean_of_present(precision_TRK[_IOU_75_COLUMN]),
    }


def _precision(boxes: CocoBoxes, truths: list[Any], found: list[Any]) -> Any:
    """Return precision by IoU threshold T, recall step R and category K; -1 marks absent ones."""
    num_by_image = Counter(entry["image_id"] for entry in [*truths, *found])
    # pycocotools reports to standard output, where users expect the command's own lines.
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(_coco_set(COCO(), boxes, truths), _coco_set(COCO(), boxes, found), "segm")
        judge.params.imgIds = sorted(num_by_image)
        judge.params.catIds = sorted({entry["category_id"] for entry in truths})
        judge.params.areaRng = [list(_ANY_AREA_PX2)]
        judge.params.areaRngLbl = ["all"]
        judge.params.maxDets = [max(num_by_image.values())]
        judge.evaluate()
        judge.accumulate()
    return np.asarray(judge.eval["precision"])[:, :, :, 0, 0]


def _mean_of_present(precision: Any) -> float | None:
    present = precision[precision > -1]
    return float(present.mean()) if present.size else None


def _coco_entry(boxes: CocoBoxes, index: int, rle: Rle) -> dict[str, Any]:
    """Describe one mask; ids begin at 1, because pycocotools reads a match with 0 as none."""
    return {
        "id": index + 1,
        "image_id": int(boxes.image_index_N[index]),
        "category_id": int(boxes.category_id_N[index]),
        "segmentation": rle,
        "area": area_of_rle(rle),
        "iscrowd": 0,
    }


def _coco_set(coco: Any, boxes: CocoBoxes, entries: list[Any]) -> Any:
    coco.dataset = {
        "images": [
            {"id": index, "height": image.height, "width": image.width}
            for index, image in enumerate(boxes.images)
        ],
        "categories": [{"id": key, "name": name} for key, name in boxes.categories.items()],
        "annotations": entries,
    }
    coco.createIndex()
    return coco
