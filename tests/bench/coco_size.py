"""An annotation file of COCO train2017's size and shape, drawn at random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

NUM_CATEGORIES = 80
POINTS_OF_A_POLYGON = 24  # with its digits, the bytes an annotation of COCO's


def write_coco_file(path: Path, *, num_boxes: int, num_images: int, with_masks: bool) -> None:
    """Write boxes spread over images of 640 x 480, in an order that is not that of the images."""
    rng = np.random.default_rng(0)
    image_ids = rng.permutation(num_images * 5)[:num_images]
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for place, image_id in enumerate(image_ids.tolist()):
            _write(file, place, _image(image_id))
        file.write('], "annotations": [')
        for place in range(num_boxes):
            image_id = int(image_ids[int(rng.integers(num_images))])
            _write(file, place, _annotation(place, image_id, rng, with_masks=with_masks))
        names = [{"id": k, "name": f"kind {k}"} for k in range(1, NUM_CATEGORIES + 1)]
        file.write(f'], "categories": {json.dumps(names)}}}')


def _write(file: Any, place: int, value: Any) -> None:
    file.write(f"{', ' if place else ''}{json.dumps(value)}")


def _image(image_id: int) -> dict[str, Any]:
    name = f"{image_id:012d}.jpg"
    return {
        "license": 3,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2017/{name}",
        "height": 480,
        "width": 640,
        "date_captured": "2013-11-14 17:02:52",
        "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
        "id": image_id,
    }


def _annotation(
    place: int, image_id: int, rng: np.random.Generator, *, with_masks: bool
) -> dict[str, Any]:
    x, y, w, h = np.round(rng.uniform([0, 0, 8, 8], [500, 350, 139, 129]), 2).tolist()
    polygon: list[float] = []
    if with_masks:
        corner, side = np.array([x, y]), np.array([w, h])
        polygon = np.round(corner + rng.random((POINTS_OF_A_POLYGON, 2)) * side, 2).ravel().tolist()
    return {
        "segmentation": [polygon] if with_masks else [],
        "area": round(w * h / 2, 5),
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": [x, y, w, h],
        "category_id": 1 + place % NUM_CATEGORIES,
        "id": 100_000 + place,
    }
