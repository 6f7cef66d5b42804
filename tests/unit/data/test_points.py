"""Labelled points: read, checked, and followed through crop, resize and flip."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mal.data.annotation_columns import NO_POINT_ON_OBJECT
from mal.data.annotations import CocoBoxes, load_boxes
from mal.data.batch import CropBatch, collate_crops
from mal.data.crop_dataset import points_in_window
from mal.data.crops import cut_window, unit_box_in_window, window_from_unit_box, xyxy_from_xywh
from mal.errors import AnnotationError


def write_set(folder: Path, *annotations: dict[str, Any]) -> Path:
    document = {
        "images": [{"id": 1, "file_name": "1.png", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, **annotation}
            for number, annotation in enumerate(annotations, start=1)
        ],
    }
    path = folder / "set.json"
    path.write_text(json.dumps(document))
    return path


def read_set(folder: Path, *annotations: dict[str, Any]) -> CocoBoxes:
    return load_boxes(write_set(folder, *annotations), with_masks=False)


BOX = {"bbox": [10, 5, 20, 15]}


def test_boxes_points_and_both_mix_in_one_file(tmp_path: Path) -> None:
    boxes = read_set(
        tmp_path,
        BOX,
        BOX | {"points": [[12, 8, 1], [11.5, 6, 0]]},
        {"points": [[20, 10, 1]]},
        {"bbox": None, "points": [[3, 4, 1]]},
    )
    assert boxes.points is not None
    assert not boxes.problems
    assert boxes.points.count_N.tolist() == [0, 2, 1, 1]
    assert boxes.points.is_without_box_N.tolist() == [False, False, True, True]
    assert np.isnan(boxes.box_xywh_N4).all(axis=1).tolist() == [False, False, True, True]
    xy_K2, label_K = boxes.points.of(1)
    assert xy_K2.tolist() == [[12, 8], [11.5, 6]]
    assert label_K.tolist() == [1, 0]


@pytest.mark.parametrize("no_box", [None, [], [0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0]])
def test_what_tools_write_for_no_box_is_none_where_there_are_points(
    tmp_path: Path, no_box: Any
) -> None:
    boxes = read_set(tmp_path, BOX, {"bbox": no_box, "points": [[3, 4, 1]]})
    assert boxes.points is not None
    assert not boxes.problems
    assert boxes.points.is_without_box_N.tolist() == [False, True]


@pytest.mark.parametrize(
    "annotation",
    [{"bbox": [0, 0, 0, 0]}, {"bbox": [3, 4, 0, 0], "points": [[3, 4, 1]]}],
    ids=["without points", "at a place"],
)
def test_another_box_of_no_size_is_a_bad_box(tmp_path: Path, annotation: dict[str, Any]) -> None:
    boxes = read_set(tmp_path, BOX, annotation)
    assert list(boxes.problems.subjects) == ["box of zero or negative size"]


def test_a_file_of_boxes_has_no_points(tmp_path: Path) -> None:
    assert read_set(tmp_path, BOX, BOX | {"points": []}, BOX | {"points": None}).points is None


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ([[1, 2, 2]], "label of a point must be 0 or 1, got 2"),
        ([[1, 2, "on"]], "points must be"),
        ([[1, 2]], "points must be"),
        ([[1, float("nan"), 1]], "points must be"),
        ("here", "points must be"),
        ([[12, 8, 1], [12.9, 8.2, 0]], r"points of a pixel must agree.*\(12, 8\)"),
    ],
    ids=["label 2", "label of text", "no label", "not a number", "text", "contradiction"],
)
def test_points_that_would_teach_the_wrong_thing_are_refused(
    tmp_path: Path, points: Any, told: str
) -> None:
    with pytest.raises(AnnotationError, match=told) as caught:
        read_set(tmp_path, BOX, BOX | {"points": points})
    assert "annotation 2" in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "problem", "num_left"),
    [
        (BOX | {"points": [[40, 3, 1], [12, 8, 1]]}, "point outside its image", 1),
        (BOX | {"points": [[35, 25, 1]]}, "point on the object, but outside its box", 1),
        ({"points": [[5, 5, 0]]}, NO_POINT_ON_OBJECT, 0),
        ({"points": [[50, 5, 1], [5, 5, 0]]}, NO_POINT_ON_OBJECT, 0),
        ({"image_id": 7, "points": [[5, 5, 1]]}, "annotation of an unknown image", 0),
    ],
    ids=["outside the image", "outside the box", "only off", "none left on", "removed image"],
)
def test_points_that_cannot_be_used_are_skipped_and_counted(
    tmp_path: Path, annotation: dict[str, Any], problem: str, num_left: int
) -> None:
    boxes = read_set(tmp_path, BOX, annotation)
    assert len(boxes.problems.subjects[problem]) == 1
    assert len(boxes) == 1 + num_left


def test_a_selection_keeps_the_points_of_its_rows(tmp_path: Path) -> None:
    boxes = read_set(
        tmp_path, BOX | {"points": [[11, 6, 1]]}, BOX, BOX | {"points": [[12, 7, 1], [13, 8, 0]]}
    ).select(np.array([2, 1, 0]))
    assert boxes.points is not None
    assert boxes.points.count_N.tolist() == [2, 0, 1]
    assert boxes.points.of(0)[0].tolist() == [[12, 7], [13, 8]]
    assert boxes.points.of(2)[0].tolist() == [[11, 6]]


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int, int, int]:
    x0, y0 = draw(st.integers(-8, 10)), draw(st.integers(-8, 5))
    return x0, y0, draw(st.integers(30, 60)), draw(st.integers(20, 50))


@settings(deadline=None)
@given(
    windows(), st.tuples(st.integers(10, 29), st.integers(5, 19)), st.integers(16, 96),
    st.booleans(),
)  # fmt: skip
def test_a_point_stays_on_the_pixel_it_was_set_on_through_crop_resize_and_flip(
    tmp_path_factory: pytest.TempPathFactory,
    window: tuple[int, int, int, int],
    pixel: tuple[int, int],
    size_px: int,
    is_flipped: bool,
) -> None:
    """The picture is dark but for a bright cross through the pixel: its peak is looked for."""
    column, row = pixel
    image = np.zeros((30, 40, 3), dtype=np.uint8)
    image[row, :] += 100
    image[:, column] += 100
    folder = tmp_path_factory.mktemp("set")
    point = [column + 0.5, row + 0.5, 1]
    boxes = read_set(folder, BOX | {"points": [point]}, BOX | {"points": [point, [1, 1, 0]]})
    crop = torch.from_numpy(cut_window(image, window, size_px)).permute(2, 0, 1)[None].contiguous()
    unit_box = unit_box_in_window(xyxy_from_xywh(boxes.box_xywh_N4[0]), window, 40, 30)
    item = CropBatch(
        crop, torch.from_numpy(unit_box)[None], torch.tensor([300.0]), torch.tensor([0]),
        point_BK3=points_in_window(boxes, 0, window),
    )  # fmt: skip
    item = item.mirrored() if is_flipped else item
    assert item.point_BK3 is not None
    (x, y, label), (_, _, missing) = item.point_BK3[0].tolist()
    assert (label, missing) == (1, -1)
    across = item.image_BCSS[0, 0].float().mean(0)
    down = item.image_BCSS[0, 0].float().mean(1)
    for place, line in ((x, across), (y, down)):
        centre = (torch.arange(size_px) + 0.5) / size_px
        peak = float((line - line.median()).clamp(min=0) @ centre)
        peak /= float((line - line.median()).clamp(min=0).sum())
        assert abs(place - peak) < 1.5 / size_px


@given(windows())
def test_a_window_is_known_from_the_place_of_its_box(window: tuple[int, int, int, int]) -> None:
    box_xyxy = np.array([9.25, 4.5, 29.0, 19.75])
    unit_box = unit_box_in_window(box_xyxy, window, 40, 30)
    assert window_from_unit_box(box_xyxy, unit_box, 40, 30) == window


def test_points_outside_the_crop_do_not_count(tmp_path: Path) -> None:
    boxes = read_set(tmp_path, BOX | {"points": [[2, 2, 0], [20, 10, 1]]})
    placed = points_in_window(boxes, 0, (10, 5, 30, 25))
    assert placed is not None
    assert placed[0].tolist() == [[0, 0, -1], [0.5, 0.25, 1]]


def test_crops_with_points_are_joined_to_a_batch(tmp_path: Path) -> None:
    boxes = read_set(tmp_path, BOX, BOX | {"points": [[20, 10, 1], [11, 6, 0]]})
    items = [
        CropBatch(
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 4), torch.ones(1),
            torch.tensor([row]), point_BK3=points_in_window(boxes, row, (10, 5, 30, 20)),
        )
        for row in range(2)
    ]  # fmt: skip
    batch = collate_crops(items)
    assert batch.point_BK3 is not None
    assert batch.point_BK3[:, :, 2].tolist() == [[-1, -1], [1, 0]]
    plain = dataclasses.replace(items[0], point_BK3=None)
    assert collate_crops([plain, plain]).point_BK3 is None
