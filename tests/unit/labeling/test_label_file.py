"""Labels are copied from the input entry by entry, with masks that waited on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.data.annotations import CocoBoxes, load_boxes
from mal.errors import AnnotationError
from mal.labeling.coco_rle import area_of_rle, empty_rle, rle_from_window_mask, rle_to_json
from mal.labeling.label_counts import LabelCounts, MostlyEmptyError
from mal.labeling.label_file import LabelForm, write_labels
from mal.labeling.mask_spool import MaskSpool
from mal.labeling.masks import InstanceMask, PredictedMasks

NEW = ("segmentation", "area", "score")


@pytest.fixture
def document() -> dict[str, Any]:
    return {
        "info": {"year": 2017, "ratio": 0.1, "big": 10**30},
        "annotations": [
            {"id": 8, "image_id": 2, "bbox": [1, 1, 3, 3], "caption": "ü\ud800", "score": 7},
            {"id": 5, "image_id": 1, "bbox": [0.1, 2, 4, 5], "area": 3, "segmentation": [[1, 2]]},
            {"id": 6, "image_id": 9, "bbox": [0, 0, 1, 1]},
            "no annotation",
            {"id": 7, "image_id": 2, "bbox": [2, 2, 3, 3], "iscrowd": 1, "more": [None, {}]},
        ],
        "licenses": [],
        "images": [
            {"id": 1, "file_name": "a.png", "width": 10, "height": 8},
            {"id": 2, "file_name": "b.png", "width": 9, "height": 7, "url": "x"},
            {"id": 3, "file_name": "without boxes.png", "width": 9, "height": 7},
        ],
    }


def read_boxes(folder: Path, document: dict[str, Any]) -> CocoBoxes:
    path = folder / "in.json"
    path.write_text(json.dumps(document))
    return load_boxes(path, with_masks=False)


def predicted_mask(boxes: CocoBoxes, row: int, score: float) -> InstanceMask:
    image = boxes.image_of(row)
    filled = np.ones((2, 1 + row), dtype=np.bool_)
    rle = rle_from_window_mask(filled, (1, 1, 2 + row, 3), image.height, image.width)
    return InstanceMask(row, rle, score, area_of_rle(rle))


def test_masks_go_to_their_boxes_and_all_else_stays(
    document: dict[str, Any], tmp_path: Path
) -> None:
    boxes = read_boxes(tmp_path, document)
    assert boxes.annotation_id_N.tolist() == [8, 5, 7]
    masks = [predicted_mask(boxes, row, 0.1 + row / 7) for row in (1, 0, 2)]
    with MaskSpool(boxes, tmp_path) as spool:
        write_labels(tmp_path / "out.json", boxes, spool.fill(masks))
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written) == list(document)
    for mask in masks:
        entry = document["annotations"][int(boxes.annotation_position_N[mask.index])]
        score = round(mask.score, 6)
        if "score" in entry:
            entry["mask_score"] = score
        entry.update(segmentation=rle_to_json(mask.rle), area=mask.area, score=score)
    document["annotations"][2].update(empty_label(0, 0))
    assert written == document


def empty_label(height: int, width: int, reason: str = "left out") -> dict[str, Any]:
    empty = rle_to_json(empty_rle(height, width))
    return {"segmentation": empty, "area": 0, "score": 0.0, "empty_reason": reason}


@pytest.mark.parametrize(
    ("changes", "height_width"),
    [
        pytest.param({"bbox": [50, 50, 2, 2]}, (7, 9), id="box outside the image"),
        pytest.param({"bbox": [1, 1, 0, 4]}, (7, 9), id="zero side"),
        pytest.param({"bbox": [-5, -5, 1000, 1000]}, (7, 9), id="huge box"),
        pytest.param({"bbox": "1234"}, (7, 9), id="no numbers"),
        pytest.param({"bbox": None, "points": [[1, 1, 0]]}, (7, 9), id="points off it only"),
        pytest.param({"image_id": "1", "bbox": [1, 1, 0, 4]}, (8, 10), id="id as text"),
        pytest.param({"image_id": 9}, (0, 0), id="removed image"),
        pytest.param({"image_id": -4}, (0, 0), id="removed image of a lower id"),
        pytest.param({"image_id": None}, (0, 0), id="no image"),
        pytest.param({"image_id": [2]}, (0, 0), id="image id that is none"),
    ],
)
@pytest.mark.parametrize(
    "earlier",
    [
        {},
        {"segmentation": [[1, 1, 4, 1, 4, 4]], "area": 4.5, "score": 0.9},
        {"segmentation": {"size": [7, 9], "counts": [63]}, "prompt": "point",
         "estimated_bbox": [1, 1, 2, 2]},
    ],
    ids=["box only", "true mask", "labelled before"],
)  # fmt: skip
def test_what_cannot_be_predicted_gets_an_empty_mask_of_its_image(
    earlier: dict[str, Any],
    changes: dict[str, Any],
    height_width: tuple[int, int],
    document: dict[str, Any],
    tmp_path: Path,
) -> None:
    good = {"id": 1, "image_id": 2, "bbox": [1, 1, 3, 3]}
    document["annotations"] = [good, good | {"id": 2, "note": "mine"} | earlier | changes]
    boxes = read_boxes(tmp_path, document)
    assert boxes.annotation_id_N.tolist() == [1]
    write_labels(tmp_path / "out.json", boxes, PredictedMasks.held([predicted_mask(boxes, 0, 0.5)]))
    _, label = json.loads((tmp_path / "out.json").read_text())["annotations"]
    reason = "outside the image" if changes.get("bbox") == [50, 50, 2, 2] else "left out"
    expected = good | {"id": 2, "note": "mine"} | changes | empty_label(*height_width, reason)
    if "score" in earlier:
        expected["mask_score"] = 0.0
    assert label == expected
    assert area_of_rle(label["segmentation"]) == 0


def test_a_spool_gives_back_what_it_took(document: dict[str, Any], tmp_path: Path) -> None:
    boxes = read_boxes(tmp_path, document)
    masks = [predicted_mask(boxes, row, 1 / 3) for row in (2, 0)]
    with MaskSpool(boxes, tmp_path) as spool:
        spooled, held = spool.fill(masks), PredictedMasks.held(masks)
        assert spooled.index_N.tolist() == [0, 2] == sorted(held.index_N.tolist())
        assert [spooled.mask_of(row) for row in (2, 0)] == masks
        assert (len(spooled), spooled.num_not_empty, spooled.mean_score) == (2, 2, 1 / 3)
    assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


ESTIMATED = [0.0, 1.0, 4.0, 3.0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"bbox": [1, 1, 3, 3], "points": []}, {}),
        ({"bbox": [1, 1, 3, 3], "points": [[2, 2, 1]]}, {"prompt": "box+points"}),
        ({"points": [[2, 2, 1]]}, {"prompt": "point", "estimated_bbox": ESTIMATED}),
        (
            {"bbox": [0, 0, 0, 0], "points": [[2, 2, 1]]},
            {"prompt": "point", "estimated_bbox": ESTIMATED},
        ),
    ],
    ids=["box", "box+points", "point", "point and zeros for no box"],
)
@pytest.mark.parametrize(
    "earlier",
    [{}, {"prompt": "box+points"}, {"prompt": "point", "estimated_bbox": [7, 7, 7, 7]}],
    ids=["new", "was box+points", "was point"],
)
def test_labels_made_again_say_what_they_are_of_now(
    earlier: dict[str, Any],
    given: dict[str, Any],
    expected: dict[str, Any],
    document: dict[str, Any],
    tmp_path: Path,
) -> None:
    document["annotations"] = [
        {"id": 1, "image_id": 1, **given, **earlier},
        {"id": 2, "image_id": 1, "bbox": [1, 1, 3, 3], "prompt": "a cat, by somebody else"},
    ]
    boxes = read_boxes(tmp_path, document)
    boxes.box_xywh_N4[np.isnan(boxes.box_xywh_N4).any(axis=1)] = ESTIMATED
    masks = PredictedMasks.held(predicted_mask(boxes, row, 0.5) for row in range(2))
    write_labels(tmp_path / "out.json", boxes, masks)
    labels, of_another = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert {key: labels.get(key) for key in ("prompt", "estimated_bbox")} == {
        "prompt": None, "estimated_bbox": None, **expected,
    }  # fmt: skip
    assert of_another["prompt"] == "a cat, by somebody else"


@pytest.mark.parametrize("change", ["a box fewer", "another box", "no list"])
def test_a_file_that_has_changed_is_not_labelled(
    change: str, document: dict[str, Any], tmp_path: Path
) -> None:
    boxes = read_boxes(tmp_path, document)
    masks = PredictedMasks.held(predicted_mask(boxes, row, 0.5) for row in range(3))
    if change == "a box fewer":
        del document["annotations"][-1]
    elif change == "another box":
        document["annotations"][1]["bbox"] = [0, 0, 2, 2]
    else:
        document["annotations"] = None
    boxes.path.write_text(json.dumps(document))
    out = tmp_path / "out.json"
    out.write_text("older labels")
    with pytest.raises(AnnotationError, match="changed after its boxes were read"):
        write_labels(out, boxes, masks)
    assert out.read_text() == "older labels"
    assert len(list(tmp_path.iterdir())) == 2


TRIANGLE = [[1, 1, 4, 1, 4, 4]]


def label_one(folder: Path, form: LabelForm, **fields: Any) -> tuple[dict[str, Any], LabelCounts]:
    """Label one box of a 9 x 7 image, whose predicted mask is 1 x 2 px and has the score 0.5."""
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 7}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [1, 1, 4, 4], **fields}],
    }
    path = folder / "in.json"
    path.write_text(json.dumps(document))
    boxes = load_boxes(path, with_masks=True)
    masks = PredictedMasks.held([predicted_mask(boxes, 0, 0.5)] if len(boxes) else [])
    counts = write_labels(folder / "out.json", boxes, masks, form)
    (label,) = json.loads((folder / "out.json").read_text())["annotations"]
    return label, counts


@pytest.mark.parametrize(
    ("fields", "keep", "is_kept"),
    [
        pytest.param({"segmentation": TRIANGLE}, ["masks"], True, id="mask"),
        pytest.param({"segmentation": TRIANGLE}, [], False, id="mask, not asked for"),
        pytest.param({"segmentation": TRIANGLE}, ["crowds", "scores"], False, id="no crowd"),
        pytest.param({"segmentation": TRIANGLE, "iscrowd": 1}, ["crowds"], True, id="crowd"),
        pytest.param({"segmentation": [[1, 2]]}, ["masks"], False, id="unreadable"),
        pytest.param({"segmentation": []}, ["masks"], False, id="none"),
        pytest.param(
            {"segmentation": {"size": [7, 9], "counts": [63]}}, ["masks"], False, id="empty"
        ),
        pytest.param(
            {"segmentation": TRIANGLE, "bbox": [0, 0, 0, 0]}, ["masks"], True, id="unusable box"
        ),
    ],
)
def test_a_given_mask_stays_where_that_is_asked_for(
    fields: dict[str, Any], keep: list[str], is_kept: bool, tmp_path: Path
) -> None:
    label, counts = label_one(tmp_path, LabelForm(keep=keep), **fields)
    assert (label["segmentation"] == TRIANGLE) is is_kept
    assert (label.get("mask_source") == "input") is is_kept
    assert counts.num_masks == 1
    assert counts.num_kept == is_kept
    if is_kept:
        assert label["score"] == 1.0
        again, _ = label_one(tmp_path, LabelForm(), **{**label, "bbox": [1, 1, 4, 4]})
        assert "mask_source" not in again


@pytest.mark.parametrize(
    ("given", "keep", "score", "mask_score"),
    [
        (None, [], 0.5, None),
        (None, ["scores"], 0.5, None),
        (0.9, [], 0.5, 0.5),
        (0.9, ["scores"], 0.9, 0.5),
    ],
)
def test_the_score_of_a_detector_stays_on_demand_and_that_of_the_mask_is_beside_it(
    given: float | None, keep: list[str], score: float, mask_score: float | None, tmp_path: Path
) -> None:
    fields = {} if given is None else {"score": given}
    label, _ = label_one(tmp_path, LabelForm(keep=keep), **fields)
    assert (label["score"], label.get("mask_score")) == (score, mask_score)


def test_a_tight_box_is_the_extent_of_the_mask_and_the_given_one_stays(tmp_path: Path) -> None:
    label, _ = label_one(tmp_path, LabelForm(tight_boxes=True))
    assert (label["bbox"], label["given_bbox"]) == ([1, 1, 1, 2], [1, 1, 4, 4])
    again, _ = label_one(tmp_path, LabelForm(tight_boxes=True), **label)
    assert again["given_bbox"] == [1, 1, 4, 4]
    empty, _ = label_one(tmp_path, LabelForm(tight_boxes=True), bbox=[50, 50, 2, 2])
    assert empty["bbox"] == [50, 50, 2, 2]
    assert "given_bbox" not in empty


def test_polygons_are_written_instead_of_rle(tmp_path: Path) -> None:
    label, _ = label_one(tmp_path, LabelForm(label_format="polygon"))
    assert label["segmentation"] == [[1, 1, 2, 1, 2, 3, 1, 3]]
    empty, _ = label_one(tmp_path, LabelForm(label_format="polygon"), bbox=[50, 50, 2, 2])
    assert (empty["segmentation"], empty["empty_reason"]) == ([], "outside the image")


@pytest.mark.parametrize(
    ("num_boxes", "num_masks", "is_useful"),
    [(0, 0, True), (2, 1, True), (3, 1, False), (1, 0, False), (5, 5, True)],
)
def test_more_than_half_empty_is_an_error_that_names_the_reasons(
    num_boxes: int, num_masks: int, is_useful: bool
) -> None:
    counts = LabelCounts(num_boxes, num_masks, 0, {"image missing": num_boxes - num_masks})
    problem = counts.problem("labels.json")
    assert (problem is None) is is_useful
    if problem is not None:
        assert isinstance(problem, MostlyEmptyError)
        assert f"{num_boxes - num_masks} image missing" in str(problem)
        assert "inference.allow_empty=true" in str(problem)


def test_an_entry_keeps_the_box_that_came_from_its_segmentation(tmp_path: Path) -> None:
    image = {"id": "img_1", "file_name": "a.png", "width": 10, "height": 8}
    polygon = {"image_id": "img_1", "segmentation": [[1, 2, 6, 2, 6, 7]]}
    entries = [polygon | {"id": "first"}, polygon | {"id": "second", "bbox": None}]
    boxes = read_boxes(tmp_path, {"images": [image], "annotations": entries})
    masks = [predicted_mask(boxes, row, 0.5) for row in (0, 1)]
    with MaskSpool(boxes, tmp_path) as spool:
        write_labels(tmp_path / "out.json", boxes, spool.fill(masks))
    written = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert [entry["bbox"] for entry in written] == [[1, 2, 5, 5]] * 2


def test_an_empty_mask_has_the_size_of_the_one_image_that_its_id_finds(tmp_path: Path) -> None:
    images = [
        {"id": one, "file_name": f"{n}.png", "width": 10 + n, "height": 8}
        for n, one in enumerate([1, "2", 3, 3])
    ]
    bad = {"bbox": [1, 1, 0, 0]}
    entries = [bad | {"id": n, "image_id": one} for n, one in enumerate([1.0, 2, 3, 1.5])]
    boxes = read_boxes(tmp_path, {"images": images, "annotations": entries})
    with MaskSpool(boxes, tmp_path) as spool:
        write_labels(tmp_path / "out.json", boxes, spool.fill([]))
    written = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert [entry["segmentation"]["size"] for entry in written] == [
        [8, 10],
        [8, 11],
        [0, 0],
        [0, 0],
    ]
