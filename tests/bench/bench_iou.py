"""IoU of two masks of an image: decoded to arrays, and on their run lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from bench_rle import encode_all, our_rle
from harness import Result, compare
from pycocotools import mask as coco_mask
from size_mix import draw_boxes, draw_maps

from mal.labeling.coco_rle import ious_with_rle

REQUIRED = 30
NUM_PAIRS, WIDTH, HEIGHT = 200, 640, 480


def run() -> Iterator[Result]:
    boxes = draw_boxes(NUM_PAIRS, WIDTH, HEIGHT)
    first, second, third, fourth = (
        encode_all(our_rle, draw_maps(NUM_PAIRS, 64, seed), boxes, WIDTH, HEIGHT)
        for seed in range(4)
    )
    pairs = list(zip(first, second, strict=True))
    expected = [literal_iou(*pair) for pair in pairs]
    found = [ious_with_rle([one], other)[0] for one, other in pairs]
    difference = float(np.abs(np.subtract(expected, found)).max())
    yield compare(
        f"{NUM_PAIRS} pairs of {WIDTH} x {HEIGHT}",
        lambda: [literal_iou(*pair) for pair in pairs],
        lambda: [ious_with_rle([one], other)[0] for one, other in pairs],
        required=REQUIRED,
        largest_difference=difference,
    )
    groups = list(zip(first, second, third, fourth, strict=True))
    yield compare(
        f"{NUM_PAIRS} x 3 masks against a true one (as evaluation asks)",
        lambda: [[literal_iou(rle, true) for rle in rles] for true, *rles in groups],
        lambda: [ious_with_rle(rles, true) for true, *rles in groups],
        required=REQUIRED,
    )


def literal_iou(rle: Any, other: Any) -> float:
    mask, other_mask = coco_mask.decode(rle).astype(bool), coco_mask.decode(other).astype(bool)
    union = np.logical_or(mask, other_mask).sum()
    return float(np.logical_and(mask, other_mask).sum() / union) if union else 0.0
