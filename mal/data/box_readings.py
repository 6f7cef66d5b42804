"""Tests whether the boxes of a set are what COCO says: x, y, width and height in pixels.

Each other reading is applied to all boxes. A set is doubtful where COCO's reading does not fit the
images or the boxes' own segmentations, and another reading does.

Shape letters: N boxes, 4 = the numbers as they are in the file, or x, y, w, h in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_TESTED_BOXES = 20_000

_Floats = NDArray[np.float64]

# A reading is doubtful if fewer boxes fit; another one is named if at least so many do.
_LEAST_FITTING_RATE, _NAMED_FITTING_RATE = 0.9, 0.98
_CERTAIN_FITTING_RATE = 0.5
_MIN_MISFITS = 3
_MIN_BOXES_FOR_CERTAINTY = 5
# The same for the median IoU of boxes with the bounding boxes of their segmentations.
_LEAST_IOU, _NAMED_IOU, _CERTAIN_IOU = 0.5, 0.8, 0.2
_MIN_SEGMENTATIONS = 3
# A box fits its image if it crosses the border by no more than this.
_TOLERANCE_PX, _TOLERANCE_RATE = 1.0, 0.005
# A set in percent has images of many more pixels than 100, and boxes that reach almost to 100.
_MIN_SIDES_OF_UNIT, _MIN_REACH_OF_UNIT = 2.0, 0.6
_SCALE_AGREEMENT, _MIN_SCALE = 0.1, 1.2


@dataclass(frozen=True)
class BoxReading:
    """A meaning of four numbers.

    Attributes:
        name: What `mal dataset convert --boxes` takes.
        meaning: As a message says it.
        unit: Largest coordinate, where the numbers are shares of the image; None: pixels.
        to_xywh: From pixels to x, y, w, h in pixels; given the width and height of each image.
    """

    name: str
    meaning: str
    to_xywh: Callable[[_Floats, _Floats], _Floats]
    unit: float | None = None

    def xywh_px(self, box_N4: _Floats, image_size_N2: _Floats) -> _Floats:
        """Return the boxes as x, y, w, h in pixels."""
        if self.unit is not None:
            size_N2 = image_size_N2[:, ::-1] if self.name.startswith("y") else image_size_N2
            box_N4 = box_N4 * np.tile(size_N2, 2) / self.unit
        return self.to_xywh(box_N4, image_size_N2)


def _xywh_from_xyxy(box_N4: _Floats, _: _Floats) -> _Floats:
    return np.concatenate([box_N4[:, :2], box_N4[:, 2:] - box_N4[:, :2]], axis=1)


def _xywh_from_bottom(box_N4: _Floats, image_size_N2: _Floats) -> _Floats:
    top_N = image_size_N2[:, 1] - box_N4[:, 1] - box_N4[:, 3]
    return np.stack([box_N4[:, 0], top_N, box_N4[:, 2], box_N4[:, 3]], axis=1)


_LAYOUTS: dict[str, tuple[str, Callable[[_Floats, _Floats], _Floats]]] = {
    "xywh": ("[x, y, width, height]", lambda box_N4, _: box_N4),
    "xyxy": ("[x1, y1, x2, y2]", _xywh_from_xyxy),
    "yxyx": (
        "[y1, x1, y2, x2]",
        lambda box_N4, size_N2: _xywh_from_xyxy(box_N4[:, [1, 0, 3, 2]], size_N2),
    ),
    "cxcywh": (
        "[centre x, centre y, width, height]",
        lambda box_N4, _: np.concatenate(
            [box_N4[:, :2] - box_N4[:, 2:] / 2, box_N4[:, 2:]], axis=1
        ),
    ),
    "xywh-bottom": ("[x, y from the bottom, width, height]", _xywh_from_bottom),
    "xyhw": ("[x, y, height, width]", lambda box_N4, _: box_N4[:, [0, 1, 3, 2]]),
    "yxhw": ("[y, x, height, width]", lambda box_N4, _: box_N4[:, [1, 0, 3, 2]]),
}
_UNITS = {"": None, "-fraction": 1.0, "-percent": 100.0, "-thousandth": 1000.0}
_UNIT_WORDS = {
    None: "pixels",
    1.0: "fractions of the image",
    100.0: "percent of the image",
    1000.0: "thousandths of the image",
}

BOX_READINGS = {
    layout + suffix: BoxReading(layout + suffix, f"{meaning} in {_UNIT_WORDS[unit]}", convert, unit)
    for suffix, unit in _UNITS.items()
    for layout, (meaning, convert) in _LAYOUTS.items()
}
"""Every reading by name, the likelier first where several fit."""

# Boxes that are no corners seldom have corners in order: with one who fits, corners are certain.
_CORNERS = ("xyxy", "yxyx")

SWAPPED_SIZES, FILE_SIZES = "swapped-sizes", "file-sizes"
_SWAPPED_SIZES_REMEDY = (
    "Where the files carry an EXIF rotation, the sizes are those of the stored pictures and the "
    "boxes those of the upright ones; else the sizes are swapped. Swap the images' width and "
    f"height: mal dataset convert IN OUT --boxes {SWAPPED_SIZES}."
)
COCO_READING = BOX_READINGS["xywh"]


@dataclass(frozen=True)
class Doubt:
    """Boxes that are not what COCO says.

    Attributes:
        evidence: What does not fit, and what would, in one sentence.
        remedy: What to do, in one sentence.
        reading: What the boxes are most likely; None: no reading fits.
        is_certain: Whether masks of such boxes cannot be of the objects.
    """

    evidence: str
    remedy: str
    reading: BoxReading | None
    is_certain: bool

    def __str__(self) -> str:
        return f"{self.evidence}. {self.remedy}"


def find_doubt(
    box_N4: _Floats, image_size_N2: NDArray[np.int64], segment_xywh_N4: _Floats
) -> Doubt | None:
    """Return why the boxes of a set are not x, y, width and height in pixels, or None.

    Args:
        box_N4: Finite numbers as they are in the file.
        image_size_N2: Width and height of each box's image, px.
        segment_xywh_N4: Bounding box of each box's segmentation; NaN where it is not known.
    """
    every = max(1, len(box_N4) // MAX_TESTED_BOXES)
    tested = _TestedBoxes(
        box_N4[::every], image_size_N2[::every].astype(np.float64), segment_xywh_N4[::every]
    )
    if not len(tested.box_N4):
        return None
    if tested.num_segmentations < _MIN_SEGMENTATIONS:
        return tested.doubt_by_unit() or tested.doubt_by_fit(BOX_READINGS.values())
    iou = tested.median_iou(COCO_READING)
    return tested.doubt_by_segmentations(iou) if iou < _LEAST_IOU else tested.doubt_by_fit(())


@dataclass(frozen=True)
class _TestedBoxes:
    box_N4: _Floats
    size_N2: _Floats
    segment_xywh_N4: _Floats

    @property
    def num_segmentations(self) -> int:
        return int(np.isfinite(self.segment_xywh_N4).all(axis=1).sum())

    def doubt_by_segmentations(self, iou: float) -> Doubt:
        given = (
            f"Read as {COCO_READING.meaning}, boxes and their own segmentations do not meet "
            f"(median IoU {iou:.2f} of {self.num_segmentations})"
        )
        is_certain = iou < _CERTAIN_IOU
        ious = {reading.name: self.median_iou(reading) for reading in BOX_READINGS.values()}
        best = max(ious, key=lambda name: ious[name])
        if ious[best] < _NAMED_IOU:
            return Doubt(given, self._remedy_of_segmentations(), None, is_certain=False)
        reading = BOX_READINGS[best]
        evidence = f"{given}; read as {reading.meaning} they do (median IoU {ious[best]:.2f})"
        return Doubt(evidence, _conversion_to(reading), reading, is_certain)

    def _remedy_of_segmentations(self) -> str:
        scaled = self.segment_xywh_N4 * np.tile(self.size_N2, 2)
        in_pixels = _TestedBoxes(self.box_N4, self.size_N2, scaled)
        if in_pixels.median_iou(COCO_READING) >= _NAMED_IOU:
            return "The segmentations are fractions of the image: write them in pixels."
        return "Give boxes and segmentations of the same objects, in pixels of the image."

    def doubt_by_unit(self) -> Doubt | None:
        for unit in (1.0, 100.0, 1000.0):
            readings = [each for each in BOX_READINGS.values() if each.unit == unit]
            fitting = {each.name: self._fitting_rate(each) for each in readings}
            if not self._is_within(unit) or max(fitting.values()) < _NAMED_FITTING_RATE:
                continue
            reading = BOX_READINGS[max(fitting, key=lambda name: fitting[name])]
            evidence = (
                f"All {len(self.box_N4)} boxes lie within {unit:g} px of the images' corner, and "
                f"the images have {_range_of(self.size_N2)} px: read as {reading.meaning}, "
                f"{_percent(fitting[reading.name])} fit their image"
            )
            is_certain = unit == 1.0 or len(self.box_N4) >= 4 * _MIN_BOXES_FOR_CERTAINTY
            return Doubt(evidence, _conversion_to(reading), reading, is_certain)
        return None

    def doubt_by_fit(self, readings: Collection[BoxReading]) -> Doubt | None:
        """Return why boxes leave their images: they are read wrong, or the images' sizes are."""
        does_fit_N = self._does_fit_N(COCO_READING)
        num, misfits, rate = len(does_fit_N), int((~does_fit_N).sum()), float(does_fit_N.mean())
        if rate >= _LEAST_FITTING_RATE or misfits < _MIN_MISFITS:
            return None
        given = (
            f"Read as {COCO_READING.meaning}, {misfits} of {num} boxes leave their image or have "
            "no size"
        )
        is_certain = rate < _CERTAIN_FITTING_RATE and num >= _MIN_BOXES_FOR_CERTAINTY
        fitting = {
            reading: self._fitting_rate(reading) for reading in readings if reading.unit is None
        }
        swapped = _TestedBoxes(self.box_N4, self.size_N2[:, ::-1], self.segment_xywh_N4)
        best = max(fitting, key=lambda reading: fitting[reading], default=COCO_READING)
        if fitting.get(best, 0) >= _NAMED_FITTING_RATE and best.name in _CORNERS:
            return self._doubt_of_reading(given, best, fitting[best], is_certain=is_certain)
        if swapped._fitting_rate(COCO_READING) >= _NAMED_FITTING_RATE:
            evidence = f"{given}; with the images' width and height swapped, they fit"
            return Doubt(evidence, _SWAPPED_SIZES_REMEDY, None, is_certain)
        if fitting.get(best, 0) >= _NAMED_FITTING_RATE:
            return self._doubt_of_reading(given, best, fitting[best], is_certain=is_certain)
        return self._doubt_by_scale(given, is_certain=is_certain)

    def _doubt_of_reading(
        self, given: str, reading: BoxReading, fitting: float, *, is_certain: bool
    ) -> Doubt:
        evidence = f"{given}; read as {reading.meaning}, {_percent(fitting)} fit"
        return Doubt(evidence, _conversion_to(reading), reading, is_certain)

    def _doubt_by_scale(self, given: str, *, is_certain: bool) -> Doubt | None:
        reach_2 = np.max((self.box_N4[:, :2] + self.box_N4[:, 2:]) / self.size_N2, axis=0)
        is_even = abs(reach_2[0] / reach_2[1] - 1) < _SCALE_AGREEMENT
        if (self.box_N4[:, 2:] <= 0).any() or not is_even or reach_2.min() < _MIN_SCALE:
            return None
        evidence = (
            f"{given}; they reach to {reach_2[0]:.2f} times the width and {reach_2[1]:.2f} times "
            "the height: the boxes are of images of another scale"
        )
        remedy = "Give the images that were annotated, or scale the boxes."
        return Doubt(evidence, remedy, None, is_certain)

    def _is_within(self, unit: float) -> bool:
        """Return whether the numbers may be shares of images that are far larger than the unit."""
        largest = self.box_N4.max()
        if np.median(self.size_N2, axis=0).min() < _MIN_SIDES_OF_UNIT * unit or largest <= 0:
            return False
        if unit == 1.0 and largest <= 1.0:
            return True
        return bool(
            self.box_N4.min() >= -_TOLERANCE_RATE * unit
            and _MIN_REACH_OF_UNIT * unit <= largest <= (1 + _TOLERANCE_RATE) * unit
            and (unit == 1.0 or len(self.box_N4) >= _MIN_BOXES_FOR_CERTAINTY)
        )

    def _fitting_rate(self, reading: BoxReading) -> float:
        return float(self._does_fit_N(reading).mean())

    def _does_fit_N(self, reading: BoxReading) -> NDArray[np.bool_]:  # noqa: N802 - a shape letter
        xywh_N4 = reading.xywh_px(self.box_N4, self.size_N2)
        tolerance_N2 = np.maximum(_TOLERANCE_PX, _TOLERANCE_RATE * self.size_N2)
        low_N2, side_N2 = xywh_N4[:, :2], xywh_N4[:, 2:]
        is_inside_N2 = (low_N2 >= -tolerance_N2) & (low_N2 + side_N2 <= self.size_N2 + tolerance_N2)
        return np.asarray((is_inside_N2 & (side_N2 > 0)).all(axis=1))

    def median_iou(self, reading: BoxReading) -> float:
        is_known_N = np.isfinite(self.segment_xywh_N4).all(axis=1)
        xywh_N4 = reading.xywh_px(self.box_N4, self.size_N2)[is_known_N]
        return float(np.median(iou_of_boxes(xywh_N4, self.segment_xywh_N4[is_known_N])))


