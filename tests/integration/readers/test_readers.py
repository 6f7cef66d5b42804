"""What `mal labels export` and `mal dataset convert` write is read by the tools that users have.

The readers are no dependencies of mal. They run in an interpreter of their own, which
MAL_READERS_PYTHON names (`pip install 'mal[readers]'` there); a reader that it does not have is
skipped.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from mal.cli import main

PYTHON = os.environ.get("MAL_READERS_PYTHON", sys.executable)
HEIGHT, WIDTH = 60, 80
NAMES = ("a.png", "sub/b c.png", "ü.png")
CLASSES = ("cat", "dog & co")


@functools.cache
def has_module(module: str) -> bool:
    return (
        subprocess.run(
            [PYTHON, "-c", f"import {module}"], capture_output=True, check=False
        ).returncode
        == 0
    )


def read(module: str, script: str, *arguments: str | Path, cwd: Path) -> Any:
    """Run a script with a reader; returns the JSON of its last line."""
    if not has_module(module):
        pytest.skip(f"{PYTHON} has no {module}")
    environment = os.environ | {"YOLO_CONFIG_DIR": str(cwd), "MPLCONFIGDIR": str(cwd)}
    done = subprocess.run(
        [PYTHON, "-c", f"import json, sys\n{script}", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def drawn_masks() -> dict[str, NDArray[np.bool_]]:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    squared = (x - 25) ** 2 + (y - 30) ** 2
    parts = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    parts[5:15, 50:60] = parts[20:30, 62:70] = True
    solid = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    solid[40:55, 50:75] = True
    return {"hole": (squared < 400) & (squared > 64), "parts": parts, "solid": solid}


MASKS = drawn_masks()
# Image (from 0), class (from 0) and mask of each object; '' is an empty one.
OBJECTS = ((0, 0, "hole"), (0, 1, "parts"), (0, 0, ""), (1, 1, "solid"), (2, 0, "hole"))


def label_of(mask: NDArray[np.bool_]) -> dict[str, Any]:
    rle: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    area = int(mask.sum())
    return {
        "bbox": coco_mask.toBbox(rle).tolist() if area else [1, 1, 20, 10],
        "area": area,
        "score": 0.5 if area else 0.0,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
    }


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A label file of mal with a hole, two parts, an empty mask and an image that is not listed."""
    for name in NAMES:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 30)).save(path)
    annotations = [
        {"id": number, "image_id": image + 1, "category_id": category + 1, "iscrowd": 0}
        | label_of(MASKS.get(name, np.zeros((HEIGHT, WIDTH), dtype=np.bool_)))
        for number, (image, category, name) in enumerate(OBJECTS, 1)
    ]
    lost = {"id": 9, "image_id": 77, "category_id": 1, "bbox": [1, 1, 4, 4], "iscrowd": 0}
    lost |= {"area": 0, "score": 0.0, "segmentation": {"size": [0, 0], "counts": "0"}}
    document = {
        "images": [
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for number, name in enumerate(NAMES, 1)
        ],
        "annotations": [*annotations, lost],
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)],
    }
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(document))
    return path


def export(labels: Path, target: str, name: str, *more: str) -> Path:
    output = labels.with_name(name)
    images = str(labels.with_name("images"))
    command = ["labels", "export", str(labels), "--to", target, "-o", str(output)]
    assert main([*command, "--images", images, *more]) == 0
    return output


PYCOCOTOOLS = """
from pycocotools.coco import COCO
coco = COCO(sys.argv[1])
print(json.dumps([[int(i), int(coco.annToMask(coco.anns[i]).sum())] for i in sorted(coco.anns)
                  if coco.anns[i]["image_id"] in coco.imgs]))
"""


@pytest.mark.parametrize("form", ["rle", "polygons"])
def test_pycocotools_reads_every_pixel(form: str, labels: Path) -> None:
    path = labels if form == "rle" else export(labels, "polygons", "polygons.json")
    areas = [int(MASKS[name].sum()) if name else 0 for _, _, name in OBJECTS]
    expected = [[n, area] for n, area in enumerate(areas, 1) if area or form == "rle"]
    assert read("pycocotools", PYCOCOTOOLS, path, cwd=labels.parent) == expected


SUPERVISION_COCO = """
import supervision as sv
data = sv.DetectionDataset.from_coco(sys.argv[2], sys.argv[1], force_masks=True)
areas = [d.mask.sum(axis=(1, 2)).tolist() if len(d) else [] for _, _, d in data]
print(json.dumps([data.classes, areas]))
"""


@pytest.mark.parametrize("form", ["rle", "polygons"])
def test_supervision_reads_coco(form: str, labels: Path) -> None:
    path = labels if form == "rle" else export(labels, "polygons", "polygons.json")
    classes, areas = read(
        "supervision", SUPERVISION_COCO, path, labels.with_name("images"), cwd=labels.parent
    )
    assert classes == list(CLASSES)
    assert len(areas) == len(NAMES)
    assert areas[1][0] == pytest.approx(MASKS["solid"].sum(), rel=0.15)  # it draws outlines too


