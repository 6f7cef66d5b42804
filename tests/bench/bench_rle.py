"""Probability maps to RLE of the image: pasted into full-image arrays, and inside the box alone.

Ours gives the literal algorithm's bytes; a single resize of the map to the window, which gives
others, would not be faster than ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from harness import Result, compare
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from size_mix import draw_boxes, draw_maps

from mal.data.crops import prediction_window, xyxy_from_xywh
from mal.labeling.coco_rle import rle_from_window_mask
from mal.labeling.predictor import pixels_inside, probability_in_window

REQUIRED = {(640, 480): 5, (4000, 3000): 5}  # with the same bytes; 12 with a single resize
MAP_SIZE, CROP_SIZE, MARGIN, THRESHOLD = 128, 512, 0.6, 0.4
NUM_BOXES = 64


def run() -> Iterator[Result]:
    maps = draw_maps(NUM_BOXES, MAP_SIZE)
    for (width, height), required in REQUIRED.items():
        boxes = draw_boxes(NUM_BOXES, width, height)
        expected = encode_all(literal_rle, maps, boxes, width, height)
        found = encode_all(our_rle, maps, boxes, width, height)
        num_same = sum(a["counts"] == b["counts"] for a, b in zip(expected, found, strict=True))
        yield compare(
            f"{NUM_BOXES} boxes of {width} x {height}",
            partial(encode_all, literal_rle, maps, boxes, width, height),
            partial(encode_all, our_rle, maps, boxes, width, height),
            required=required,
            repeats=5 if width < 1000 else 3,
            byte_identical=f"{num_same} of {NUM_BOXES}",
        )


def encode_all(
    encode: Any, maps: NDArray[np.float32], boxes: NDArray[np.float64], width: int, height: int
) -> list[Any]:
    return [encode(m, xyxy_from_xywh(b), width, height) for m, b in zip(maps, boxes, strict=True)]


def literal_rle(
    prob_MM: NDArray[np.float32], box_xyxy: NDArray[np.float64], width: int, height: int
) -> Any:
    """Resize to the crop and to the window, paste into the image, compare, mask by the box."""
    x0, y0, x1, y1 = prediction_window(box_xyxy, MARGIN)
    in_crop = Image.fromarray(prob_MM).resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR)
    in_window = np.asarray(in_crop.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR))
    full = np.zeros((height, width), dtype=np.float32)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    full[top:bottom, left:right] = in_window[top - y0 : bottom - y0, left - x0 : right - x0]
    column, row = np.arange(width) + 0.5, np.arange(height) + 0.5
    inside_x = (column > box_xyxy[0]) & (column < box_xyxy[2])
    inside_y = (row > box_xyxy[1]) & (row < box_xyxy[3])
    mask = (full >= THRESHOLD) & inside_y[:, None] & inside_x[None, :]
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def our_rle(
    prob_MM: NDArray[np.float32], box_xyxy: NDArray[np.float64], width: int, height: int
) -> Any:
    inside_xyxy = pixels_inside(box_xyxy)
    window = prediction_window(box_xyxy, MARGIN)
    prob_HW = probability_in_window(prob_MM, window, CROP_SIZE, inside_xyxy)
    return rle_from_window_mask(prob_HW >= THRESHOLD, inside_xyxy, height, width)
