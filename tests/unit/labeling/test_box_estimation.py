"""The box of an object with points only is where the model finds what the points lie on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mal.data.annotations import CocoBoxes, CocoImage, Problems
from mal.data.crop_dataset import ImageReader
from mal.data.points import LabelledPoint, PointPrompts
from mal.data.size_prior import SizePrior
from mal.errors import AnnotationError
from mal.labeling.box_estimation import (
    BoxEstimator,
    EstimatedBox,
    box_iou,
    has_boxes,
    part_with_points,
    with_boxes,
)
from mal.labeling.connected import grow
from mal.labeling.predictor import PredictionSettings

SETTINGS = PredictionSettings(crop_size=64, margin_rate=0.8, thresholds=[0.5])


def brightness(image_BCSS: Tensor, *_: Tensor) -> Tensor:
    """A model that takes what is bright for the object."""
    return F.interpolate(image_BCSS[:, :1].float() / 255, size=32, mode="area")[:, 0]


class Picture(ImageReader):
    """One picture of 200 x 160 with bright rectangles, xyxy."""

    def __init__(
        self,
        *rectangles: tuple[int, int, int, int],
        points: list[LabelledPoint],
        box_xywh: tuple[float, ...] = (np.nan,) * 4,
        is_readable: bool = True,
    ) -> None:
        self.pixels = np.zeros((160, 200, 3), dtype=np.uint8)
        for x0, y0, x1, y1 in rectangles:
            self.pixels[y0:y1, x0:x1] = 255
        self.is_readable = is_readable
        self.boxes = CocoBoxes(
            path=Path("picture"),
            images=(CocoImage(1, "picture", 200, 160),),
            categories={1: "thing"},
            annotation_position_N=np.arange(1),
            annotation_id_N=np.arange(1),
            image_index_N=np.zeros(1, dtype=np.int64),
            category_id_N=np.ones(1, dtype=np.int64),
            box_xywh_N4=np.array([box_xywh]),
            is_crowd_N=np.zeros(1, dtype=np.bool_),
            segmentations=None,
            problems=Problems(),
            points=PointPrompts.from_lists([points], [True]),
        )

    def __call__(self, _image_index: int) -> NDArray[np.uint8]:
        if not self.is_readable:
            raise AnnotationError("image must be readable, got a broken one.")
        return self.pixels


def estimated_xyxy(picture: Picture, prior: SizePrior | None = None) -> NDArray[np.float64]:
    estimator = BoxEstimator(brightness, SETTINGS, prior or SizePrior())
    x, y, w, h = estimator.estimate(picture, 0).box_xywh.tolist()
    return np.array([x, y, x + w, y + h])


@pytest.mark.parametrize(
    "rectangle",
    [(20, 30, 60, 90), (5, 5, 195, 150), (100, 100, 120, 112)],
    ids=["medium", "large", "small"],
)
@pytest.mark.parametrize("place", [(0.5, 0.5), (0.15, 0.8)], ids=["middle", "edge"])
def test_the_box_is_found_at_any_size_and_from_any_point(
    rectangle: tuple[int, int, int, int], place: tuple[float, float]
) -> None:
    x0, y0, x1, y1 = rectangle
    point = (x0 + place[0] * (x1 - x0), y0 + place[1] * (y1 - y0), 1)
    found = estimated_xyxy(Picture(rectangle, points=[point]))
    assert box_iou(found, np.array(rectangle, dtype=float)) > 0.8


def test_another_bright_thing_beside_it_is_not_part_of_the_object() -> None:
    picture = Picture((20, 30, 60, 90), (70, 30, 110, 90), points=[(40, 60, 1)])
    assert box_iou(estimated_xyxy(picture), np.array([20.0, 30, 60, 90])) > 0.8


def test_the_sizes_of_real_boxes_decide_between_consistent_answers() -> None:
    """Every window inside a bright picture is consistent with itself."""
    picture = Picture((0, 0, 200, 160), points=[(100, 80, 1)])
    small = estimated_xyxy(picture, SizePrior({"thing": (np.log(20), 0.2)}))
    assert np.prod(small[2:] - small[:2]) < 0.8 * 200 * 160
    assert box_iou(estimated_xyxy(picture), np.array([0.0, 0, 200, 160])) > 0.9


def test_an_unreadable_image_gives_a_box_of_usual_size() -> None:
    picture = Picture(points=[(40, 60, 1)], is_readable=False)
    prior = SizePrior({"thing": (float(np.log(30)), 0.2)})
    estimate = BoxEstimator(brightness, SETTINGS, prior).estimate(picture, 0)
    assert estimate.consistency == 0
    np.testing.assert_allclose(estimate.box_xywh, [25, 45, 30, 30])


def test_a_part_ends_where_the_mask_does_and_tells_of_points_off_the_object() -> None:
    mask = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=np.bool_)
    points = np.array([[0.1, 0.1, 1], [0.3, 0.3, 0], [0, 0, -1]], dtype=np.float32)
    part, is_contradicted = part_with_points(mask, points)
    assert part.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    assert is_contradicted


def test_a_seed_outside_the_mask_is_a_part_of_its_own() -> None:
    seed = np.zeros((3, 3), dtype=np.bool_)
    seed[1, 1] = True
    assert np.array_equal(grow(seed, np.zeros((3, 3), dtype=np.bool_)), seed)


BOX, CROWD, POINT, CROWD_POINT = "box", "crowd", "point", "crowd of a point"


def boxes_of(*kinds: str) -> CocoBoxes:
    """Return a set of objects that have a box, or a point alone."""
    is_point = [kind in (POINT, CROWD_POINT) for kind in kinds]
    picture = Picture(points=[(2, 2, 1)])
    return dataclasses.replace(
        picture.boxes,
        box_xywh_N4=np.array([[np.nan] * 4 if of_point else [1, 1, 9, 9] for of_point in is_point]),
        is_crowd_N=np.array([kind in (CROWD, CROWD_POINT) for kind in kinds]),
        points=PointPrompts.from_lists([[(2, 2, 1)] * of_point for of_point in is_point], is_point),
    )


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((BOX, POINT), True),
        ((POINT, POINT), False),
        ((BOX, CROWD_POINT, POINT), True),
        ((CROWD, POINT), False),
        ((CROWD, CROWD_POINT, POINT), False),
    ],
)
def test_crowds_are_no_boxes_to_learn_from(kinds: tuple[str, ...], expected: bool) -> None:
    assert has_boxes(boxes_of(*kinds)) is expected


def test_an_estimate_never_replaces_a_real_box() -> None:
    estimate = EstimatedBox(np.array([3.0, 3, 5, 5]), 0.5)
    filled = with_boxes(boxes_of(BOX, POINT), [(0, estimate), (1, estimate)])
    np.testing.assert_array_equal(filled.box_xywh_N4, [[1, 1, 9, 9], [3, 3, 5, 5]])
