"""Estimates boxes for objects that have points only, from the masks that the model predicts.

The network predicts masks for windows of several sizes around the points. In each mask the
connected part that holds the points on the object is kept; its extent is a better box. The network
runs again with that box, twice. A good box reproduces itself: the one chosen has the highest

    consistency = IoU(box given, extent of the part found)
                  * (mean probability of the part)^2 * exp(-z^2 / 20)

with z the distance of its size from those of real boxes of the category, in standard deviations of
the logarithm. A part that contains a point off the object counts a tenth. The extent found for the
chosen box is the estimate. docs/results.md compares criteria.

Shape letters: N objects, C candidate windows, K points, M side of the mask map, R side of the map
on which extents are measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mal.data.annotations import CocoBoxes, CocoImage
from mal.data.batch import collate_crops
from mal.data.crop_dataset import ImageReader, crop_around
from mal.data.crops import Window, prediction_window, xywh_from_xyxy
from mal.data.points import OFF, ON, points_in_unit_window
from mal.data.size_prior import SizePrior
from mal.errors import AnnotationError
from mal.labeling.connected import grow
from mal.labeling.predictor import PredictionSettings, ProbabilityModel
from mal.model.heads import resize_to

MIN_SIDE_PX = 4.0
MAP_GROWTH = 2
NUM_REFINEMENTS = 2
CONTRADICTION_FACTOR = 0.1
PRIOR_SHARPNESS = 0.05


@dataclass(frozen=True)
class EstimatedBox:
    """A box that the model found around an object's points.

    Attributes:
        box_xywh: Pixels.
        consistency: 0..1, see above; 0 where the image could not be read.
    """

    box_xywh: NDArray[np.float64]
    consistency: float


@dataclass(frozen=True)
class _Answer:
    """What the network found when asked about a box: the extent of the part, and how good."""

    extent_xyxy: NDArray[np.float64]
    consistency: float


class BoxEstimator:
    """Estimates the boxes of objects with points only.

    Args:
        model: Any probability model.
        settings: How crops are cut, and the thresholds.
        prior: What is known of the sizes of objects.
    """

    def __init__(
        self, model: ProbabilityModel, settings: PredictionSettings, prior: SizePrior
    ) -> None:
        self.model = model
        self.settings = settings
        self.prior = prior

    def estimate_all(
        self, reader: ImageReader, rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, EstimatedBox]]:
        """Yield row and box of each; an object whose image is broken gets a box of usual size."""
        for row in rows.tolist():
            yield row, self.estimate(reader, row)

    def estimate(self, reader: ImageReader, row: int) -> EstimatedBox:
        """Return the box of one object."""
        candidates = self._first_candidates(reader.boxes, row)
        try:
            answers = self._ask(reader, row, candidates)
        except AnnotationError:
            usual = candidates[len(candidates) // 2]
            return EstimatedBox(xywh_from_xyxy(usual), 0.0)
        for _ in range(NUM_REFINEMENTS):
            extents = _without_repeats([answer.extent_xyxy for answer in answers])
            answers = self._ask(reader, row, extents)
        best = max(answers, key=lambda answer: answer.consistency)
        extent = _clip(best.extent_xyxy, reader.boxes.image_of(row))
        return EstimatedBox(xywh_from_xyxy(extent), best.consistency)

    def _first_candidates(self, boxes: CocoBoxes, row: int) -> list[NDArray[np.float64]]:
        """Return squares around the first point on the object, each holding all of them.

        A further click thus asks for the same windows again, whose features are kept.
        """
        assert boxes.points is not None
        xy_K2, label_K = boxes.points.of(row)
        on_K2 = xy_K2[label_K == ON]
        reach = np.abs(on_K2 - on_K2[0]).max(0) + 1
        image = boxes.image_of(row)
        candidates = []
        for side in self.prior.candidate_sides(category_of(boxes, row), image.width, image.height):
            half = np.maximum(side / 2, reach)
            candidates.append(np.concatenate([on_K2[0] - half, on_K2[0] + half]))
        return candidates

    def _ask(
        self, reader: ImageReader, row: int, candidates: Sequence[NDArray[np.float64]]
    ) -> list[_Answer]:
        """Run the network with each candidate as the box; return the parts that it finds."""
        boxes, settings = reader.boxes, self.settings
        assert boxes.points is not None
        pixels = reader(int(boxes.image_index_N[row]))
        windows = [prediction_window(box, settings.margin_rate) for box in candidates]
        crops = [
            crop_around(
                boxes,
                row,
                pixels,
                box_xywh=xywh_from_xyxy(box),
                window=window,
                crop_size=settings.crop_size,
            )
            for box, window in zip(candidates, windows, strict=True)
        ]
        batch = collate_crops(crops)
        prob_CMM = self.model(
            batch.image_BCSS, batch.unit_box_B4, batch.box_area_B, batch.point_BK3
        )
        size = MAP_GROWTH * prob_CMM.shape[-1]
        prob_CRR = resize_to(prob_CMM.float().cpu()[:, None], (size, size))[:, 0].numpy()
        answers = []
        for box, window, prob_RR in zip(candidates, windows, prob_CRR, strict=True):
            point_K3 = points_in_unit_window(boxes.points, row, window)
            is_mask_RR = prob_RR >= settings.threshold_of(float(np.prod(box[2:] - box[:2])))
            part_RR, is_contradicted = part_with_points(is_mask_RR, point_K3)
            consistency = float(prob_RR[part_RR].mean()) ** 2 if part_RR.any() else 0.0
            consistency *= CONTRADICTION_FACTOR if is_contradicted else 1
            answers.append(_Answer(_extent_of(part_RR, window), consistency))
        return [
            self._weigh(answer, box, boxes, row)
            for answer, box in zip(answers, candidates, strict=True)
        ]

    def _weigh(
        self, answer: _Answer, box_xyxy: NDArray[np.float64], boxes: CocoBoxes, row: int
    ) -> _Answer:
        """Lower the consistency of a part that differs from its box, or has an unusual size."""
        image = boxes.image_of(row)
        asked, found = (_clip(box, image) for box in (box_xyxy, answer.extent_xyxy))
        deviation = self.prior.deviations(category_of(boxes, row), found)
        likelihood = math.exp(-PRIOR_SHARPNESS * deviation**2)
        return _Answer(
            _at_least(answer.extent_xyxy, MIN_SIDE_PX),
            answer.consistency * box_iou(asked, found) * likelihood,
        )


def part_with_points(
    is_mask_RR: NDArray[np.bool_], point_K3: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], bool]:
    """Return the part with the points on the object, and whether it has one off the object."""
    size = len(is_mask_RR)
    cell_K2 = np.minimum((point_K3[:, :2] * size).astype(int), size - 1)
    on, off = (cell_K2[point_K3[:, 2] == label] for label in (ON, OFF))
    seed_RR = np.zeros_like(is_mask_RR)
    seed_RR[on[:, 1], on[:, 0]] = True
    part_RR = grow(seed_RR, is_mask_RR)
    return part_RR, bool(part_RR[off[:, 1], off[:, 0]].any())


def category_of(boxes: CocoBoxes, row: int) -> str:
    """Return the name of an object's category, '' if it has none."""
    return boxes.categories.get(int(boxes.category_id_N[row]), "")


