"""How good masks are: intersection over union with true masks, and COCO's average precision.

Everything is computed on run-length codes; no array of an image's size is ever built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.data.annotations import MEDIUM_MAX_AREA_PX2, SMALL_MAX_AREA_PX2, CocoBoxes, Rle
from mal.errors import AnnotationError, ArtifactError
from mal.evaluation.average_precision import AP_METRICS, average_precision
from mal.evaluation.baselines import compare_with_baselines
from mal.labeling.coco_rle import area_of_rle, box_of_rle, box_rle, ellipse_rle, ious_with_rle
from mal.labeling.masks import InstanceMask
from mal.shown import shown

SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class InstanceScore:
    """How well one box was labelled.

    Attributes:
        index: Row of the box in its `CocoBoxes`.
        iou: Predicted against true mask, in [0, 1].
        box_iou: Plain box against true mask.
        ellipse_iou: Ellipse inscribed in the box against true mask.
    """

    index: int
    iou: float
    box_iou: float
    ellipse_iou: float


@dataclass(frozen=True)
class Measurement:
    """What was measured.

    Attributes:
        metrics: The content of `metrics.json`.
        instances: What it is made of, in the file's order.
        warning: How many true masks cannot be used, and why; '' if all can.
    """

    metrics: dict[str, Any]
    instances: tuple[InstanceScore, ...]
    warning: str = ""


@dataclass
class _TrueMasks:
    """The true masks of the rows to measure, without unreadable and empty ones."""

    rle_of: dict[int, Rle] = field(default_factory=dict)
    num_unreadable: int = 0
    num_empty: int = 0
    first: str = ""

    def warning(self, boxes: CocoBoxes, num_rows: int) -> str:
        """Say how many true masks cannot be used; '' if all can."""
        parts = [
            f"{count:,} of {num_rows:,} true masks {words}"
            for count, words in (
                (self.num_unreadable, "cannot be read"),
                (self.num_empty, "are empty"),
            )
            if count
        ]
        if not parts:
            return ""
        first = f" (the first: {self.first})" if self.first else ""
        return f"{boxes.path}: {' and '.join(parts)}{first}; these are not measured"


def compute_metrics(
    boxes: CocoBoxes,
    masks: Iterable[InstanceMask],
    *,
    min_box_area: float = 0,
    min_box_side: float = 0,
) -> dict[str, Any]:
    """Return the content of `metrics.json`; see `measure_masks`."""
    return measure_masks(boxes, masks, min_box_area=min_box_area, min_box_side=min_box_side).metrics


def measure_masks(
    boxes: CocoBoxes,
    masks: Iterable[InstanceMask],
    *,
    min_box_area: float = 0,
    min_box_side: float = 0,
) -> Measurement:
    """Compare predicted with true masks.

    Crowds, boxes without a readable true mask and boxes outside the limits are not measured. Where
    no true mask is left, the mask metrics are None.

    Args:
        boxes: The set, with its segmentations.
        masks: One prediction for every box that the limits leave; further ones are ignored.
        min_box_area: Measure boxes of w * h above this, px^2.
        min_box_side: Measure boxes whose both sides reach this, px.

    Raises:
        ArtifactError: A box has no prediction or several, or a mask is of another image's size.
    """
    rows = rows_to_measure(boxes, min_box_area=min_box_area, min_box_side=min_box_side)
    mask_of = _mask_by_index(boxes, masks, rows)
    true = _true_masks(boxes, rows)
    true_rles = true.rle_of
    instances = tuple(
        _score_instance(boxes, mask_of[index], true_rle) for index, true_rle in true_rles.items()
    )
    precision = (
        average_precision(boxes, [mask_of[index] for index in true_rles], true_rles)
        if instances
        else dict.fromkeys(AP_METRICS)
    )
    metrics = {
        **_iou_metrics(boxes, instances),
        **precision,
        **_baseline_metrics(boxes, instances, "box", lambda score: score.box_iou),
        **_baseline_metrics(boxes, instances, "ellipse", lambda score: score.ellipse_iou),
        "num_crowds_skipped": int(np.count_nonzero(boxes.is_crowd_N)),
        "num_without_mask_skipped": len(rows) - len(instances),
        "num_unreadable_mask_skipped": true.num_unreadable,
        "num_empty_mask_skipped": true.num_empty,
        "num_outside_limits_skipped": (int(np.count_nonzero(~boxes.is_crowd_N)) - len(rows)),
        "num_unusable_skipped": boxes.num_unusable,
    }
    return Measurement(
        metrics | compare_with_baselines(metrics), instances, true.warning(boxes, len(rows))
    )


def size_of_box(box_area_px2: float) -> str:
    """Name COCO's size class of a box of the original image."""
    if box_area_px2 <= SMALL_MAX_AREA_PX2:
        return "small"
    return "medium" if box_area_px2 <= MEDIUM_MAX_AREA_PX2 else "large"


