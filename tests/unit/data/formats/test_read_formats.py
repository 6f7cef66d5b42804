"""Sets of other formats become the boxes, names and masks that they say, on the right images."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mal.data.annotations import CocoBoxes
from mal.data.formats import AnnotationSource, open_annotations
from mal.data.formats.brush_rle import mask_from_brush
from mal.errors import AnnotationError

WIDTH, HEIGHT = 40, 20


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    make_images(tmp_path / "images", ["a.png", "b.jpg", "sub/c.png"])
    return tmp_path


def make_images(
    folder: Path, names: Sequence[str], size: tuple[int, int] = (WIDTH, HEIGHT)
) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / name)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def opened(
    folder: Path, annotations: Path | str, annotation_type: str = "auto"
) -> AnnotationSource:
    return open_annotations(annotations, annotation_type, images=str(folder / "images"))


def rows_of(boxes: CocoBoxes) -> list[tuple[str, str, list[float]]]:
    return [
        (
            boxes.image_of(row).file_name,
            boxes.categories[int(boxes.category_id_N[row])],
            boxes.box_xywh_N4[row].round(4).tolist(),
        )
        for row in range(len(boxes))
    ]


def mask_of(boxes: CocoBoxes, row: int) -> Any:
    from pycocotools import mask as coco_mask

    return coco_mask.decode(boxes.rle_of(row))  # type: ignore[arg-type]


def voc(filename: str = "", objects: str = "", size: str = "", source: str = "") -> str:
    return (
        f"<?xml version='1.0'?><annotation verified='yes'><filename>{filename}</filename>"
        f"{source}{size}{objects}</annotation>"
    )


def voc_object(name: str, *corners: float) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    inside = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name><bndbox>{inside}</bndbox></object>"


class TestVoc:
    def test_boxes_are_corners_in_pixels(self, folder: Path) -> None:
        files = {
            "ann/a.xml": voc("a.png", voc_object("cat", 1, 2, 11, 12)),
            "ann/b.xml": voc("", voc_object("dog", 0, 0, 40, 20) + voc_object("cat", 3, 4, 5, 6)),
        }
        boxes = opened(folder, write(folder, files) / "ann").load_boxes(with_masks=True)
        assert rows_of(boxes) == [
            ("a.png", "cat", [1, 2, 10, 10]),
            ("b.jpg", "dog", [0, 0, 40, 20]),
            ("b.jpg", "cat", [3, 4, 2, 2]),
        ]

    def test_the_sets_of_the_challenge_count_from_one(self, folder: Path) -> None:
        source = "<source><database>The VOC2007 Database</database></source>"
        text = voc("a.png", voc_object("cat", 1, 1, 40, 20), source=source)
        boxes = opened(folder, write(folder, {"a.xml": text}) / "a.xml").load_boxes(
            with_masks=False
        )
        assert rows_of(boxes) == [("a.png", "cat", [0, 0, 40, 20])]

    def test_a_name_of_another_machine_is_found_by_its_end(self, folder: Path) -> None:
        text = voc("C:\\Users\\me\\sub\\c.png", voc_object("cat", 1, 2, 3, 4))
        boxes = opened(folder, write(folder, {"x.xml": text}) / "x.xml").load_boxes(
            with_masks=False
        )
        assert rows_of(boxes)[0][0] == "sub/c.png"

    def test_a_file_that_names_one_image_and_has_the_name_of_another_is_left_out(
        self, folder: Path
    ) -> None:
        files = {
            "ann/a.xml": voc("b.jpg", voc_object("cat", 1, 2, 3, 4)),
            "ann/c.xml": voc("", voc_object("cat", 5, 2, 3, 4)),
        }
        with pytest.raises(AnnotationError, match=r"no box of it is usable.* names one image"):
            opened(folder, write(folder, files) / "ann").load_boxes(with_masks=False)

    def test_two_files_of_one_image_are_both_left_out(self, folder: Path) -> None:
        files = {
            "ann/a.xml": voc("a.png", voc_object("cat", 1, 2, 3, 4)),
            "ann/copy.xml": voc("a.png", voc_object("cat", 5, 2, 9, 4)),
            "ann/b.xml": voc("b.jpg", voc_object("cat", 1, 2, 3, 4)),
        }
        boxes = opened(folder, write(folder, files) / "ann").load_boxes(with_masks=False)
        assert [row[0] for row in rows_of(boxes)] == ["b.jpg"]
        assert any("several annotation files" in line for line in boxes.problems.lines())

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            pytest.param(
                '<!DOCTYPE a [<!ENTITY x "xxxx"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>',
                "DTD",
                id="entities",
            ),
            pytest.param(
                '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>'
                "<filename>&x;</filename></annotation>",
                "DTD",
                id="a file of this machine",
            ),
            pytest.param("<annotation><object></annotation>", "not XML", id="broken"),
        ],
    )
    def test_one_bad_file_is_named_and_the_others_are_read(
        self, text: str, told: str, folder: Path
    ) -> None:
        files = {
            "ann/bad.xml": text,
            "ann/a.xml": voc("a.png", voc_object("cat", 1, 2, 3, 4)),
        }
        boxes = opened(folder, write(folder, files) / "ann").load_boxes(with_masks=False)
        assert len(boxes) == 1
        assert f"bad.xml (it {'has' if told == 'DTD' else 'is'}" in boxes.problems.lines()[0]
        assert told in boxes.problems.lines()[0]

    def test_an_object_without_numbers_is_named(self, folder: Path) -> None:
        text = voc("a.png", voc_object("cat", 1, 2, 3, 4).replace("<ymax>4</ymax>", ""))
        source = opened(folder, write(folder, {"a.xml": text}) / "a.xml")
        named = "1 x VOC object without a name or a bndbox of four numbers: object 1 of a.xml"
        with pytest.raises(AnnotationError, match=f"no box of it is usable. {named}"):
            source.load_boxes(with_masks=False)


class TestYolo:
    def test_boxes_are_centres_and_sizes_as_fractions(self, folder: Path) -> None:
        files = {"labels/a.txt": "1 0.5 0.5 0.5 0.5\n0 .25 .25 .5 .5 0.9\n", "labels/b.txt": "\n",
                 "classes.txt": "cat\ndog\n"}  # fmt: skip
        boxes = opened(folder, write(folder, files) / "labels").load_boxes(with_masks=False)
        assert rows_of(boxes) == [
            ("a.png", "dog", [10, 5, 20, 10]),
            ("a.png", "cat", [0, 0, 20, 10]),
        ]
        assert boxes.categories == {1: "cat", 2: "dog"}
        assert [image.file_name for image in boxes.images] == ["a.png", "b.jpg"]

    @pytest.mark.parametrize("names", ["names: [cat, dog]", "names: {0: cat, 1: dog}"])
    @pytest.mark.parametrize("given", ["", "data.yaml"])
    def test_names_are_those_of_data_yaml(self, names: str, given: str, folder: Path) -> None:
        files = {"set/data.yaml": names, "set/labels/a.txt": "1 0.5 0.5 0.5 0.5"}
        path = write(folder, files) / "set" / given
        assert rows_of(opened(folder, path).load_boxes(with_masks=False))[0][1] == "dog"

    def test_a_polygon_is_a_mask(self, folder: Path) -> None:
        files = {"labels/a.txt": "0 0 0 0.5 0 0.5 0.5 0.25 0.75 0 0.5"}
        boxes = opened(folder, write(folder, files) / "labels").load_boxes(with_masks=True)
        assert rows_of(boxes) == [("a.png", "0", [0, 0, 20, 15])]
        assert mask_of(boxes, 0)[:10, :20].all()
        assert not mask_of(boxes, 0)[:, 20:].any()

    def test_four_corners_in_every_line_are_turned_boxes_and_no_masks(self, folder: Path) -> None:
        files = {"labels/a.txt": "0 0.5 0 1 0.5 0.5 1 0 0.5"}
        source = opened(folder, write(folder, files) / "labels")
        boxes = source.load_boxes(with_masks=True)
        assert rows_of(boxes) == [("a.png", "0", [0, 0, 40, 20])]
        assert not boxes.has_masks()
        assert "turned box" in source.notes.lines()[0]

    def test_keypoints_are_no_polygon(self, folder: Path) -> None:
        files = {
            "set/data.yaml": "names: [a]\nkpt_shape: [3, 2]",
            "set/labels/a.txt": "0 .5 .5 .5 .5 .1 .1 .2 .2 .3 .3",
        }
        boxes = opened(folder, write(folder, files) / "set").load_boxes(with_masks=True)
        assert rows_of(boxes) == [("a.png", "a", [10, 5, 20, 10])]

    @pytest.mark.parametrize(
        ("line", "kind"),
        [
            ("0 20 10 5 5", "no fractions"),
            ("0 0.5 0.5 nan 0.5", "without a class number"),
            ("x 0.5 0.5 0.5 0.5", "without a class number"),
            ("0 0.5 0.5 0.5", "without a class number"),
            ("0.5 0.5 0.5 0.5 0.5", "without a class number"),
            ("0 1e400 0.5 0.5 0.5", "without a class number"),
            ("7 0.5 0.5 0.5 0.5", "class number without a name"),
        ],
    )
    def test_a_bad_line_is_named_and_the_others_are_read(
        self, line: str, kind: str, folder: Path
    ) -> None:
        files = {"labels/a.txt": f"0 .5 .5 .5 .5\n{line}\n", "classes.txt": "cat\n"}
        boxes = opened(folder, write(folder, files) / "labels").load_boxes(with_masks=False)
        assert len(boxes) == 1
        assert kind in boxes.problems.lines()[0]
        assert "a.txt, line 2" in boxes.problems.lines()[0]

    def test_labels_of_two_splits_go_to_their_own_images(self, tmp_path: Path, cache: Path) -> None:
        make_images(tmp_path / "images", ["train/0.png", "val/0.png"])
        files = {"labels/train/0.txt": "0 .5 .5 .5 .5", "labels/val/0.txt": "1 .5 .5 .5 .5"}
        write(tmp_path, files)
        whole = open_annotations(tmp_path / "labels", images=str(tmp_path / "images"))
        rows = rows_of(whole.load_boxes(with_masks=False))
        assert [row[:2] for row in rows] == [("train/0.png", "0"), ("val/0.png", "1")]
        part = open_annotations(tmp_path / "labels", images=str(tmp_path / "images" / "val"))
        rows = rows_of(part.load_boxes(with_masks=False))
        assert [row[:2] for row in rows] == [("0.png", "1")]

    def test_names_that_fit_several_images_are_not_guessed(
        self, tmp_path: Path, cache: Path
    ) -> None:
        make_images(tmp_path / "images", ["x/0.png", "y/0.png", "1.png"])
        write(tmp_path, {"labels/0.txt": "0 .5 .5 .5 .5", "labels/1.txt": "0 .5 .5 .5 .5"})
        source = open_annotations(tmp_path / "labels", images=str(tmp_path / "images"))
        boxes = source.load_boxes(with_masks=False)
        assert [row[0] for row in rows_of(boxes)] == ["1.png"]
        assert "without an image of its name: 0.txt" in boxes.problems.lines()[0]

    def test_boxes_lie_on_the_upright_image(self, tmp_path: Path, cache: Path) -> None:
        (tmp_path / "images").mkdir()
        image = Image.new("RGB", (HEIGHT, WIDTH))
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "images" / "a.jpg", exif=exif)
        write(tmp_path, {"labels/a.txt": "0 .5 .5 1 .5"})
        boxes = opened(tmp_path, tmp_path / "labels").load_boxes(with_masks=False)
        assert rows_of(boxes) == [("a.jpg", "0", [0, 5, 40, 10])]


def labelme(shapes: list[dict[str, Any]], **more: Any) -> str:
    return json.dumps(
        {"version": "5.0", "flags": {}, "shapes": shapes, "imagePath": "..\\images\\a.png",
         "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH} | more
    )  # fmt: skip


def shape(kind: str, *points: Sequence[Any], label: str = "cat", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None} | more


class TestLabelMe:
    def test_rectangles_polygons_and_circles_are_boxes(self, folder: Path) -> None:
        shapes = [
            shape("rectangle", [30, 12], [1, 2]),
            shape("polygon", [0, 0], [10, 0], [10, 10]),
            shape("circle", [10, 10], [10, 15]),
        ]
        path = write(folder, {"a.json": labelme(shapes)}) / "a.json"
        boxes = opened(folder, path).load_boxes(with_masks=True)
        assert rows_of(boxes) == [
            ("a.png", "cat", [1, 2, 29, 10]),
            ("a.png", "cat", [0, 0, 10, 10]),
            ("a.png", "cat", [5, 5, 10, 10]),
        ]
        assert [boxes.rle_of(row) is not None for row in range(3)] == [False, True, False]

    def test_shapes_of_a_group_are_one_object(self, folder: Path) -> None:
        shapes = [
            shape("polygon", [0, 0], [5, 0], [5, 5], [0, 5], group_id=3),
            shape("polygon", [20, 10], [25, 10], [25, 15], group_id=3),
            shape("polygon", [20, 10], [25, 10], [25, 15], group_id=3, label="dog"),
        ]
        path = write(folder, {"a.json": labelme(shapes)}) / "a.json"
        boxes = opened(folder, path).load_boxes(with_masks=True)
        assert rows_of(boxes) == [
            ("a.png", "cat", [0, 0, 25, 15]),
            ("a.png", "dog", [20, 10, 5, 5]),
        ]
        assert mask_of(boxes, 0)[2, 2] == 1
        assert mask_of(boxes, 0)[11, 24] == 1
        assert mask_of(boxes, 0)[8, 12] == 0

    def test_a_mask_is_pasted_at_its_corner(self, folder: Path) -> None:
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 6), 255, np.uint8)).save(buffer, "png")
        mask = base64.b64encode(buffer.getvalue()).decode()
        path = write(folder, {"a.json": labelme([shape("mask", [3, 2], [9, 6], mask=mask)])})
        boxes = opened(folder, path / "a.json").load_boxes(with_masks=True)
        assert rows_of(boxes) == [("a.png", "cat", [3, 2, 6, 4])]
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        expected[2:6, 3:9] = 1
        np.testing.assert_array_equal(mask_of(boxes, 0), expected)

    def test_shapes_without_an_area_are_noted_and_bad_ones_named(self, folder: Path) -> None:
        shapes: list[Any] = [
            shape("point", [1, 1]),
            shape("rectangle", [1, 2]),
            shape("polygon", ["x", 0], [1, 1], [2, 2]),
            7,
            shape("rectangle", [1, 2], [3, 4], label=""),
            shape("rectangle", [1, 2], [30, 12]),
        ]
        source = opened(folder, write(folder, {"a.json": labelme(shapes)}) / "a.json")
        boxes = source.load_boxes(with_masks=False)
        assert len(boxes) == 1
        assert source.notes.lines() == [
            "1 x LabelMe shape that has no area, left out: shape 1 of a.json (point)"
        ]
        assert boxes.problems.lines()[0].startswith("4 x LabelMe shape without a label or usable")

    def test_a_folder_and_an_archive_of_it_say_the_same(self, folder: Path) -> None:
        files = {
            "ann/a.json": labelme([shape("rectangle", [1, 2], [30, 12])]),
            "ann/b.json": labelme([shape("rectangle", [1, 2], [3, 4])], imagePath="b.jpg"),
        }
        write(folder, files)
        plain = rows_of(opened(folder, folder / "ann").load_boxes(with_masks=False))
        assert [row[0] for row in plain] == ["a.png", "b.jpg"]
        for kind in ("zip", "gztar"):
            archive = shutil.make_archive(str(folder / kind), kind, folder, "ann")
            assert rows_of(opened(folder, archive).load_boxes(with_masks=False)) == plain


def task(image: str, *annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": list(annotations)} | more


def result(kind: str = "rectanglelabels", **value: Any) -> dict[str, Any]:
    defaults = {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0, kind: ["cat"]}
    return {
        "type": kind, "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0,
        "value": (defaults if kind == "rectanglelabels" else {kind: ["cat"]}) | value,
    }  # fmt: skip


class TestLabelStudio:
    def read(self, folder: Path, tasks: Any) -> AnnotationSource:
        path = folder / "export.json"
        path.write_text(json.dumps(tasks))
        return opened(folder, path)

    @pytest.mark.parametrize(
        "image",
        [
            "/data/upload/1/0a1b2c3d-a.png",
            "/data/local-files/?d=some%20where/images/a.png",
            "s3://bucket/folder/a.png",
            "https://user:hunter2@host/x/a.png?X-Amz-Signature=hunter2",
            "a.png",
        ],
    )
    def test_percent_are_pixels_of_the_image_that_the_task_names(
        self, image: str, folder: Path
    ) -> None:
        boxes = self.read(folder, [task(image, {"result": [result()]})]).load_boxes(
            with_masks=False
        )
        assert rows_of(boxes) == [("a.png", "cat", [10, 10, 20, 5])]

    def test_a_secret_of_an_uri_is_never_shown(self, folder: Path) -> None:
        image = "https://user:hunter2@host/x/absent.png?X-Amz-Signature=hunter2"
        source = self.read(folder, [task(image, {"result": [result()]})])
        with pytest.raises(AnnotationError, match=r"absent\.png") as caught:
            source.load_boxes(with_masks=False)
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("annotations", "left"),
        [
            pytest.param(
                [{"result": [result(x=0)], "updated_at": "2024-01-02"},
                 {"result": [result(x=10)], "updated_at": "2024-03-01"},
                 {"result": [result(x=20)], "updated_at": "2024-02-01"}], 4.0, id="latest",
            ),
            pytest.param(
                [{"result": [result(x=0)], "updated_at": "2024-01-02", "ground_truth": True},
                 {"result": [result(x=10)], "updated_at": "2024-03-01"}], 0.0, id="ground truth",
            ),
            pytest.param(
                [{"result": [result(x=0)], "updated_at": "2024-01-02"},
                 {"result": [result(x=10)], "updated_at": "2024-03-01", "was_cancelled": True}],
                0.0, id="cancelled",
            ),
        ],
    )  # fmt: skip
    def test_one_annotation_of_a_task_counts(
        self, annotations: list[Any], left: float, folder: Path
    ) -> None:
        boxes = self.read(folder, [task("a.png", *annotations)]).load_boxes(with_masks=False)
        assert [row[2][0] for row in rows_of(boxes)] == [left]

    def test_a_skipped_task_has_no_boxes_and_is_noted(self, folder: Path) -> None:
        skipped = {"result": [result()], "was_cancelled": True}
        tasks = [task("a.png", {"result": [result()]}), task("b.jpg", skipped)]
        source = self.read(folder, tasks)
        assert [row[0] for row in rows_of(source.load_boxes(with_masks=False))] == ["a.png"]
        assert "without a submitted annotation" in source.notes.lines()[0]

    def test_a_turned_rectangle_gives_the_box_around_it(self, folder: Path) -> None:
        turned = result(x=50, y=50, width=25, height=20, rotation=90)
        source = self.read(folder, [task("a.png", {"result": [turned]})])
        # 10 x 4 px turned by 90 degrees clockwise about its first corner (20, 10).
        assert rows_of(source.load_boxes(with_masks=False)) == [("a.png", "cat", [16, 10, 4, 10])]
        assert "turned rectangle" in source.notes.lines()[0]

    def test_polygons_ellipses_and_brushes_have_boxes(self, folder: Path) -> None:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[3:9, 5:25] = 1
        results = [
            result("polygonlabels", points=[[0, 0], [50, 0], [50, 50]]),
            result("ellipselabels", x=50, y=50, radiusX=25, radiusY=10, rotation=0),
            result("brushlabels", format="rle", rle=brush_of(mask)),
        ]
        source = self.read(folder, [task("a.png", {"result": results})])
        boxes = source.load_boxes(with_masks=True)
        assert [row[2] for row in rows_of(boxes)] == [
            [0, 0, 20, 10], [10, 8, 20, 4], [5, 3, 20, 6],
        ]  # fmt: skip
        np.testing.assert_array_equal(mask_of(boxes, 2), mask)

    def test_json_min_is_read(self, folder: Path) -> None:
        value = result()["value"] | {"original_width": WIDTH, "original_height": HEIGHT}
        tasks = [{"image": "/data/upload/a.png", "id": 1, "label": [value], "annotator": 1,
                  "annotation_id": 1, "lead_time": 2.5}]  # fmt: skip
        boxes = self.read(folder, tasks).load_boxes(with_masks=False)
        assert rows_of(boxes) == [("a.png", "cat", [10, 10, 20, 5])]

    def test_two_tasks_of_one_image_are_both_left_out(self, folder: Path) -> None:
        tasks = [
            task("x/a.png", {"result": [result()]}),
            task("y/a.png", {"result": [result(x=1)]}),
            task("b.jpg", {"result": [result()]}),
        ]
        boxes = self.read(folder, tasks).load_boxes(with_masks=False)
        assert [row[0] for row in rows_of(boxes)] == ["b.jpg"]
        assert "2 x Label Studio task" in boxes.problems.lines()[0]

    @pytest.mark.parametrize(
        "bad",
        [
            5,
            {"value": 5},
            result(x="nan"),
            result(x=None),
            result(rectanglelabels=[]),
            result(rectanglelabels="cat"),
            result("polygonlabels", points=[[0, 0]]),
            result("brushlabels", rle=[1, 2, 3]),
            result("brushlabels", rle="text"),
            result() | {"image_rotation": 90},
        ],
        ids=repr,
    )
    def test_a_bad_result_is_named_and_the_others_are_read(self, bad: Any, folder: Path) -> None:
        tasks = [task("a.png", {"result": [bad, result()]})]
        boxes = self.read(folder, tasks).load_boxes(with_masks=False)
        assert rows_of(boxes) == [("a.png", "cat", [10, 10, 20, 5])]
        assert "result 1 of a.png" in boxes.problems.lines()[0]


def brush_of(mask: Any) -> list[int]:
    """Encode a mask as Label Studio does: RGBA values, word size 8, all as one literal run."""
    values = np.repeat(mask.ravel() * 255, 4).tolist()
    bits = f"{len(values):032b}{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    start = 0
    while start < len(values):
        end = start
        while end < len(values) and values[end] == values[start] and end - start < 255:
            end += 1
        is_run = end - start > 1
        bits += f"{int(is_run)}{2:02b}{end - start - 1:08b}{values[start]:08b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@pytest.mark.parametrize("seed", range(3))
def test_a_brush_mask_of_any_pixels_is_decoded(seed: int) -> None:
    mask = (np.random.default_rng(seed).random((7, 9)) < 0.5).astype(np.uint8)
    np.testing.assert_array_equal(mask_from_brush(brush_of(mask), 7, 9), mask)


class TestKitti:
    LINE = "Car 0.00 0 -1.58 5.0 2.0 25.0 12.0 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"

    def test_boxes_are_corners_in_pixels(self, folder: Path) -> None:
        text = f"{self.LINE}\nDontCare -1 -1 -10 1 1 9 9 -1 -1 -1 -1000 -1000 -1000 -10\n"
        source = opened(folder, write(folder, {"label_2/a.txt": text}) / "label_2")
        boxes = source.load_boxes(with_masks=False)
        assert rows_of(boxes) == [("a.png", "Car", [5, 2, 20, 10])]
        assert "DontCare" in source.notes.lines()[0]

    def test_a_bad_line_is_named(self, folder: Path) -> None:
        files = {"label_2/a.txt": f"{self.LINE}\n{self.LINE[:20]}\n"}
        boxes = opened(folder, write(folder, files) / "label_2").load_boxes(with_masks=False)
        assert len(boxes) == 1
        assert "a.txt, line 2" in boxes.problems.lines()[0]


class TestTypes:
    def test_another_type_than_the_content_is_an_error_that_names_both(self, folder: Path) -> None:
        path = write(folder, {"labels/a.txt": "0 .5 .5 .5 .5"}) / "labels"
        with pytest.raises(AnnotationError, match=r"dataset.type must fit.*got voc.*is yolo"):
            opened(folder, path, "voc")

    def test_a_folder_of_two_formats_asks_for_the_type(self, folder: Path) -> None:
        files = {
            "ann/a.txt": "0 .5 .5 .5 .5",
            "ann/b.xml": voc("b.jpg", voc_object("cat", 1, 2, 3, 4)),
        }
        path = write(folder, files) / "ann"
        with pytest.raises(AnnotationError, match=r"ambiguous: voc, yolo .*Set dataset\.type"):
            opened(folder, path)
        assert rows_of(opened(folder, path, "voc").load_boxes(with_masks=False))[0][0] == "b.jpg"
        assert rows_of(opened(folder, path, "yolo").load_boxes(with_masks=False))[0][0] == "a.png"

    def test_the_default_of_tao_reads_what_the_content_is(self, folder: Path) -> None:
        path = write(folder, {"labels/a.txt": "0 .5 .5 .5 .5"}) / "labels"
        assert opened(folder, path, "coco").format_name == "yolo"

    @pytest.mark.parametrize("name", ["labels/", "labels"])
    def test_a_bucket_folder_is_read_as_a_local_one(self, name: str, folder: Path, s3: Any) -> None:
        for key, text in (("a.txt", "1 .5 .5 .5 .5"), ("classes.txt", "cat\ndog")):
            s3.put_object(Bucket="bucket", Key=f"set/labels/{key}", Body=text.encode())
        source = opened(folder, f"s3://bucket/set/{name}")
        rows = rows_of(source.load_boxes(with_masks=False))
        assert rows == [("a.png", "dog", [10, 5, 20, 10])]


FIELDS = [
    "label", "points", "shape_type", "group_id", "mask", "imagePath", "imageWidth", "imageHeight",
    "value", "x", "y", "width", "height", "rotation", "rectanglelabels", "polygonlabels",
    "brushlabels", "ellipselabels", "radiusX", "radiusY", "rle", "original_width",
    "original_height", "image_rotation", "result", "annotations", "data", "image", "updated_at",
    "was_cancelled", "ground_truth", "id", "type",
]  # fmt: skip
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["\ud800", "\x1b[31m", 10**400, -(2**70), "1e999", "../../x", "a.png", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3)
    ),
    max_leaves=8,
)
GOOD = {
    "labelme": json.loads(labelme([shape("polygon", [0, 0], [5, 0], [5, 5], group_id=1)])),
    "labelstudio": task(
        "a.png", {"result": [result(), result("polygonlabels", points=[[0, 0], [50, 0], [50, 50]]),
                             result("brushlabels", rle=[0, 0, 1])], "updated_at": "2024"},
    ),
}  # fmt: skip


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.items() if isinstance(value, dict) else enumerate(value)
    inside = [places_in(one, (*path, key)) for key, one in keys if isinstance(one, dict | list)]
    return [*((*path, key) for key, _ in keys), *(place for some in inside for place in some)]


@pytest.mark.parametrize("name", ["labelme", "labelstudio"])
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_value_in_any_field_gives_a_crash_or_a_box_on_another_image(
    name: str, data: st.DataObject, folder: Path
) -> None:
    content = json.loads(json.dumps(GOOD[name]))
    keys = dict(content) if isinstance(content, dict) else content
    *parents, last = data.draw(st.sampled_from(places_in(keys)))
    target = content
    for key in parents:
        target = target[key]
    target[last] = data.draw(json_values)
    path = folder / "fuzzed.json"
    path.write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(AnnotationError):
        boxes = opened(folder, path, name).load_boxes(with_masks=True)
        assert {row[0] for row in rows_of(boxes)} <= {"a.png", "b.jpg", "sub/c.png"}
        for line in boxes.problems.lines():
            assert len(line) < 2000
            assert line.isprintable()


@pytest.mark.parametrize("suffix", ["xml", "txt"])
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200), data=st.data())
def test_no_bytes_in_a_file_of_an_image_stop_the_others(
    suffix: str, content: bytes, data: st.DataObject, folder: Path
) -> None:
    whole = {
        "xml": voc("a.png", voc_object("cat", 1, 2, 3, 4)).encode(),
        "txt": b"0 .5 .5 .5 .5\n",
    }[suffix]
    at = data.draw(st.integers(0, len(whole)))
    write(folder / "ann", {f"b.{suffix}": whole.decode().replace("a.png", "")})
    (folder / "ann" / f"a.{suffix}").write_bytes(whole[:at] + content + whole[at:])
    kind = {"xml": "voc", "txt": "yolo"}[suffix]
    boxes = opened(folder, folder / "ann", kind).load_boxes(with_masks=True)
    assert "b.jpg" in {row[0] for row in rows_of(boxes)}
    assert all(line.isprintable() for line in boxes.problems.lines())