ULTRALYTICS = """
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset, polygon2mask
data = check_det_dataset(sys.argv[1], autodownload=False)
set_ = YOLODataset(img_path=data["train"], data=data, task="segment", augment=False, cache=False)
found = {}
for label in set_.labels:
    h, w = label["shape"]
    found[label["im_file"].rpartition("/")[2]] = [
        [int(c[0]), int(polygon2mask((h, w), [(s * [w, h]).reshape(-1)]).sum())]
        for c, s in zip(label["cls"], label["segments"])]
print(json.dumps([data["names"], found]))
"""


def test_ultralytics_reads_a_polygon_for_each_mask_and_none_for_an_empty_one(
    labels: Path,
) -> None:
    folder = export(labels, "yolo-seg", "yolo")
    names, found = read("ultralytics", ULTRALYTICS, folder / "data.yaml", cwd=labels.parent)
    assert list(names.values()) == list(CLASSES)
    assert set(found) == {"a.png", "b c.png", "ü.png"}
    assert [category for category, _ in found["a.png"]] == [0, 1]
    (_, hole), (_, parts) = found["a.png"]
    # OpenCV draws the outline of a polygon too, about half a pixel on each side of it.
    assert hole == pytest.approx(MASKS["hole"].sum(), rel=0.2)
    squares, cut = 11 * 11 + 9 * 11, 40  # the two parts with their outlines, and the cut
    assert MASKS["parts"].sum() <= parts <= squares + cut


SAHI = """
from sahi.utils.coco import Coco
coco = Coco.from_coco_dict_or_path(sys.argv[1])
print(json.dumps({image.file_name: [round(a.area) for a in image.annotations]
                  for image in coco.images}))
"""


def test_sahi_reads_every_mask(labels: Path) -> None:
    found = read("sahi", SAHI, export(labels, "polygons", "polygons.json"), cwd=labels.parent)
    assert [len(areas) for areas in found.values()] == [2, 1, 1]
    assert found["a.png"] == [int(MASKS[name].sum()) for name in ("hole", "parts")]


DATUMARO = """
import numpy as np
from datumaro import Dataset
from datumaro.components.annotation import AnnotationType as T
found = {}
for item in Dataset.import_from(sys.argv[1], sys.argv[2]):
    of_item = []
    for a in item.annotations:
        if a.type == T.mask:
            of_item.append(["mask", int(np.asarray(a.image).sum())])
        elif a.type == T.polygon:
            of_item.append(["polygon", round(a.get_area())])
        elif a.type == T.bbox:
            of_item.append(["box", round(a.get_area())])
    found[item.id] = sorted(of_item)
print(json.dumps(found))
"""


def test_datumaro_reads_cvat_masks_with_holes_and_parts(labels: Path) -> None:
    folder = export(labels, "cvat", "cvat")
    shutil.copytree(labels.with_name("images"), folder / "images")  # as CVAT exports them
    found = read("datumaro", DATUMARO, folder, "cvat", cwd=labels.parent)
    areas = sorted(int(MASKS[name].sum()) for name in ("hole", "parts"))
    assert found["a"] == [["mask", area] for area in areas]
    assert found["sub/b c"] == [["mask", int(MASKS["solid"].sum())]]


def test_datumaro_reads_voc_boxes(labels: Path) -> None:
    folder = labels.with_name("voc")
    assert main(["dataset", "convert", str(labels), str(folder), "--to", "voc"]) == 0
    found = read("datumaro", DATUMARO, folder, "voc", cwd=labels.parent)
    boxes = [area for kind, area in found["a"] if kind == "box"]
    assert sorted(boxes) == sorted([39 * 39, 20 * 25, 20 * 10])


LABEL_STUDIO = """
from pathlib import Path
from label_studio_sdk.converter import Converter
tasks, config, images, out = sys.argv[1:]
converter = Converter(config, project_dir=None, download_resources=False)
converter.convert_to_coco(tasks, out, output_image_dir=images, is_dir=False)
coco = json.loads((Path(out) / "result.json").read_text())
print(json.dumps([[c["name"] for c in coco["categories"]],
                  sorted(round(a["area"]) for a in coco["annotations"])]))
"""


def test_the_converter_of_label_studio_reads_every_part(labels: Path) -> None:
    tasks = export(labels, "labelstudio", "tasks.json")
    names, areas = read(
        "label_studio_sdk.converter",
        LABEL_STUDIO,
        tasks,
        tasks.with_suffix(".config.xml"),
        labels.with_name("images"),
        labels.with_name("converted"),
        cwd=labels.parent,
    )
    assert sorted(names) == sorted(CLASSES)
    hole, solid = (int(MASKS[name].sum()) for name in ("hole", "solid"))
    assert areas == sorted([hole, hole, 100, 80, solid])
