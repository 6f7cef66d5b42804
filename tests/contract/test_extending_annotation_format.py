"""docs/extending/annotation_format.md: its format works, a half-made one fails with its message."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_sets import TINY_VIT, write_tiny_set

PAGE = Path(__file__).parents[2] / "docs" / "extending" / "annotation_format.md"
COLUMNS = ["file_name", "x", "y", "width", "height", "category"]


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1, language
    return str(found[0])


class Setting(NamedTuple):
    """A set whose boxes are in a CSV file, and an installed package with the page's format."""

    folder: Path
    boxes: Path
    images: Path

    def write_format(self, source: str) -> None:
        (self.folder / "packages" / "csv_boxes.py").write_text(source, encoding="utf-8")

    def mal(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PYTHONPATH": str(self.folder / "packages"),
            "MAL_CACHE_DIR": str(self.folder / "cache"),
        }
        return subprocess.run(
            [sys.executable, "-m", "mal", *arguments],
            cwd=self.folder, env=environment, check=False, capture_output=True, text=True,
        )  # fmt: skip

    def check(self) -> subprocess.CompletedProcess[str]:
        return self.mal("dataset", "check", str(self.boxes), str(self.images))


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    tiny = write_tiny_set(tmp_path / "set")
    document = tiny.document()
    images = {image["id"]: image["file_name"] for image in document["images"]}
    boxes = tmp_path / "boxes.csv"
    with boxes.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for entry in document["annotations"]:
            writer.writerow([images[entry["image_id"]], *entry["bbox"], "thing"])
    metadata = tmp_path / "packages" / "csv_boxes-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: csv-boxes\nVersion: 1.0\n")
    group, entry_point = re.findall(r'\[project\.entry-points\."(.+)"\]\n(.+)', block("toml"))[0]
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{entry_point.replace(chr(34), '')}\n")
    made = Setting(tmp_path, boxes, tiny.images)
    made.write_format(block("python"))
    return made


def test_the_example_of_the_page_is_read(setting: Setting) -> None:
    header, *rows = block("csv").splitlines()
    assert header == ",".join(COLUMNS)
    setting.boxes.write_text(block("csv"), encoding="utf-8")
    answer = setting.check()
    assert answer.returncode == 0, answer.stderr
    assert f"usable: {len(rows)} boxes" in answer.stdout
    assert "2 categories" in answer.stdout


def test_a_set_of_the_format_is_checked_trained_on_and_labeled(setting: Setting) -> None:
    num_boxes = len(setting.boxes.read_text().splitlines()) - 1
    checked = setting.check()
    assert checked.returncode == 0, checked.stderr
    assert f"usable: {num_boxes} boxes" in checked.stdout

    common = [*TINY_VIT, "device=cpu", "dataset.num_workers_per_gpu=0", "dataset.min_obj_size=0"]
    trained = setting.mal(
        "train", *common, "results_dir=results", "train.batch_size=2", "train.max_steps=1",
        f"dataset.train_ann_path={setting.boxes}", f"dataset.train_img_dir={setting.images}",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr

    labeled = setting.mal(
        "inference", *common, "results_dir=results", "inference.checkpoint=results/train",
        f"inference.ann_path={setting.boxes}", f"inference.img_dir={setting.images}",
        "inference.label_dump_path=labels.json",
    )  # fmt: skip
    assert labeled.returncode == 0, labeled.stderr
    labels = json.loads((setting.folder / "results" / "inference" / "labels.json").read_text())
    assert [entry["id"] for entry in labels["annotations"]] == list(range(2, num_boxes + 2))
    assert all(entry["segmentation"]["counts"] for entry in labels["annotations"])
    assert labels["categories"] == [{"id": 1, "name": "thing"}]


@pytest.mark.parametrize(
    ("part", "half_made", "message"),
    [
        pytest.param(
            'row["category"]',
            '""',
            "must give box 2 the name of a category, got ''",
            id="no category",
        ),
        pytest.param(
            '("x", "y", "width", "height")',
            '("x", "y", "width")',
            "must give box 2 as x, y, width and height, got [",
            id="three numbers",
        ),
        pytest.param(
            "float(row[key])",
            "1000 + float(row[key])",
            "x box outside its image: annotation 2",
            id="outside the image",
        ),
        pytest.param(
            'file_name=row["file_name"]',
            'file_name="absent.png"',
            "annotation 2 (absent.png)",
            id="unknown image",
        ),
        pytest.param(
            "return AnnotationTable(",
            "return (",
            "must return an AnnotationTable, got (",
            id="no table",
        ),
        pytest.param(
            "id=line", 'id="a"', "a whole number as id, got BoxRow(id='a'", id="id as text"
        ),
        pytest.param(
            'row["category"]', 'row["label"]', "as csv: KeyError: 'label'", id="another column"
        ),
        pytest.param(
            'AnnotationFormat("csv", matches, read)',
            "read",
            "'csv' must be an AnnotationFormat, got function from csv_boxes:FORMAT",
            id="a function",
        ),
        pytest.param("FORMAT =", "OTHER =", "Cannot load annotation format 'csv'", id="no FORMAT"),
        pytest.param(
            'path.suffix == ".csv"', "True", None, id="matches everything, COCO files too"
        ),
        pytest.param(
            'AnnotationFormat("csv"',
            'AnnotationFormat("coco"',
            "'coco' is registered twice",
            id="taken",
        ),
    ],
)
def test_a_half_made_format_fails_with_a_clear_message(
    part: str, half_made: str, message: str | None, setting: Setting
) -> None:
    source = block("python")
    assert part in source
    setting.write_format(source.replace(part, half_made))
    if message is None:
        coco = setting.folder / "set" / "boxes.json"
        answer = setting.mal("dataset", "check", str(coco), str(setting.images))
        message = "is ambiguous: coco, csv recognise it"
    else:
        answer = setting.check()
    assert answer.returncode in (1, 2)
    assert message in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_bad_line_of_the_file_is_named(setting: Setting) -> None:
    with setting.boxes.open("a", encoding="utf-8") as file:
        file.write("picture 0.png,1,2,wide,4,thing\n")
    answer = setting.check()
    assert answer.returncode == 1
    assert (
        "boxes.csv as csv: ValueError: could not convert string to float: 'wide'" in answer.stdout
    )