def mean_over_categories(
    boxes: CocoBoxes,
    instances: Sequence[InstanceScore],
    value_of: Callable[[InstanceScore], float] = lambda score: score.iou,
) -> float | None:
    """Average within each category, then over the categories that occur; None without instances."""
    values: dict[int, list[float]] = {}
    for score in instances:
        values.setdefault(int(boxes.category_id_N[score.index]), []).append(value_of(score))
    if not values:
        return None
    return float(np.mean([np.mean(of_category) for of_category in values.values()]))


def mean_over_instances(
    instances: Sequence[InstanceScore],
    value_of: Callable[[InstanceScore], float] = lambda score: score.iou,
) -> float | None:
    """Average over all instances; None without instances."""
    return float(np.mean([value_of(score) for score in instances])) if instances else None


def instances_by_size(
    boxes: CocoBoxes, instances: Iterable[InstanceScore]
) -> dict[str, list[InstanceScore]]:
    """Sort instances into small, medium and large boxes; all three keys are present.

    Of an object of points only the true mask's box counts, as in `rows_to_measure`.
    """
    area_N = _true_side_N2(boxes).prod(axis=1)
    groups: dict[str, list[InstanceScore]] = {size: [] for size in SIZES}
    for score in instances:
        groups[size_of_box(float(area_N[score.index]))].append(score)
    return groups


def category_names(boxes: CocoBoxes) -> dict[int, str]:
    """Return a unique name for every category: a name used twice gets its id added."""
    num_uses = Counter(boxes.categories.values())
    return {
        category_id: name if num_uses[name] == 1 else f"{name} ({category_id})"
        for category_id, name in boxes.categories.items()
    }


def _iou_metrics(boxes: CocoBoxes, instances: Sequence[InstanceScore]) -> dict[str, Any]:
    by_size = instances_by_size(boxes, instances)
    return {
        "mIoU": mean_over_categories(boxes, instances),
        **{f"mIoU_{size}": mean_over_categories(boxes, by_size[size]) for size in SIZES},
        "mean_iou_instances": mean_over_instances(instances),
        "num_instances": len(instances),
        "per_category": _per_category(boxes, instances),
    }


def _baseline_metrics(
    boxes: CocoBoxes,
    instances: Sequence[InstanceScore],
    name: str,
    value_of: Callable[[InstanceScore], float],
) -> dict[str, Any]:
    """Return a baseline beside `mean_iou_instances`, beside `mIoU`, and beside each category."""
    by_category = _per_category(boxes, instances, value_of)
    return {
        f"{name}_iou": mean_over_instances(instances, value_of),
        f"{name}_mIoU": mean_over_categories(boxes, instances, value_of),
        f"{name}_iou_per_category": {key: value["iou"] for key, value in by_category.items()},
    }


def _per_category(
    boxes: CocoBoxes,
    instances: Iterable[InstanceScore],
    value_of: Callable[[InstanceScore], float] = lambda score: score.iou,
) -> dict[str, dict[str, float | int]]:
    ious: dict[int, list[float]] = {}
    for score in instances:
        ious.setdefault(int(boxes.category_id_N[score.index]), []).append(value_of(score))
    names = category_names(boxes)
    return {
        names[category_id]: {
            "iou": float(np.mean(ious[category_id])),
            "count": len(ious[category_id]),
        }
        for category_id in sorted(ious)
    }


