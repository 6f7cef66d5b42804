"""Any JSON value in any field: no crash, no traceback, no box on another picture."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mal.data.annotations import load_boxes
from mal.data.check import check_dataset
from mal.errors import AnnotationError

WIDTH, HEIGHT = 20, 16
MAX_LINE_CHARS = 3000
MAX_MEMORY_BYTES = 4 << 30

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
nasty_numbers = st.sampled_from(
    [
        10**12,
        2**63,
        2**64,
        10**400,
        -(10**30),
        1e308,
        -1e308,
        math.nan,
        math.inf,
        0,
        -1,
        0.5,
        1e-308,
    ]
)
nasty_texts = st.sampled_from(
    ["1", "01", "1.0", "1_0", "", "a" * 22_000, "\ud800", "a\0b", "\x1b[2J", "../x", "/", "..",
     "4,5", "b'12'", "o" * 40, "PPPPPPP0"]
)  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | nasty_numbers | nasty_texts
)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(any_text | st.sampled_from(["size", "counts", "rotation"]), inner)
    ),
    max_leaves=12,
)
coordinates = st.integers(-100, 100) | st.floats(-1e6, 1e6) | nasty_numbers
polygons = st.lists(st.lists(coordinates, min_size=4, max_size=12), max_size=3)
sides = st.sampled_from([WIDTH, HEIGHT, 0, -1, 10**6, 2**31, 10**30])
run_lengths = st.fixed_dictionaries(
    {
        "size": st.lists(sides, min_size=2, max_size=2),
        "counts": st.lists(st.integers(0, WIDTH * HEIGHT) | nasty_numbers, max_size=6)
        | st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20),
    }
)
segmentations = polygons | run_lengths | json_values
boxes = st.lists(coordinates | st.sampled_from(["1", "1.5", "1,5"]), max_size=6) | json_values

FIELDS = {
    "images": ("id", "file_name", "width", "height", "coco_url"),
    "annotations": (
        "id", "image_id", "category_id", "bbox", "iscrowd", "segmentation", "points", "area",
        "attributes",
    ),
    "categories": ("id", "name"),
}  # fmt: skip
VALUES = {"bbox": boxes, "segmentation": segmentations}


@st.composite
def spoilt_documents(draw: st.DrawFn) -> dict[str, Any]:
    """Return a good set of two images in which up to four values were replaced."""
    document: dict[str, Any] = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in (1, 2)
        ],
        "annotations": [
            {"id": n, "image_id": 1 + n % 2, "category_id": 1, "bbox": [1, 1, 8, 8], "iscrowd": 0,
             "segmentation": [[1, 1, 9, 1, 9, 9]]}
            for n in range(4)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }  # fmt: skip
    for _ in range(draw(st.integers(1, 4))):
        key = draw(st.sampled_from(sorted(FIELDS)))
        entries = document[key]
        position = draw(st.integers(0, len(entries) - 1))
        if draw(st.integers(0, 9)) == 0 or not isinstance(entries[position], dict):
            entries[position] = draw(json_values)
            continue
        field = draw(st.sampled_from(FIELDS[key]))
        if draw(st.integers(0, 9)) == 0:
            entries[position].pop(field, None)
        else:
            entries[position][field] = draw(VALUES.get(field, json_values))
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    (folder / "images").mkdir()
    for number in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / f"{number}.png")
    return folder


def written(folder: Path, document: Any) -> Path:
    path = folder / "set.json"
    path.write_text(json.dumps(document))
    return path


@given(spoilt_documents())
def test_check_describes_any_set_in_short_printable_lines(
    folder: Path, document: dict[str, Any]
) -> None:
    report = check_dataset(str(written(folder, document)), str(folder / "images"))
    for line in report.lines():
        assert line.isprintable()
        assert line.encode("utf-8")
        assert len(line) < MAX_LINE_CHARS


@given(spoilt_documents())
def test_a_box_is_on_the_picture_that_its_entry_names_or_is_not_used(
    folder: Path, document: dict[str, Any]
) -> None:
    try:
        boxes = load_boxes(written(folder, document), with_masks=True, refuse_points=False)
    except AnnotationError:
        return
    for row in range(len(boxes)):
        annotation = document["annotations"][boxes.annotation_position_N[row]]
        assert images_named_by(annotation["image_id"], document) == {boxes.image_of(row).file_name}
        try:
            rle = boxes.rle_of(row)
        except AnnotationError:
            continue
        image = boxes.image_of(row)
        assert rle is None or rle["size"] == [image.height, image.width]


def images_named_by(image_id: Any, document: dict[str, Any]) -> set[str]:
    """Return the file names that an id stands for, by a rule of this test's own."""

    def equal_ids(one: Any, other: Any) -> bool:
        return isinstance(one, bool) is isinstance(other, bool) and one == other

    def number(one: Any) -> Any:
        is_digits = isinstance(one, str) and re.fullmatch(r"-?[0-9]+(\.0*)?", one)
        return int(one.split(".")[0]) if is_digits else one

    images = [image for image in document["images"] if isinstance(image, dict) and "id" in image]
    exact = [image for image in images if equal_ids(image["id"], image_id)]
    by_number = [image for image in images if equal_ids(number(image["id"]), number(image_id))]
    return {
        image.get("file_name") or image["coco_url"].rpartition("/")[2]
        for image in exact or by_number
    }


