"""Sample labelled points from true masks, as a person would click them.

    python docs/sample_points.py SET.json OUT.json --points 3 --seed 1 [--without-boxes 0.5]

Of more than one point half lie on the object and half off it, inside its box; none lies within 2 px
of the boundary. --without-boxes takes the box from that share of the objects, drawn at random; one
that has no point on it, being too thin, then leaves the file. What an object gets depends on the
seed and its id alone: ten points begin with the three.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mal.data.annotations import CocoBoxes, load_boxes
from mal.data.segmentations import mask_from_rle

RING_PX = 2
BOX_GROWTH = 0.2
PIXEL_CENTRE = 0.5


def sample_object(
    mask_HW: NDArray[np.uint8], box_xywh: NDArray[np.float64], num_points: int, seed: list[int]
) -> list[list[float]]:
    """Return [x, y, label] points; fewer if no position is far enough from the boundary."""
    rng = np.random.default_rng(seed)
    (top, left), region_HW = _cut_around(mask_HW, box_xywh)
    box_xywh = box_xywh - [left, top, 0, 0]
    picture = Image.fromarray(region_HW * np.uint8(255))
    size = 2 * RING_PX + 1
    inner_HW = np.asarray(picture.filter(ImageFilter.MinFilter(size))) > 0
    outer_HW = np.asarray(picture.filter(ImageFilter.MaxFilter(size))) == 0
    on = rng.permutation(np.argwhere(inner_HW))
    off = rng.permutation(np.argwhere(outer_HW & _inside(box_xywh, region_HW.shape)))
    if not len(off):  # the object fills its box
        grown = box_xywh + np.array([-1, -1, 2, 2]) * np.tile(box_xywh[2:], 2) * BOX_GROWTH
        off = rng.permutation(np.argwhere(outer_HW & _inside(grown, region_HW.shape)))
    points = []
    for number in range(num_points):
        is_on, taken = number % 2 == 0, number // 2
        pixels = on if is_on else off
        if taken < len(pixels):
            row, column = pixels[taken] + PIXEL_CENTRE
            points.append([float(column + left), float(row + top), int(is_on)])
    return points


def _cut_around(
    mask_HW: NDArray[np.uint8], box_xywh: NDArray[np.float64]
) -> tuple[tuple[int, int], NDArray[np.uint8]]:
    """Return the corner and the pixels of the grown box; pixels beyond it are ignored."""
    x, y, w, h = box_xywh
    grow = BOX_GROWTH + 0.1
    top, left = max(int(y - grow * h), 0), max(int(x - grow * w), 0)
    bottom, right = int(y + (1 + grow) * h) + 1, int(x + (1 + grow) * w) + 1
    return (top, left), np.ascontiguousarray(mask_HW[top:bottom, left:right])


def _inside(box_xywh: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    x, y, w, h = box_xywh
    row_H, column_W = (np.arange(side) + PIXEL_CENTRE for side in shape)
    inside_H, inside_W = (row_H > y) & (row_H < y + h), (column_W > x) & (column_W < x + w)
    inside: NDArray[np.bool_] = inside_H[:, None] & inside_W
    return inside


def annotate(document: dict[str, Any], boxes: CocoBoxes, arguments: argparse.Namespace) -> None:
    """Add points to the objects of a document, and take boxes away."""
    num_objects = num_boxless = num_pointless = 0
    left_out = set()
    for row, position in enumerate(boxes.annotation_position_N.tolist()):
        annotation, rle = document["annotations"][position], boxes.rle_of(row)
        if rle is None or boxes.is_crowd_N[row]:
            continue
        seed = [arguments.seed, int(boxes.annotation_id_N[row])]
        points = sample_object(mask_from_rle(rle), boxes.box_xywh_N4[row], arguments.points, seed)
        num_objects += 1
        num_pointless += not points
        annotation["points"] = points
        if np.random.default_rng([*seed, 1]).uniform() >= arguments.without_boxes:
            continue
        if any(label for _, _, label in points):
            del annotation["bbox"]
            num_boxless += 1
        else:
            left_out.add(position)
    document["annotations"] = [
        annotation
        for position, annotation in enumerate(document["annotations"])
        if position not in left_out
    ]
    sys.stdout.write(
        f"{num_objects} objects, {num_boxless} without a box, {num_pointless} without a point; "
        f"{len(left_out)} left out, with neither a box nor a point on them\n"
    )


def main() -> None:
    """Write the set with points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--points", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-boxes", type=float, default=0.0)
    arguments = parser.parse_args()
    document = json.loads(arguments.set.read_text())
    annotate(document, load_boxes(arguments.set, with_masks=True), arguments)
    arguments.out.write_text(json.dumps(document))


if __name__ == "__main__":
    main()
