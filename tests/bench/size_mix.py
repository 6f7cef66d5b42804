"""Boxes in COCO's mix of sizes: 41 % small (to 32^2 px), 34 % medium (to 96^2), 25 % large."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHARES = (0.41, 0.34, 0.25)
SIDES_PX = ((8, 32), (32, 96), (96, 400))


def draw_boxes(num_boxes: int, width: int, height: int, seed: int = 0) -> NDArray[np.float64]:
    """Return boxes inside an image, xywh: the shares exact, sides log-uniform in their class."""
    rng = np.random.default_rng(seed)
    ends = np.round(np.cumsum(SHARES) * num_boxes).astype(int)
    classes = np.searchsorted(ends, np.arange(num_boxes), side="right")
    boxes = []
    for low, high in (SIDES_PX[k] for k in rng.permutation(classes)):
        side = np.exp(rng.uniform(np.log(low), np.log(high)))
        stretch = np.exp(rng.uniform(-0.3, 0.3))
        w, h = min(side * stretch, width - 1), min(side / stretch, height - 1)
        boxes.append([rng.uniform(0, width - w), rng.uniform(0, height - h), w, h])
    return np.array(boxes)


def draw_maps(num_maps: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    """Return smooth blobs around the centre, as probabilities: (N, M, M)."""
    rng = np.random.default_rng(seed)
    grid = (np.arange(size) + 0.5) / size - 0.5
    angle = np.arctan2(grid[:, None], grid[None, :])
    radius = np.hypot(grid[:, None], grid[None, :])
    maps = []
    for _ in range(num_maps):
        waves = sum(
            rng.normal(0, 0.03) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(1, 7)
        )
        maps.append(1 / (1 + np.exp((radius - 0.33 - waves) * 40)))
    return np.array(maps, dtype=np.float32)
