"""Masks that are only the boxes are recognised; outlines are not taken for boxes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mal.data.annotations import load_boxes
from mal.data.box_masks import reason_without_true_masks

SIDE = 64
Segment = Callable[[list[float]], Any]


def corners(box: list[float]) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def closed_corners(box: list[float]) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y, x, y + h, x + w, y + h, x + w, y, x, y]]


def filled_rle(box: list[float]) -> dict[str, Any]:
    x, y, w, h = (round(value) for value in box)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle: Any = coco_mask.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def diamond(box: list[float]) -> list[list[float]]:
    x, y, w, h = box
    return [[x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]]


def inner_rectangle(box: list[float]) -> list[list[float]]:
    x, y, w, h = box
    return corners([x + w / 8, y + h / 8, w * 3 / 4, h * 3 / 4])


def nothing(_box: list[float]) -> None:
    return None


BOXES: list[list[float]] = [
    [4, 4, 20, 16],
    [30.4, 8.7, 22.2, 30.9],
    [2, 30, 12, 26],
    [20, 44, 40, 12],
]


def reason(tmp_path: Path, boxes: list[list[float]], *segments: Segment) -> str:
    annotations = [
        {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0}
        | ({"segmentation": found} if (found := segments[k % len(segments)](box)) else {})
        for k, box in enumerate(boxes)
    ]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": SIDE, "height": SIDE}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": annotations,
    }
    path = tmp_path / "set.json"
    path.write_text(json.dumps(document))
    return reason_without_true_masks(load_boxes(path, with_masks=True))


@pytest.mark.parametrize(
    "segments",
    [
        pytest.param([corners], id="four corners"),
        pytest.param([closed_corners], id="corners, closed, the other way round"),
        pytest.param([filled_rle], id="rle"),
        pytest.param([corners, filled_rle, closed_corners, diamond], id="most of them"),
        pytest.param([corners, nothing], id="all that have a mask"),
    ],
)
def test_masks_that_are_the_boxes_are_recognised(tmp_path: Path, segments: list[Segment]) -> None:
    assert "are the boxes themselves" in reason(tmp_path, BOXES, *segments)


@pytest.mark.parametrize(
    "segments",
    [
        pytest.param([diamond], id="outlines"),
        pytest.param([diamond, diamond, corners, diamond], id="one rectangle among outlines"),
        pytest.param([inner_rectangle], id="rectangles that are not the boxes"),
    ],
)
def test_outlines_are_not_taken_for_boxes(tmp_path: Path, segments: list[Segment]) -> None:
    assert reason(tmp_path, BOXES, *segments) == ""


def test_a_box_across_the_border_is_recognised_by_its_visible_part(tmp_path: Path) -> None:
    outside: list[list[float]] = [[-6.0, 10, 20, 20], [50, 40, 30, 40]]
    assert "2 of the 2 checked" in reason(tmp_path, outside, corners)


def test_objects_of_few_pixels_are_left_out_where_there_are_larger_ones(tmp_path: Path) -> None:
    tiny: list[list[float]] = [[x, 2.0, 3, 3] for x in range(4, 60, 8)]
    assert reason(tmp_path, tiny, filled_rle) != ""
    assert reason(tmp_path, [*tiny, BOXES[2]], *[filled_rle] * len(tiny), diamond) == ""


def test_a_set_without_masks_says_so(tmp_path: Path) -> None:
    assert reason(tmp_path, BOXES, nothing) == "it has no masks"