def doubt_by_file_sizes(
    box_xywh_N4: _Floats, image_size_N2: NDArray[np.int64], file_rate_M: _Floats
) -> Doubt | None:
    """Return why boxes belong to smaller images than annotated, or None.

    Args:
        box_xywh_N4: Boxes in pixels.
        image_size_N2: Annotated width and height of each box's image, px.
        file_rate_M: Width of some image files, as a share of their annotated widths.
    """
    if not len(file_rate_M) or len(box_xywh_N4) < _MIN_BOXES_FOR_CERTAINTY:
        return None
    rate = float(np.median(file_rate_M))
    reach = float(np.max((box_xywh_N4[:, :2] + box_xywh_N4[:, 2:]) / image_size_N2))
    if (
        rate * _MIN_SCALE > 1
        or np.ptp(file_rate_M) > _SCALE_AGREEMENT * rate
        or reach > rate * 1.01
    ):
        return None
    evidence = (
        f"The image files are {1 / rate:.3g} times smaller than annotated, and all boxes lie in "
        f"the upper left {_percent(reach)} of their images: the boxes are in pixels of the files, "
        "width and height of another export"
    )
    remedy = (
        "Write the files' width and height: "
        f"mal dataset convert IN OUT --images FOLDER --boxes {FILE_SIZES}."
    )
    return Doubt(evidence, remedy, None, is_certain=True)


def iou_of_boxes(one_N4: _Floats, other_N4: _Floats) -> _Floats:
    """Return the IoU of each pair of boxes x, y, w, h; boxes without a size have IoU 0."""
    low_N2 = np.maximum(one_N4[:, :2], other_N4[:, :2])
    high_N2 = np.minimum(one_N4[:, :2] + one_N4[:, 2:], other_N4[:, :2] + other_N4[:, 2:])
    common_N = np.clip(high_N2 - low_N2, 0, None).prod(axis=1)
    areas_N = sum(np.clip(each[:, 2:], 0, None).prod(axis=1) for each in (one_N4, other_N4))
    return np.asarray(common_N / np.maximum(areas_N - common_N, 1e-12))


def _conversion_to(reading: BoxReading) -> str:
    return f"Convert them: mal dataset convert IN OUT --boxes {reading.name}."


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def _range_of(size_N2: _Floats) -> str:
    low, high = size_N2.min(axis=0), size_N2.max(axis=0)
    smallest, largest = (f"{width:g} x {height:g}" for width, height in (low, high))
    return smallest if smallest == largest else f"{smallest} to {largest}"
