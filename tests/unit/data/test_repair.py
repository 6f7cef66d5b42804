"""`mal dataset check --fix` writes what a run uses, and says what it changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mal.cli import main
from mal.data.check import check_dataset

WIDTH, HEIGHT = 40, 30
SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
    return folder


def annotation(number: Any, **fields: Any) -> dict[str, Any]:
    box = {"bbox": [2, 2, 10, 10], "image_id": 1, "category_id": 1, "iscrowd": 0}
    return {"id": number, **box, **fields}


def fix(
    images: Path, annotations: list[Any], *more_images: Any
) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    document = {
        "info": {"mine": True},
        "images": [
            {"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for n, name in enumerate(("a.png", "b.png"), 1)
        ]
        + list(more_images),
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    path = images.with_name("boxes.json")
    path.write_text(json.dumps(document))
    out = images.with_name("fixed.json")
    code = main(["dataset", "check", str(path), str(images), "--fix", str(out)])
    if not out.exists():
        return code, {}, []
    lines = images.with_name("fixed.changes.jsonl").read_text().splitlines()
    return code, json.loads(out.read_text()), [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("fields", "field", "new"),
    [
        pytest.param({"bbox": [35, 25, 20, 20]}, "bbox", [35, 25, 5, 5], id="across the border"),
        pytest.param({"bbox": ["2", "2", "10", "10"]}, "bbox", [2, 2, 10, 10], id="box as text"),
        pytest.param({"bbox": None, "segmentation": SQUARE}, "bbox", [2, 2, 10, 10], id="no box"),
        pytest.param({"iscrowd": "1"}, "iscrowd", 1, id="crowd as text"),
        pytest.param({"image_id": "1"}, "image_id", 1, id="image as text"),
        pytest.param({"image_id": 1.0}, None, None, id="number as pandas writes it"),
        pytest.param({"segmentation": [1, 2, 3]}, "segmentation", None, id="unreadable mask"),
        pytest.param(
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}},
            "segmentation", None, id="empty mask",
        ),
        pytest.param({"segmentation": SQUARE, "note": "x"}, None, None, id="nothing"),
    ],
)  # fmt: skip
def test_what_is_read_in_another_way_is_written_so(
    fields: dict[str, Any], field: str | None, new: Any, images: Path
) -> None:
    code, fixed, changes = fix(images, [annotation(1), annotation(2, **fields)])
    assert code == 0
    given = annotation(2, **fields)
    expected = given if field is None else given | {field: new}
    if field == "segmentation":
        del expected["segmentation"]
    assert fixed["annotations"] == [annotation(1), expected]
    assert [change["field"] for change in changes] == ([] if field is None else [field])
    assert all(change["entry"] == "annotations[1]" for change in changes)
    assert fixed["info"] == {"mine": True}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(annotation(2, bbox=[50, 1, 5, 5]), "box outside its image", id="outside"),
        pytest.param(annotation(2, bbox=[1, 1, 0, 5]), "box of zero", id="no side"),
        pytest.param(annotation(2, bbox="x"), "bbox that is not four", id="no numbers"),
        pytest.param(annotation(2, image_id=77), "unknown image", id="unknown image"),
        pytest.param(annotation(2, category_id=9), "unknown category", id="unknown category"),
        pytest.param("text", "not an object", id="no object"),
        pytest.param(annotation(2, image_id=3), "missing or cannot be read", id="image missing"),
    ],
)
def test_what_cannot_be_used_is_dropped_with_the_reason(
    bad: Any, reason: str, images: Path
) -> None:
    lost = {"id": 3, "file_name": "lost.png", "width": WIDTH, "height": HEIGHT}
    code, fixed, changes = fix(images, [annotation(1), bad], lost)
    assert code == 0
    assert [each["id"] for each in fixed["annotations"]] == [1]
    assert [image["id"] for image in fixed["images"]] == [1, 2]
    dropped = {change["entry"]: change["reason"] for change in changes}
    assert reason in dropped["annotations[1]"]
    assert "images[2]" in dropped


def test_an_id_that_is_given_again_becomes_a_new_one(images: Path) -> None:
    _, fixed, changes = fix(images, [annotation(7), annotation(7), annotation("x"), annotation(8)])
    assert [each["id"] for each in fixed["annotations"]] == [7, 9, "x", 8]
    assert [(change["old"], change["new"]) for change in changes] == [("7", "9")]


def test_a_fixed_set_has_no_errors_left(images: Path) -> None:
    bad = [
        annotation(1), annotation(6, points=[[-5, 1]]), annotation(1, bbox=[35, 25, 20, 20]),
        annotation(3, bbox=[90, 1, 5, 5]),
        annotation(4, iscrowd="0", image_id="2"), annotation(5, segmentation=[1]), None,
    ]  # fmt: skip
    unsafe = {"id": 6, "file_name": "../a.png", "width": WIDTH, "height": HEIGHT}
    lost = {"id": 5, "file_name": "lost.png", "width": 9, "height": 9}
    code, _, _ = fix(images, bad, lost, unsafe, 17)
    assert code == 0
    report = check_dataset(str(images.with_name("fixed.json")), str(images))
    assert report.is_usable
    assert report.errors.lines() == []


def test_a_set_without_any_use_is_not_written(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, fixed, _ = fix(images, [annotation(1, bbox=[90, 1, 5, 5])])
    assert code == 2
    assert fixed == {}
    assert "no part of the set can be used" in capsys.readouterr().err
    assert {path.name for path in images.parent.iterdir()} == {"images", "boxes.json"}


def test_boxes_that_are_not_what_they_seem_are_not_fixed(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corners = [[x, y, x + 9, y + 8] for x in range(2, 30, 3) for y in range(2, 20, 3)]
    boxes = [annotation(n, bbox=box) for n, box in enumerate(corners, 1)]
    code, fixed, _ = fix(images, boxes)
    assert code == 2
    assert fixed == {}
    assert "the boxes are not what they seem" in capsys.readouterr().err
