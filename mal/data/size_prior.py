"""The usual sizes of a category's objects, learned from real boxes and used to estimate others.

The model assumes that log sqrt(w * h) has a normal distribution. Categories with few boxes are
smoothed: mean and variance are computed as if `POOLED_COUNT` boxes of the whole set were added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mal.data.annotations import CocoBoxes

POOLED_COUNT = 4
MIN_DEVIATION = 0.2
MIN_BOXES = 5
# If fewer objects have a box, these may be unusual: the annotator had a reason to draw a box.
MIN_OWN_SHARE = 0.1
# Without real boxes: squares with these parts of the image's side, all equally likely.
UNKNOWN_SHARES = (0.08, 0.15, 0.28, 0.5, 0.9)
CANDIDATE_DEVIATIONS = (-1.6, -0.8, 0.0, 0.8, 1.6)


@dataclass(frozen=True)
class SizePrior:
    """Mean and standard deviation of log sqrt(w * h), px, by category name; '' is the whole set.

    Empty where too few boxes are known.
    """

    log_side: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.log_side)

    @classmethod
    def from_boxes(cls, boxes: CocoBoxes) -> Self:
        """Learn from the real boxes of a set."""
        is_real_N = _is_real_box_N(boxes)
        log_side_N = np.log(boxes.box_area_N[is_real_N]) / 2
        if len(log_side_N) < MIN_BOXES:
            return cls()
        pooled = float(log_side_N.mean()), float(log_side_N.std())
        stats = {"": (pooled[0], max(pooled[1], MIN_DEVIATION))}
        category_N = boxes.category_id_N[is_real_N]
        for category_id in np.unique(category_N).tolist():
            name = boxes.categories.get(category_id, "")
            if name:
                stats[name] = _shrunk(log_side_N[category_N == category_id], pooled)
        return cls(stats)

    @classmethod
    def for_set(cls, boxes: CocoBoxes, trained: Self) -> Self:
        """Return the sizes of a set's own boxes, or those of the set that a network was trained on.

        The own sizes are used where at least a tenth of the objects has a box, or `trained` is
        empty.
        """
        own = cls.from_boxes(boxes)
        num_objects = int((~boxes.is_crowd_N).sum())
        is_usual = _is_real_box_N(boxes).sum() >= MIN_OWN_SHARE * num_objects
        return own if own and (is_usual or not trained) else trained

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the values of `to_json`; anything else is an empty prior."""
        if not isinstance(value, Mapping):
            return cls()
        return cls({str(name): (float(m), float(s)) for name, (m, s) in value.items()})

    def to_json(self) -> dict[str, list[float]]:
        """Return plain values for a checkpoint."""
        return {name: list(stats) for name, stats in self.log_side.items()}

    def candidate_sides(self, category: str, width: int, height: int) -> list[float]:
        """Return the sides of the squares to try, px, from small to large."""
        stats = self._of(category)
        if stats is None:
            return [share * math.sqrt(width * height) for share in UNKNOWN_SHARES]
        mean, deviation = stats
        return [math.exp(mean + z * deviation) for z in CANDIDATE_DEVIATIONS]

    def deviations(self, category: str, box_xyxy: NDArray[np.float64]) -> float:
        """Return the deviation from the usual size in standard deviations; 0 if that is unknown."""
        stats = self._of(category)
        if stats is None:
            return 0.0
        mean, deviation = stats
        area = max(float(np.prod(box_xyxy[2:] - box_xyxy[:2])), 1.0)
        return (math.log(area) / 2 - mean) / deviation

    def _of(self, category: str) -> tuple[float, float] | None:
        return self.log_side.get(category) or self.log_side.get("")


def _is_real_box_N(boxes: CocoBoxes) -> NDArray[np.bool_]:  # noqa: N802 - a shape letter
    is_real_N: NDArray[np.bool_] = ~boxes.is_crowd_N & (boxes.box_area_N > 0)
    return is_real_N if boxes.points is None else is_real_N & ~boxes.points.is_without_box_N


def _shrunk(log_side: NDArray[np.float64], pooled: tuple[float, float]) -> tuple[float, float]:
    mean_all, deviation_all = pooled
    total = len(log_side) + POOLED_COUNT
    mean = (log_side.sum() + POOLED_COUNT * mean_all) / total
    square = ((log_side - mean) ** 2).sum() + POOLED_COUNT * (
        deviation_all**2 + (mean_all - mean) ** 2
    )
    return float(mean), max(math.sqrt(square / total), MIN_DEVIATION)