def rows_to_measure(
    boxes: CocoBoxes, *, min_box_area: float, min_box_side: float
) -> NDArray[np.int64]:
    """Return the rows that are no crowds and inside the limits, in the file's order.

    An object of points only counts with the size of its true mask, so that the choice does not
    depend on the box that a model estimates.
    """
    side_N2 = _true_side_N2(boxes)
    return np.flatnonzero(
        ~boxes.is_crowd_N
        & (side_N2[:, 0] * side_N2[:, 1] > min_box_area)
        & (side_N2.min(axis=1, initial=np.inf) >= min_box_side)
    )


def _true_side_N2(boxes: CocoBoxes) -> NDArray[np.float64]:  # noqa: N802 - a shape letter
    """Return the sides of given boxes; for an object of points only, those of its true mask."""
    side_N2 = boxes.box_xywh_N4[:, 2:].copy()
    if boxes.points is not None:
        for row in np.flatnonzero(boxes.points.is_without_box_N).tolist():
            side_N2[row] = _true_sides(boxes, row) or side_N2[row]
    return side_N2


def _true_sides(boxes: CocoBoxes, row: int) -> tuple[float, float] | None:
    try:
        rle = boxes.rle_of(row)
    except AnnotationError:
        return None
    if rle is None:
        return None
    _, _, width, height = box_of_rle(rle)
    return width, height


def _mask_by_index(
    boxes: CocoBoxes, masks: Iterable[InstanceMask], needed_indices: NDArray[np.int64]
) -> dict[int, InstanceMask]:
    mask_of: dict[int, InstanceMask] = {}
    for mask in masks:
        if not 0 <= mask.index < len(boxes):
            raise ArtifactError(
                f"predictions must belong to the {len(boxes)} boxes of {boxes.path}, got one for "
                f"row {mask.index}. Predict this set again."
            )
        annotation = boxes.name_of(mask.index)
        if mask.index in mask_of:
            raise ArtifactError(
                f"predictions must be one a box, got two for {annotation} in {boxes.path}. "
                "Give each once; a distributed sampler repeats boxes to fill its last batch."
            )
        image = boxes.image_of(mask.index)
        if list(mask.rle["size"]) != [image.height, image.width]:
            raise ArtifactError(
                f"mask of {annotation} must be of the image's size {image.height} x "
                f"{image.width}, got {list(mask.rle['size'])}. Predict "
                f"{shown(image.file_name)} again."
            )
        mask_of[mask.index] = mask
    missing = [int(index) for index in needed_indices if int(index) not in mask_of]
    if missing:
        raise ArtifactError(
            f"predictions must cover every box of {boxes.path}, got none for {len(missing)} of "
            f"{len(needed_indices)} (first: {boxes.name_of(missing[0])}). Predict them all, then "
            "measure."
        )
    return mask_of


def _true_masks(boxes: CocoBoxes, indices: NDArray[np.int64]) -> _TrueMasks:
    """Return the true mask by row, and count the unreadable and empty ones."""
    found = _TrueMasks()
    for index in indices.tolist():
        try:
            rle = boxes.rle_of(index)
        except AnnotationError as error:
            found.num_unreadable += 1
            found.first = found.first or f"{boxes.name_of(index)}: {error}"
            continue
        if rle is None:
            continue
        if area_of_rle(rle):
            found.rle_of[index] = rle
        else:
            found.num_empty += 1
    return found


def _score_instance(boxes: CocoBoxes, mask: InstanceMask, true_rle: Rle) -> InstanceScore:
    image = boxes.image_of(mask.index)
    box_xywh = boxes.box_xywh_N4[mask.index].tolist()
    drawn = [draw(box_xywh, image.height, image.width) for draw in (box_rle, ellipse_rle)]
    iou, box_iou, ellipse_iou = ious_with_rle([mask.rle, *drawn], true_rle)
    return InstanceScore(mask.index, iou, box_iou, ellipse_iou)
