"""Boxes that are not x, y, width and height in pixels are recognised by how they fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mal.data.box_readings import BOX_READINGS, Doubt, doubt_by_file_sizes, find_doubt
from mal.data.box_rewriting import rewrite_boxes
from mal.data.check import CheckReport, check_dataset
from mal.data.formats import open_annotations
from mal.errors import AnnotationError

Floats = NDArray[np.float64]


SIZES = [[640, 480], [480, 640], [1024, 683]]


def true_boxes(
    num: int = 60, seed: int = 0, sizes: list[list[int]] = SIZES
) -> tuple[Floats, NDArray[np.int64]]:
    """Return boxes x, y, w, h of objects of every size and place, and their images' sizes."""
    rng = np.random.default_rng(seed)
    size_N2 = rng.choice(sizes, num)
    side_N2 = size_N2 * rng.uniform(0.04, 0.6, (num, 2))
    low_N2 = rng.uniform(0, 1, (num, 2)) * (size_N2 - side_N2)
    return np.concatenate([low_N2, side_N2], axis=1), size_N2


def nothing_known(box_N4: Floats) -> Floats:
    return np.full_like(box_N4, np.nan)


def corners(box_N4: Floats) -> Floats:
    return np.concatenate([box_N4[:, :2], box_N4[:, :2] + box_N4[:, 2:]], axis=1)


def centres(box_N4: Floats) -> Floats:
    return np.concatenate([box_N4[:, :2] + box_N4[:, 2:] / 2, box_N4[:, 2:]], axis=1)


def from_bottom(box_N4: Floats, size_N2: NDArray[np.int64]) -> Floats:
    bottom_N = size_N2[:, 1] - box_N4[:, 1] - box_N4[:, 3]
    return np.stack([box_N4[:, 0], bottom_N, box_N4[:, 2], box_N4[:, 3]], axis=1)


def share(box_N4: Floats, size_N2: NDArray[np.int64]) -> Floats:
    return box_N4 / np.tile(size_N2, 2)


AS_WRITTEN: dict[str, Callable[[Floats, NDArray[np.int64]], Floats]] = {
    "xyxy": lambda box, _: corners(box),
    "yxyx": lambda box, _: corners(box)[:, [1, 0, 3, 2]],
    "cxcywh": lambda box, _: centres(box),
    "xywh-bottom": from_bottom,
    "xyhw": lambda box, _: box[:, [0, 1, 3, 2]],
    "yxhw": lambda box, _: box[:, [1, 0, 3, 2]],
    "xywh-fraction": share,
    "xyxy-fraction": lambda box, size: share(corners(box), size),
    "cxcywh-fraction": lambda box, size: share(centres(box), size),
    "xywh-percent": lambda box, size: 100 * share(box, size),
    "xyxy-percent": lambda box, size: 100 * share(corners(box), size),
    "yxyx-thousandth": lambda box, size: 1000 * share(corners(box), size)[:, [1, 0, 3, 2]],
}


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_a_reading_gives_the_boxes_that_were_meant(name: str) -> None:
    box_N4, size_N2 = true_boxes()
    written = AS_WRITTEN[name](box_N4, size_N2)
    read = BOX_READINGS[name].xywh_px(written, size_N2.astype(np.float64))
    np.testing.assert_allclose(read, box_N4, atol=1e-9)


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_segmentations_tell_every_reading(name: str) -> None:
    box_N4, size_N2 = true_boxes()
    doubt = find_doubt(AS_WRITTEN[name](box_N4, size_N2), size_N2, box_N4)
    assert doubt is not None
    assert doubt.reading is not None
    assert doubt.reading.name == name
    assert f"mal dataset convert IN OUT --boxes {name}." in doubt.remedy


@pytest.mark.parametrize(
    "name",
    ["xyxy", "cxcywh", "xywh-fraction", "xyxy-fraction", "cxcywh-fraction", "xywh-percent",
     "xyxy-percent"],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(5))