NASTY: list[Any] = [
    None, True, 1.5, math.nan, math.inf, 10**12, 10**400, -(10**30), 2**63, 1e308, "", "\ud800",
    "a\0b", "a" * 22_000, "a" * 300 + ".png", "\x1b[2J\n", [], {}, [[]], [1e15] * 4,
    [-1e308, -1e308, 1e308, 1e308],
    [[0, 0, 1e15, 1e15, 1e15, 0]], [[-160.5, -220.0, 2.1e8, 3.5e8, 225.0, 236.0]],
    [[0, 0, 2**31, 2**31, -(2**31), 5]], [[0, 0, 10**400, 1, 1, 1]],
    [[0, 0, 10**9, 0] * 500], {"size": [10**6, 10**6], "counts": [10**12]},
    {"size": [HEIGHT, WIDTH], "counts": [2**32, 2**32]}, {"size": [2**31, 1], "counts": "0"},
    {"size": [HEIGHT, WIDTH], "counts": "o" * 10_000}, [[0, 10**400, 1]], {"rotation": math.nan},
]  # fmt: skip

_CHECK_ALL = """
import json, pathlib, resource, sys
from mal.data.check import check_dataset
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    print(path.name, flush=True)
    for line in check_dataset(str(path), sys.argv[2]).lines():
        print(line)
print("all checked")
"""


def test_no_value_crashes_the_process_or_takes_gigabytes(folder: Path, tmp_path: Path) -> None:
    sets = [(key, field, value) for key in FIELDS for field in FIELDS[key] for value in NASTY]
    for number, (key, field, value) in enumerate(sets):
        image = {"file_name": "1.png", "width": WIDTH, "height": HEIGHT}
        annotation = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8]}
        document: dict[str, Any] = {
            "images": [image | {"id": 1}, image | {"id": 2, "file_name": "2.png"}],
            "annotations": [annotation | {"id": 1}, annotation | {"id": 2, "image_id": 2}],
            "categories": [{"id": 1, "name": "thing"}],
        }
        document[key][0][field] = value
        if field == "segmentation" and number % 2:
            del document[key][0]["bbox"]
        if field == "points":
            document[key][0]["bbox"] = None
        (tmp_path / f"{number:04d}.json").write_text(json.dumps(document))
    script = _CHECK_ALL.format(limit=MAX_MEMORY_BYTES)
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(folder / "images")],
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    last = found.stdout.splitlines()[-1:]
    assert (found.returncode, last) == (0, ["all checked"]), found.stderr[-2000:]
