"""Draw docs/result.jpg: boxes above, the learned masks below.

    python docs/draw_result.py LABELS IMAGES NUM_PICTURES [LABELS IMAGES NUM_PICTURES ...]

LABELS are files that `mal inference` wrote, IMAGES their folders.
"""

from __future__ import annotations

import colorsys
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mal.data.annotations import load_boxes
from mal.data.crop_dataset import ImageReader
from mal.labeling.coco_rle import mask_from_rle

OUTPUT = Path(__file__).with_name("result.jpg")
TILE_PX, GAP_PX = 300, 8
OPACITY = 0.55


def draw_pair(reader: ImageReader, image_index: int) -> tuple[Image.Image, Image.Image]:
    """Return an image with its boxes, and with its masks."""
    boxes = reader.boxes
    pixels = reader(image_index)
    rows = np.flatnonzero(boxes.image_index_N == image_index)
    side = min(pixels.shape[:2])
    with_boxes = Image.fromarray(pixels).crop((0, 0, side, side)).resize((TILE_PX, TILE_PX))
    canvas = pixels.astype(np.float32)
    draw = ImageDraw.Draw(with_boxes)
    for number, row in enumerate(rows):
        colour = _colour(number)
        x, y, w, h = boxes.box_xywh_N4[row] * TILE_PX / side
        draw.rectangle((x, y, x + w, y + h), outline=colour, width=2)
        rle = boxes.rle_of(int(row))
        if rle is not None:
            mask_HW = mask_from_rle(rle)
            canvas[mask_HW] = (1 - OPACITY) * canvas[mask_HW] + OPACITY * np.array(colour)
    with_masks = Image.fromarray(_as_bytes(canvas)).crop((0, 0, side, side))
    return with_boxes, with_masks.resize((TILE_PX, TILE_PX))


def _as_bytes(canvas_HW3: NDArray[Any]) -> NDArray[np.uint8]:
    return canvas_HW3.clip(0, 255).astype(np.uint8)


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def main() -> None:
    """Draw the sheet."""
    pairs = []
    for labels, images, count in zip(*(sys.argv[k::3] for k in (1, 2, 3)), strict=True):
        boxes = load_boxes(Path(labels), with_masks=True)
        reader = ImageReader(boxes, Path(images))
        num_boxes = np.bincount(boxes.image_index_N, minlength=len(boxes.images))
        fullest = np.argsort(-num_boxes, kind="stable")[: int(count)]
        pairs += [draw_pair(reader, int(index)) for index in fullest]
    pitch = TILE_PX + GAP_PX
    sheet = Image.new("RGB", (pitch * len(pairs) - GAP_PX, 2 * pitch - GAP_PX), "white")
    for column, pair in enumerate(pairs):
        for row, tile in enumerate(pair):
            sheet.paste(tile, (column * pitch, row * pitch))
    sheet.save(OUTPUT, quality=85)


if __name__ == "__main__":
    main()