def _clip(box_xyxy: NDArray[np.float64], image: CocoImage) -> NDArray[np.float64]:
    return np.clip(box_xyxy, 0, [image.width, image.height] * 2)


def rows_without_box(boxes: CocoBoxes) -> NDArray[np.int64]:
    """Return the objects that have points only."""
    if boxes.points is None:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(boxes.points.is_without_box_N)


def has_boxes(boxes: CocoBoxes) -> bool:
    """Whether any object that is no crowd has a real box."""
    is_real_N = ~boxes.is_crowd_N & ~np.isnan(boxes.box_area_N)
    return bool(is_real_N.any())


def with_boxes(boxes: CocoBoxes, estimates: Sequence[tuple[int, EstimatedBox]]) -> CocoBoxes:
    """Return the set with estimated boxes for objects without one; real boxes stay."""
    missing = set(rows_without_box(boxes).tolist())
    box_xywh_N4 = boxes.box_xywh_N4.copy()
    for row, estimate in estimates:
        if row in missing:
            box_xywh_N4[row] = estimate.box_xywh
    return dataclasses.replace(boxes, box_xywh_N4=box_xywh_N4)


def box_iou(one_xyxy: NDArray[np.float64], other_xyxy: NDArray[np.float64]) -> float:
    """Return the intersection over union of two boxes."""
    near = np.maximum(one_xyxy[:2], other_xyxy[:2])
    far = np.minimum(one_xyxy[2:], other_xyxy[2:])
    shared = float(np.prod(np.maximum(far - near, 0)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (one_xyxy, other_xyxy)]
    return shared / max(sum(areas) - shared, 1e-9)


def _extent_of(part_RR: NDArray[np.bool_], window: Window) -> NDArray[np.float64]:
    """Return the extent of a part of the map in pixels of the image, xyxy."""
    columns, rows = (np.flatnonzero(part_RR.any(axis)) for axis in (0, 1))
    if not len(columns):
        return np.array(window, dtype=np.float64)
    unit = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / len(part_RR)
    x0, y0, x1, y1 = window
    extent: NDArray[np.float64] = unit * ([x1 - x0, y1 - y0] * 2) + [x0, y0, x0, y0]
    return extent


def _at_least(box_xyxy: NDArray[np.float64], side_px: float) -> NDArray[np.float64]:
    grow_xy = np.maximum(side_px - (box_xyxy[2:] - box_xyxy[:2]), 0) / 2
    grown: NDArray[np.float64] = box_xyxy + np.concatenate([-grow_xy, grow_xy])
    return grown


def _without_repeats(boxes_xyxy: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Leave out boxes that are nearly another's: the network would say the same again."""
    kept: list[NDArray[np.float64]] = []
    for box in boxes_xyxy:
        if all(box_iou(box, other) < 0.9 for other in kept):
            kept.append(box)
    return kept
