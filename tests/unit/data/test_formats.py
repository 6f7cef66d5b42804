from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mal.data import formats
from mal.data.annotations import CocoBoxes
from mal.data.formats import (
    AnnotationFormat,
    AnnotationTable,
    BoxRow,
    ImageRow,
    image_rows,
    open_annotations,
)
from mal.errors import AnnotationError

IMAGES = [ImageRow("a.png", 20, 16), ImageRow("b.png", 20, 16)]


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "boxes.rows").write_text("rows")
    return tmp_path


def open_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, boxes: Sequence[BoxRow], **table: Any
) -> CocoBoxes:
    def read(_path: Path, _image_folder: Path) -> AnnotationTable:
        return AnnotationTable(**{"images": IMAGES, "boxes": boxes, **table})

    rows = AnnotationFormat("rows", lambda path: path.suffix == ".rows", read)
    monkeypatch.setattr(formats, "_all_formats", lambda: (formats.COCO, rows))
    source = open_annotations(folder / "boxes.rows", images=str(folder / "images"))
    return source.load_boxes(with_masks=True)


def test_a_coco_file_is_read_as_it_is_and_its_images_stay_closed(tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    image = {"id": 5, "file_name": "a.png", "width": 20, "height": 16}
    entry = {"id": 9, "image_id": 5, "bbox": [1, 2, 3, 4]}
    path.write_text(json.dumps({"images": [image], "annotations": [entry]}))
    source = open_annotations(path, images="s3://no-such-bucket/images")
    boxes = source.load_boxes(with_masks=False)
    assert boxes.path == path
    assert boxes.annotation_id_N.tolist() == [9]


def test_every_field_of_a_row_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        BoxRow(7, "b.png", (1, 2, 8, 9), "tree", segmentation=[[1, 2, 9, 2, 9, 11]]),
        BoxRow(3, "a.png", (0, 0, 5, 5), "car", is_crowd=True),
    ]
    boxes = open_table(folder, monkeypatch, rows, categories=["car", "tree"])
    assert boxes.annotation_id_N.tolist() == [7, 3]
    assert [boxes.image_of(row).file_name for row in range(2)] == ["b.png", "a.png"]
    assert boxes.categories == {1: "car", 2: "tree"}
    assert boxes.category_id_N.tolist() == [2, 1]
    assert boxes.is_crowd_N.tolist() == [False, True]
    assert boxes.box_xywh_N4.tolist() == [[1, 2, 8, 9], [0, 0, 5, 5]]
    rle = boxes.rle_of(0)
    assert rle is not None
    assert rle["size"] == [16, 20]
    assert boxes.rle_of(1) is None


def test_equal_results_share_a_file_and_changed_ones_do_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [BoxRow(1, "a.png", (1, 2, 8, 9), "tree")]
    first = open_table(folder, monkeypatch, rows)
    written_ns = first.path.stat().st_mtime_ns
    assert open_table(folder, monkeypatch, rows).path == first.path
    assert first.path.stat().st_mtime_ns == written_ns
    other = open_table(folder, monkeypatch, [rows[0]._replace(category="bush")])
    assert other.path != first.path
    assert not list(first.path.parent.parent.glob(".part-*"))


def test_a_box_of_an_unlisted_image_is_a_problem_and_the_others_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [BoxRow(i, name, (1, 2, 8, 9), "tree") for i, name in enumerate(["a.png", "c.png"], 1)]
    open_table(folder, monkeypatch, rows[:1])
    for _ in range(2):  # whether the converted file is new or was there
        boxes = open_table(folder, monkeypatch, rows)
        assert boxes.annotation_id_N.tolist() == [1]
        assert boxes.problems.lines() == [
            "1 x annotation of an image that is not listed or has no file: annotation 2 (c.png)"
        ]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        pytest.param([IMAGES[0], IMAGES[0]], "list each image once, got 'a.png'", id="twice"),
        pytest.param([ImageRow("a.png", 0, 4)], "whole numbers of pixels", id="no width"),
        pytest.param([("a.png", 3, 4)], "give images as ImageRow", id="a tuple"),
    ],
)
def test_a_wrong_image_names_the_format(
    images: Any, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AnnotationError, match=f"Annotation format 'rows' must .*{message}"):
        open_table(folder, monkeypatch, [], images=images)


def test_a_category_that_is_not_listed_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [BoxRow(4, "a.png", (1, 2, 8, 9), "bush")]
    with pytest.raises(AnnotationError, match="give box 4 a category that it lists, got 'bush'"):
        open_table(folder, monkeypatch, rows, categories=["tree"])


def test_image_rows_have_the_size_of_the_upright_image(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "upright.png")
    names = ["turned.jpg", "upright.png", "absent.png", "turned.jpg"]
    assert list(image_rows(tmp_path, names)) == [("turned.jpg", 4, 6), ("upright.png", 6, 4)]