def test_how_boxes_fit_their_images_tells_a_reading(name: str, seed: int) -> None:
    box_N4, size_N2 = true_boxes(seed=seed)
    written = AS_WRITTEN[name](box_N4, size_N2)
    doubt = find_doubt(written, size_N2, nothing_known(box_N4))
    assert doubt is not None
    assert doubt.reading is not None
    assert doubt.reading.name == name


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num", [1, 4, 12, 300])
def test_boxes_as_coco_writes_them_are_not_doubted(num: int, seed: int) -> None:
    box_N4, size_N2 = true_boxes(num, seed)
    assert find_doubt(box_N4, size_N2, nothing_known(box_N4)) is None
    noise = np.random.default_rng(seed).uniform(-3, 3, box_N4.shape)
    assert find_doubt(box_N4 + noise, size_N2, box_N4) is None, "a detector's boxes"


def test_few_small_objects_in_a_corner_are_not_doubted() -> None:
    box_N4 = np.array([[3.0, 4, 20, 30], [50, 40, 30, 40]])
    assert find_doubt(box_N4, np.array([[640, 480]] * 2), nothing_known(box_N4)) is None


def test_a_box_of_one_pixel_is_no_fraction_of_an_image_of_one_pixel() -> None:
    box_N4 = np.array([[0.0, 0, 1, 1]])
    assert find_doubt(box_N4, np.array([[1, 1]]), nothing_known(box_N4)) is None
    assert find_doubt(box_N4, np.array([[64, 64]]), nothing_known(box_N4)) is not None


def test_images_whose_width_and_height_are_swapped_are_named() -> None:
    box_N4, size_N2 = true_boxes(sizes=[[640, 480]])
    for segmentations in (nothing_known(box_N4), box_N4):
        doubt = find_doubt(box_N4, size_N2[:, ::-1], segmentations)
        assert doubt is not None
        assert doubt.reading is None
        assert "with the images' width and height swapped, they fit" in doubt.evidence
        assert "--boxes swapped-sizes" in doubt.remedy


def test_boxes_of_larger_images_are_named_with_their_scale() -> None:
    box_N4, size_N2 = true_boxes(300)
    doubt = find_doubt(2 * box_N4, size_N2, nothing_known(box_N4))
    assert doubt is not None
    assert doubt.reading is None
    assert "images of another scale" in doubt.evidence
    assert "1.9" in doubt.evidence or "2.0" in doubt.evidence


def test_boxes_of_smaller_files_are_named_with_their_scale() -> None:
    box_N4, size_N2 = true_boxes()
    doubt = doubt_by_file_sizes(box_N4 / 4, size_N2, np.array([0.25, 0.25, 0.2502]))
    assert doubt is not None
    assert "4 times smaller than annotated" in doubt.evidence
    assert doubt_by_file_sizes(box_N4, size_N2, np.array([0.25, 0.25])) is None
    assert doubt_by_file_sizes(box_N4 / 4, size_N2, np.array([1.0, 1.0])) is None
    assert doubt_by_file_sizes(box_N4 / 4, size_N2, np.array([0.25, 1.0])) is None


def test_segmentations_in_fractions_are_named() -> None:
    box_N4, size_N2 = true_boxes()
    doubt = find_doubt(box_N4, size_N2, share(box_N4, size_N2))
    assert doubt is not None
    assert not doubt.is_certain
    assert "The segmentations are fractions of the image" in doubt.remedy


def write_set(folder: Path, boxes: Floats, polygons: Floats | None = None) -> tuple[Path, Path]:
    """Write a set of one image of 200 x 150 pixels; a polygon is the outline of a box."""
    images = folder / "images"
    images.mkdir()
    Image.new("RGB", (200, 150)).save(images / "a.png")
    annotations: list[dict[str, object]] = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box}
        for n, box in enumerate(boxes.tolist(), 1)
    ]
    for entry, (x, y, w, h) in zip(
        annotations, [] if polygons is None else polygons.tolist(), strict=False
    ):
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path = folder / "boxes.json"
    image = {"id": 1, "file_name": "a.png", "width": 200, "height": 150}
    path.write_text(
        json.dumps({"images": [image], "annotations": annotations,
                    "categories": [{"id": 1, "name": "a"}]})
    )  # fmt: skip
    return path, images


