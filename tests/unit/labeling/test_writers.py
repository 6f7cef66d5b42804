"""Writers: complete or absent outputs, nothing outside of them, nothing drawn that is not known.

That the tools read them is tested in tests/integration/readers.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from mal import dataset_commands
from mal.cli import main
from mal.labeling import writers
from mal.labeling.writers.output import safe_name

HEIGHT, WIDTH = 8, 10
EMPTY = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}


def filled(left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    rle: Any = coco_mask.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def write_set(folder: Path, annotations: list[dict[str, Any]], *names: str) -> Path:
    document = {
        "info": {"mine": 1},
        "images": [
            {"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for n, name in enumerate(names or ("a.png",), 1)
        ],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]} | annotation
            for n, annotation in enumerate(annotations, 1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
    }
    path = folder / "labels.json"
    path.write_text(json.dumps(document))
    return path


def export(labels: Path, target: str, *more: str) -> Path:
    output = labels.with_name("out")
    assert main(["labels", "export", str(labels), "--to", target, "-o", str(output), *more]) == 0
    return output


def test_the_command_line_knows_the_targets_of_the_writers() -> None:
    assert dataset_commands.EXPORT_TARGETS == writers.EXPORT_TARGETS
    assert dataset_commands.CONVERT_TARGETS == writers.CONVERT_TARGETS


@pytest.mark.parametrize(
    ("empty", "expected"),
    [
        ("skip", {1: [[1, 1, 5, 1, 5, 5, 1, 5]]}),
        ("box", {1: [[1, 1, 5, 1, 5, 5, 1, 5]], 2: [[6, 1, 10, 1, 10, 5, 6, 5]]}),
        ("keep", {1: [[1, 1, 5, 1, 5, 5, 1, 5]], 2: []}),
    ],
)
def test_an_empty_mask_is_left_out_or_marked(
    empty: str, expected: dict[int, Any], tmp_path: Path
) -> None:
    labels = write_set(
        tmp_path,
        [
            {"segmentation": filled(1, 1, 5, 5), "note": "kept"},
            {"segmentation": EMPTY, "bbox": [6, 1, 40, 4]},
        ],
    )
    document = json.loads(
        (export(labels, "polygons", "--empty", empty) / "labels.json").read_text()
    )
    found = {each["id"]: each["segmentation"] for each in document["annotations"]}
    assert found == expected
    assert document["info"] == {"mine": 1}
    assert document["annotations"][0]["note"] == "kept"


@pytest.mark.parametrize("target", ["yolo-seg", "labelstudio", "cvat"])
def test_a_format_without_empty_masks_refuses_to_keep_them(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_set(tmp_path, [{"segmentation": EMPTY}])
    output = tmp_path / "out"
    command = [
        "labels",
        "export",
        str(labels),
        "--to",
        target,
        "-o",
        str(output),
        "--empty",
        "keep",
    ]
    assert main(command) == 2
    assert "--empty must be skip or box" in capsys.readouterr().err
    assert not output.exists()


def test_yolo_polygons_lie_in_their_image_and_classes_count_from_0(tmp_path: Path) -> None:
    labels = write_set(
        tmp_path,
        [{"segmentation": filled(0, 0, 10, 8), "category_id": 5}, {"segmentation": EMPTY}],
        "images/a.png", "b.png",
    )  # fmt: skip
    folder = export(labels, "yolo-seg")
    line = (folder / "labels" / "a.txt").read_text()
    assert line.split()[0] == "1"
    assert sorted(map(float, line.split()[1:])) == [0.0] * 4 + [1.0] * 4
    assert (folder / "labels" / "b.txt").read_text() == ""
    assert yaml.safe_load((folder / "data.yaml").read_text())["names"] == {0: "cat", 1: "dog"}


def test_a_set_without_masks_becomes_detection_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = write_set(tmp_path, [{"bbox": [0, 0, 5, 4]}])
    out = tmp_path / "yolo"
    assert main(["dataset", "convert", str(boxes), str(out), "--to", "yolo-seg"]) == 0
    assert (out / "labels" / "a.txt").read_text() == "0 0.250000 0.250000 0.500000 0.500000\n"
    assert "detection labels" in capsys.readouterr().out


def test_instance_masks_are_pixels_of_their_image(tmp_path: Path) -> None:
    mask: Any = filled(2, 1, 4, 6)
    labels = write_set(tmp_path, [{"segmentation": mask}, {"segmentation": mask, "id": 1}])
    folder = export(labels, "png")
    with (folder / "masks.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["mask"] for row in rows] == ["masks/a.png/1.png", "masks/a.png/1-2.png"]
    pixels = np.asarray(Image.open(folder / rows[0]["mask"]))
    assert np.array_equal(pixels, coco_mask.decode(mask) * 255)


def test_a_semantic_mask_shows_the_smaller_object_above_the_larger(tmp_path: Path) -> None:
    small = {"segmentation": filled(2, 2, 4, 4), "category_id": 5}
    labels = write_set(tmp_path, [small, {"segmentation": filled(1, 1, 6, 6)}])
    folder = export(labels, "png-semantic")
    pixels = np.asarray(Image.open(folder / "masks" / "a.png"))
    assert [pixels[0, 0], pixels[1, 1], pixels[3, 3]] == [0, 1, 2]


HOSTILE = (
    "../../up.png", "/etc/x.png", "C:\\x\\y.png", "a\x07b.png", "n" * 240 + ".png", "..",
    "\ud800.png",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("target", writers.EXPORT_TARGETS)
def test_no_name_writes_outside_the_output(name: str, target: str, tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    labels = write_set(inside, [{"segmentation": filled(1, 1, 5, 5)}], name)
    export(labels, target)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert {path.name for path in inside.iterdir()} == {"labels.json", "out"}
    parts = safe_name(name).parts
    assert parts
    assert ".." not in parts
    assert all(len(part.encode()) <= 255 for part in parts)


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("x/a.png", "x\\a.png"), ("a.png", "a.png")])
def test_two_images_that_need_one_file_are_an_error_and_nothing_is_written(
    names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_set(tmp_path, [{"segmentation": filled(1, 1, 5, 5)}], *names)
    output = tmp_path / "out"
    assert main(["labels", "export", str(labels), "--to", "yolo-seg", "-o", str(output)]) == 2
    assert "would both have the file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


def test_a_folder_with_files_is_not_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_set(tmp_path, [])
    command = ["labels", "export", str(labels), "--to", "png", "-o", str(tmp_path)]
    assert main(command) == 2
    assert "must be a new or an empty folder" in capsys.readouterr().err


def test_a_converted_set_has_only_what_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = write_set(tmp_path, [{"extra": [1]}, {"bbox": [50, 50, 2, 2]}, {"image_id": 9}])
    out = tmp_path / "coco.json"
    assert main(["dataset", "convert", str(boxes), str(out), "--to", "coco"]) == 0
    document = json.loads(out.read_text())
    assert [each["id"] for each in document["annotations"]] == [1]
    assert document["annotations"][0]["extra"] == [1]
    assert "2 that cannot be used" in capsys.readouterr().out


@pytest.mark.parametrize("reading", ["xyxy-px", "no-such-reading"])
def test_boxes_of_another_reading_are_rewritten(
    reading: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mal.data.box_rewriting import REWRITINGS

    corners = next(name for name in REWRITINGS if name.startswith("x1") or "xyxy" in name)
    boxes = write_set(tmp_path, [{"bbox": [1, 2, 5, 7]}])
    out = tmp_path / "coco.json"
    name = corners if reading == "xyxy-px" else reading
    code = main(["dataset", "convert", str(boxes), str(out), "--boxes", name])
    if name == reading:
        assert code == 2
        assert "--boxes must be a known reading" in capsys.readouterr().err
    else:
        assert code == 0
        assert json.loads(out.read_text())["annotations"][0]["bbox"] == [1, 2, 4, 5]
