"""Draw docs/points.jpg: the same objects under each kind of annotation.

    python docs/draw_points.py CHECKPOINT VAL.json IMAGES VAL-1.json VAL-3.json VAL-10.json

VAL-*.json are VAL.json with points, by docs/sample_points.py. Columns: box; box with 1, 3 and 10
points; one point; the true mask. Green points lie on the object, red ones off it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import mal
from mal.data.annotations import CocoBoxes, load_boxes
from mal.data.crop_dataset import ImageReader
from mal.data.crops import xyxy_from_xywh
from mal.data.segmentations import mask_from_rle

OUTPUT = Path(__file__).with_name("points.jpg")
NUM_OBJECTS, MIN_SIDE_PX = 6, 48
TILE_PX, GAP_PX, MARGIN = 200, 6, 0.2
COLOUR, OPACITY = np.array([255, 190, 0]), 0.55
DOT_PX = 4


def choose_rows(boxes: CocoBoxes) -> list[int]:
    """Return objects of different images and, while there are, categories: large enough to see."""
    is_large_N = (boxes.box_xywh_N4[:, 2:].min(axis=1) >= MIN_SIDE_PX) & ~boxes.is_crowd_N
    rows = np.random.default_rng(0).permutation(np.flatnonzero(is_large_N)).tolist()
    chosen: list[int] = []
    for may_repeat in (False, True):
        for row in rows:
            is_new = all(
                boxes.image_index_N[row] != boxes.image_index_N[other]
                and (may_repeat or boxes.category_id_N[row] != boxes.category_id_N[other])
                for other in chosen
            )
            if is_new and len(chosen) < NUM_OBJECTS and boxes.rle_of(row) is not None:
                chosen.append(row)
    return chosen


def draw_tile(
    pixels: NDArray[np.uint8],
    mask_HW: NDArray[Any],
    box_xyxy: NDArray[np.float64],
    points: list[list[float]],
    *,
    has_box: bool,
) -> Image.Image:
    """Return the surroundings of an object with its mask, its points and perhaps its box."""
    canvas = pixels.astype(np.float32)
    canvas[mask_HW > 0] = (1 - OPACITY) * canvas[mask_HW > 0] + OPACITY * COLOUR
    side = (box_xyxy[2:] - box_xyxy[:2]).max() * (1 + 2 * MARGIN)
    corner = (box_xyxy[:2] + box_xyxy[2:]) / 2 - side / 2
    picture = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    tile = picture.crop((*corner.round().astype(int), *(corner + side).round().astype(int)))
    tile = tile.resize((TILE_PX, TILE_PX))
    draw, scale = ImageDraw.Draw(tile), TILE_PX / side
    if has_box:
        near, far = (box_xyxy[:2] - corner) * scale, (box_xyxy[2:] - corner) * scale
        draw.rectangle((*near, *far), outline="white", width=2)
    for x, y, label in points:
        column, row = ((x, y) - corner) * scale
        dot = (column - DOT_PX, row - DOT_PX, column + DOT_PX, row + DOT_PX)
        draw.ellipse(dot, fill="lime" if label else "red", outline="black")
    return tile


def main() -> None:
    """Draw the sheet."""
    checkpoint, annotations, images, *with_points = sys.argv[1:]
    boxes = load_boxes(Path(annotations), with_masks=True)
    sets = [load_boxes(Path(path), with_masks=False) for path in with_points]
    reader, predictor = ImageReader(boxes, Path(images)), mal.Predictor(checkpoint)
    pitch = TILE_PX + GAP_PX
    rows = choose_rows(boxes)
    sheet = Image.new("RGB", (6 * pitch - GAP_PX, len(rows) * pitch - GAP_PX), "white")
    for line, row in enumerate(rows):
        pixels = reader(int(boxes.image_index_N[row]))
        box_xyxy = xyxy_from_xywh(boxes.box_xywh_N4[row])
        prompts = [[], *(points_of(own, int(boxes.annotation_id_N[row])) for own in sets)]
        tiles = [
            (predictor.predict(pixels, [box_xyxy], [points])[0], points, True) for points in prompts
        ]
        tiles.append((predictor.predict(pixels, points=[prompts[1]])[0], prompts[1], False))
        rle = boxes.rle_of(row)
        assert rle is not None
        tiles.append((mask_from_rle(rle), [], False))
        for column, (mask_HW, points, has_box) in enumerate(tiles):
            tile = draw_tile(pixels, mask_HW, box_xyxy, points, has_box=has_box)
            sheet.paste(tile, (column * pitch, line * pitch))
    sheet.save(OUTPUT, quality=85)


def points_of(boxes: CocoBoxes, annotation_id: int) -> list[list[float]]:
    """Return the points of an annotation as [x, y, label]."""
    assert boxes.points is not None
    row = int(np.flatnonzero(boxes.annotation_id_N == annotation_id)[0])
    xy_K2, label_K = boxes.points.of(row)
    return np.column_stack([xy_K2, label_K]).tolist()


if __name__ == "__main__":
    main()