GRID = np.array([[x, y, 18.0, 14] for x in (5, 60, 120, 180) for y in (10, 60, 130)])


def check(folder: Path, boxes: Floats, polygons: Floats | None = None) -> CheckReport:
    path, images = write_set(folder, boxes, polygons)
    return check_dataset(str(path), str(images))


def test_check_and_runs_refuse_what_is_certainly_no_box(tmp_path: Path) -> None:
    path, images = write_set(tmp_path, corners(GRID))
    report = check_dataset(str(path), str(images))
    assert not report.is_usable
    assert "--boxes xyxy" in "\n".join(report.lines())
    with pytest.raises(AnnotationError, match=r"Cannot use .*--boxes xyxy"):
        open_annotations(path, images=str(images)).load_boxes(with_masks=False)


def test_boxes_of_smaller_files_are_refused(tmp_path: Path) -> None:
    path, images = write_set(tmp_path, GRID / 2)
    Image.new("RGB", (100, 75)).save(images / "a.png")
    with pytest.raises(
        AnnotationError, match=r"2 times smaller than annotated.*--boxes file-sizes"
    ):
        open_annotations(path, images=str(images)).load_boxes(with_masks=False)


def test_check_names_each_box_that_misses_its_segmentation(tmp_path: Path) -> None:
    polygons = GRID.copy()
    polygons[4] += [40, 0, 0, 0]
    report = check(tmp_path, GRID, polygons)
    assert report.errors.lines() == [
        "1 x box that does not enclose its segmentation: annotation 5 in a.png"
    ]
    assert report.is_usable


def test_check_doubts_a_set_without_refusing_it_where_half_the_boxes_fit(tmp_path: Path) -> None:
    doubtful = [line for line in check(tmp_path, centres(GRID)).errors.lines() if "may be" in line]
    assert len(doubtful) == 1
    assert "--boxes cxcywh" in doubtful[0]


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_a_rewritten_set_has_the_boxes_that_were_meant(tmp_path: Path, name: str) -> None:
    path, images = write_set(tmp_path, AS_WRITTEN[name](GRID, np.array([[200, 150]] * len(GRID))))
    fixed = tmp_path / "fixed.json"
    assert rewrite_boxes(path, fixed, name) == len(GRID)
    boxes = open_annotations(fixed, images=str(images)).load_boxes(with_masks=False)
    np.testing.assert_allclose(boxes.box_xywh_N4, GRID, atol=0.01)


@pytest.mark.parametrize("name", ["swapped-sizes", "file-sizes"])
def test_a_rewritten_set_has_the_sizes_that_were_meant(tmp_path: Path, name: str) -> None:
    path, images = write_set(tmp_path, GRID)
    path.write_text(
        path.read_text().replace('"width": 200, "height": 150', '"width": 150, "height": 200')
    )
    fixed = tmp_path / "fixed.json"
    assert rewrite_boxes(path, fixed, name, images) == 1
    assert check_dataset(str(fixed), str(images)).errors.lines() == []


def test_entries_that_cannot_be_read_stay_as_they_are(tmp_path: Path) -> None:
    path, _ = write_set(tmp_path, GRID)
    document = json.loads(path.read_text())
    odd = [{"id": 1}, 5, None, {"image_id": 1, "bbox": "x"}, {"image_id": 9, "bbox": [1, 2, 3, 4]},
           {"image_id": 1, "bbox": [1, 2, 3]}, {"image_id": [1], "bbox": [1, 2, 3, 4]}]  # fmt: skip
    path.write_text(json.dumps(document | {"annotations": odd, "info": {"year": 2026}}))
    fixed = tmp_path / "fixed.json"
    assert rewrite_boxes(path, fixed, "xyxy") == 0
    assert json.loads(fixed.read_text()) == json.loads(path.read_text())
    with pytest.raises(AnnotationError, match="give the images"):
        rewrite_boxes(path, fixed, "file-sizes")


def test_a_doubt_reads_as_two_sentences() -> None:
    assert str(Doubt("What", "Do.", None, is_certain=True)) == "What. Do."
