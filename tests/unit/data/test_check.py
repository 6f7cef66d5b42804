from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mal.data.check import check_dataset

SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]
TRIANGLE = [[1, 1, 9, 1, 9, 9]]


class DataSet:
    """Two 20 x 16 images with one good box each, to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.images.mkdir()
        self.json = folder / "set.json"
        self.document: dict[str, Any] = {
            "images": [
                {"id": i, "file_name": f"{name}.png", "width": 20, "height": 16}
                for i, name in ((1, "a"), (2, "b"))
            ],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 8, 8]} for i in (1, 2)
            ],
        }
        for name in ("a", "b"):
            Image.new("RGB", (20, 16)).save(self.images / f"{name}.png")

    def annotate(self, **fields: Any) -> None:
        number = len(self.document["annotations"]) + 1
        entry = {"id": number, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8]}
        self.document["annotations"].append(entry | fields)

    def write(self) -> tuple[str, str]:
        self.json.write_text(json.dumps(self.document))
        return str(self.json), str(self.images)


@pytest.fixture
def data_set(tmp_path: Path) -> DataSet:
    return DataSet(tmp_path)


def test_a_good_set_has_no_findings(data_set: DataSet) -> None:
    report = check_dataset(*data_set.write())
    assert (bool(report.errors), bool(report.notes), report.is_usable) == (False, False, True)
    assert report.lines() == [
        f"{data_set.json}: 2 images, 2 boxes (0 crowds), 1 categories, without true masks",
        "usable: 2 boxes",
    ]


def delete_image(data: DataSet) -> None:
    (data.images / "a.png").unlink()


def truncate_image(data: DataSet) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data.images / "a.png")
    content = (data.images / "a.png").read_bytes()
    (data.images / "a.png").write_bytes(content[: len(content) // 2])


def replace_image(data: DataSet, width: int, height: int) -> None:
    Image.new("RGB", (width, height)).save(data.images / "a.png")


def rename_image(data: DataSet, file_name: str) -> None:
    data.document["images"][0]["file_name"] = file_name


def annotate_masks(data: DataSet, good: Any, bad: Any) -> None:
    data.document["annotations"][0]["segmentation"] = good
    data.document["annotations"][1]["segmentation"] = bad


@pytest.mark.parametrize(
    ("spoil", "kind", "subject", "is_usable"),
    [
        pytest.param(delete_image, "missing image file", "a.png", True, id="missing file"),
        pytest.param(
            truncate_image, "image that cannot be read", "a.png", True, id="truncated image"
        ),
        pytest.param(
            lambda d: replace_image(d, 16, 16),
            "image of another size than annotated",
            "has 16 x 16 pixels, but its annotations are for 20 x 16",
            True,
            id="wrong size",
        ),
        pytest.param(
            lambda d: rename_image(d, "../set.json"),
            "file_name that leaves the image folder",
            "../set.json",
            True,
            id="escaping name",
        ),
        pytest.param(
            lambda d: d.annotate(id=1), "annotation id given twice", "1 (2 times)", True, id="ids"
        ),
        pytest.param(
            lambda d: d.annotate(bbox=[1, 1, 0, 5]),
            "box of zero or negative size",
            "annotation 3",
            True,
            id="empty box",
        ),
        *(
            pytest.param(
                lambda d, bad=bad: annotate_masks(d, SQUARE, bad),
                "segmentation that cannot be read",
                "annotation 2 in b.png",
                True,
                id=f"mask: {bad}",
            )
            for bad in (
                {"size": [3, 3], "counts": "11"},
                {"size": [16, 20], "counts": [0, 9999]},
                [[1, 2]],
                "text",
            )
        ),
    ],
)
def test_an_error_is_counted_and_named(
    spoil: Callable[[DataSet], None],
    kind: str,
    subject: str,
    is_usable: bool,
    data_set: DataSet,
) -> None:
    spoil(data_set)
    report = check_dataset(*data_set.write())
    ((found, subjects),) = report.errors.subjects.items()
    assert found.startswith(kind)
    assert len(subjects) == 1
    assert subject in subjects[0]
    assert report.is_usable is is_usable
    assert any(line.startswith(f"error: 1 x {kind}: ") for line in report.lines())


def save_rotated(data: DataSet) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 20)).save(data.images / "a.png", exif=exif)


def save_mode(data: DataSet, mode: str) -> None:
    Image.new(mode, (20, 16)).save(data.images / "a.png")


def leave_image_without_boxes(data: DataSet) -> None:
    data.document["annotations"][0]["image_id"] = 2


def annotate_one_mask(data: DataSet) -> None:
    data.document["annotations"][1]["segmentation"] = TRIANGLE


@pytest.mark.parametrize(
    ("change", "kind", "subject"),
    [
        pytest.param(
            lambda d: d.annotate(bbox=[15, 1, 8, 8]),
            "box across the image's border, kept",
            "annotation 3 in a.png",
            id="border",
        ),
        pytest.param(
            lambda d: d.annotate(bbox=[1, 1, 3, 8]),
            "tiny box, a side under 4 px",
            "annotation 3 in a.png",
            id="tiny",
        ),
        pytest.param(
            lambda d: d.annotate(iscrowd=1),
            "crowd, neither trained nor measured",
            "annotation 3",
            id="crowd",
        ),
        pytest.param(
            leave_image_without_boxes, "image without boxes", "a.png", id="image without boxes"
        ),
        pytest.param(
            annotate_one_mask,
            "box without a segmentation, others have one",
            "annotation 1 in a.png",
            id="mask missing",
        ),
        pytest.param(save_rotated, "image that EXIF rotates", "a.png", id="exif"),
        pytest.param(
            lambda d: replace_image(d, 40, 32),
            "image larger or smaller than annotated, resized",
            "a.png",
            id="scaled",
        ),
        *(
            pytest.param(
                lambda d, mode=mode: save_mode(d, mode),
                f"image of mode {mode}, converted to RGB",
                "a.png",
                id=f"mode {mode}",
            )
            for mode in ("L", "RGBA", "I;16")
        ),
    ],
)
def test_a_note_is_counted_and_named_and_does_no_harm(
    change: Callable[[DataSet], None], kind: str, subject: str, data_set: DataSet
) -> None:
    change(data_set)
    report = check_dataset(*data_set.write())
    assert report.notes.subjects == {kind: [subject]}
    assert not report.errors
    assert report.is_usable


def test_a_set_without_readable_images_cannot_be_used(data_set: DataSet) -> None:
    for path in data_set.images.iterdir():
        path.unlink()
    report = check_dataset(*data_set.write())
    assert not report.is_usable
    assert report.lines()[-1].startswith("cannot be used: 0 boxes")


def test_a_set_of_crowds_cannot_be_used(data_set: DataSet) -> None:
    for annotation in data_set.document["annotations"]:
        annotation["iscrowd"] = 1
    report = check_dataset(*data_set.write())
    assert not report.is_usable
    assert (
        "error: 1 x set of crowds only: all 2 have iscrowd 1. Crowds are neither trained nor "
        "measured. Some tools write iscrowd 1 for every RLE mask of a single object: set it to 0."
    ) in report.lines()


def test_a_set_without_annotations_cannot_be_used(data_set: DataSet) -> None:
    data_set.document["annotations"] = []
    report = check_dataset(*data_set.write())
    assert not report.is_usable
    assert any("set without annotations" in line for line in report.lines())


def test_a_broken_annotation_file_cannot_be_used(data_set: DataSet) -> None:
    annotations, images = data_set.write()
    data_set.json.write_text('{"images": [')
    report = check_dataset(annotations, images)
    assert not report.is_usable
    assert "as JSON: " in "\n".join(report.lines())


def test_places_that_do_not_exist_are_both_told(data_set: DataSet) -> None:
    annotations, images = data_set.write()
    report = check_dataset(f"{annotations}-wrong", f"{images}-wrong")
    assert not report.is_usable
    assert list(report.errors.subjects) == [
        "image folder that cannot be used", "annotation file that cannot be used",
    ]  # fmt: skip
    assert f"{images}-wrong does not exist" in "\n".join(report.lines())


def test_without_its_images_a_set_is_checked_all_the_same(data_set: DataSet) -> None:
    data_set.annotate(bbox=[1, 1, 0, 5])
    annotations, images = data_set.write()
    report = check_dataset(annotations, f"{images}-wrong")
    assert not report.is_usable
    assert list(report.errors.subjects) == [
        "image folder that cannot be used", "box of zero or negative size",
    ]  # fmt: skip


def test_bad_points_are_counted_beside_all_else(data_set: DataSet) -> None:
    for points in ([[3, 3, 5]], [[3, 3, "on"]], [[3, 3, 1], [3.5, 3.5, 0]], [[4, 4, 7]]):
        data_set.annotate(points=points)
    data_set.annotate(points=[[3, 3, 5]], bbox=None)
    data_set.annotate(points=[[3, 3, 5]], bbox=[1, 1, 0, 5])
    data_set.annotate(image_id=9)
    delete_image(data_set)
    report = check_dataset(*data_set.write())
    assert {kind: len(subjects) for kind, subjects in report.errors.subjects.items()} == {
        "label of a point that is neither 0 nor 1": 4,
        "points that are not [x, y, label] each": 1,
        "points of one pixel with both labels": 1,
        "annotation of an unknown image": 1,
        "box of zero or negative size": 1,
        "missing image file": 1,
    }
    told = "\n".join(report.lines())
    assert "annotation 3: 5 at (3, 3)" in told
    assert "annotation 5: labels 0 and 1 at (3, 3)" in told
    assert report.num_usable_boxes == 1
    assert not report.is_usable, "a run stops at such points"


def leave_out_sizes(data: DataSet) -> None:
    for image in data.document["images"]:
        del image["width"], image["height"]


@pytest.mark.parametrize(
    ("spoil", "told", "num_usable"),
    [
        pytest.param(
            leave_out_sizes,
            "note: 2 x image without width and height, those of its file are taken: images[0] "
            "(a.png), images[1] (b.png)",
            2,
            id="sizes missing",
        ),
        pytest.param(
            lambda d: d.document["images"][0].update(width=-1, height=-1),
            "note: 1 x image without width and height, those of its file are taken: images[0]",
            2,
            id="sizes of -1",
        ),
        pytest.param(
            lambda d: d.document["images"][0].update(width=None, height=160),
            "error: 1 x image without width and height that its file has: images[0] (a.png) has "
            "width null and height 160, its file 20 x 16",
            1,
            id="height of another size",
        ),
        pytest.param(
            lambda d: d.document["images"][0].update(width=0, file_name="gone.png"),
            "error: 1 x image without width and height, and without a file to read them from: "
            "images[0] (gone.png) has width 0 and height 16",
            1,
            id="size and file missing",
        ),
        pytest.param(
            lambda d: d.document["images"][0].update(
                file_name=None, coco_url="http://images.cocodataset.org/val2017/a.png?x=1"
            ),
            "note: 1 x image without file_name, the last part of its coco_url is taken: images[0]",
            2,
            id="LVIS",
        ),
        pytest.param(
            lambda d: d.document["images"].append(dict(d.document["images"][0])),
            "note: 1 x image listed twice with the same id, file_name and size: images[2] (a.png)",
            2,
            id="image twice",
        ),
        pytest.param(
            lambda d: d.annotate(image_id="1"),
            "note: 1 x annotation whose image_id is found by its number: one is text, the other is "
            "not: annotation 3 (image_id '1')",
            3,
            id="text for a number",
        ),
        pytest.param(
            lambda d: d.annotate(attributes={"rotation": 35.0}),
            "note: 1 x box with attributes.rotation, taken as an upright box, which it is not: "
            "annotations[2] (35.0 degrees)",
            3,
            id="rotated box",
        ),
        pytest.param(
            lambda d: d.annotate(bbox=None, segmentation=SQUARE),
            "note: 1 x annotation without bbox, the box of its segmentation is taken: "
            "annotations[2]",
            3,
            id="box of the segmentation",
        ),
        pytest.param(
            lambda d: annotate_masks(d, TRIANGLE, {"size": [16, 20], "counts": [320]}),
            "error: 1 x segmentation without a pixel: annotation 2 in b.png",
            2,
            id="empty mask",
        ),
        pytest.param(
            lambda d: rename_image(d, "a\n\x1b[31m.png"),
            "error: 1 x missing image file: a\\n\\x1b[31m.png",
            1,
            id="control characters",
        ),
    ],
)
def test_what_tools_write_is_used_or_shown(
    spoil: Callable[[DataSet], None], told: str, num_usable: int, data_set: DataSet
) -> None:
    spoil(data_set)
    report = check_dataset(*data_set.write())
    assert [line for line in report.lines() if line.startswith(told)], report.lines()
    assert report.num_usable_boxes == num_usable


def test_the_number_of_masks_is_told_where_some_are_missing(data_set: DataSet) -> None:
    annotate_one_mask(data_set)
    assert check_dataset(*data_set.write()).summary.endswith("with 1 true masks")
