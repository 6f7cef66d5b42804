"""Mask maps resized to pixels of the image: only those asked for, by two products of matrices.

The method resizes a map to the crop and that to its window, both bilinearly. Both are linear, and
an axis at a time: the two resizings of an axis are one matrix, of which only the rows inside the
box are used. The crop itself, often larger than the window, is never made.

Shape letters: M side of the map, S of the crop, H W the pixels asked for.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Span = tuple[int, int]
# At most 17 MB of weights of a map of 128 cells; larger windows repeat too seldom.
MAX_KEPT_LENGTH_PX = 256


def resize_map(
    map_MM: NDArray[np.float32],
    crop_size: int,
    window_height_width: tuple[int, int],
    rows: Span,
    columns: Span,
) -> NDArray[np.float32]:
    """Resize a map to the crop and that to its window, and return a part of the window, (H, W).

    Args:
        map_MM: Probabilities.
        crop_size: Side of the network's input, px.
        window_height_width: Pixels.
        rows: First and end row of the part, counted from the window's top.
        columns: First and end column, counted from the window's left.
    """
    height, width = window_height_width
    seen_rows = _cells_under(rows, len(map_MM), height)
    seen_columns = _cells_under(columns, len(map_MM), width)
    down_HM = _axis_weights(len(map_MM), crop_size, height)[slice(*rows), seen_rows]
    across_WM = _axis_weights(len(map_MM), crop_size, width)[slice(*columns), seen_columns]
    part_HW: NDArray[np.float32] = np.matmul(
        down_HM @ map_MM[seen_rows, seen_columns], across_WM.T, dtype=np.float32
    )
    return part_HW


def _cells_under(span: Span, map_size: int, length: int) -> slice:
    """Return the cells that the pixels of a span see: all other weights are zero.

    Shrinking averages over a pixel of the window to each side, enlarging over a cell.
    """
    cells_per_pixel = map_size / length
    reach = cells_per_pixel + 2
    first, end = (pixel * cells_per_pixel for pixel in span)
    return slice(max(math.floor(first - reach), 0), min(math.ceil(end + reach), map_size))


def _axis_weights(map_size: int, crop_size: int, length: int) -> NDArray[np.float32]:
    """Return how much each cell of a map's axis adds to each pixel of the window's, (pixels, M)."""
    if length <= MAX_KEPT_LENGTH_PX:
        return _kept_axis_weights(map_size, crop_size, length)
    return _make_axis_weights(map_size, crop_size, length)


def _make_axis_weights(map_size: int, crop_size: int, length: int) -> NDArray[np.float32]:
    size = (map_size, length)
    weights = _cell_weights(map_size, crop_size).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(weights, dtype=np.float32)


_kept_axis_weights = functools.lru_cache(maxsize=MAX_KEPT_LENGTH_PX)(_make_axis_weights)


@functools.lru_cache(maxsize=16)
def _cell_weights(map_size: int, crop_size: int) -> Image.Image:
    """Return how much each cell adds to each pixel of the crop, as a picture M wide, S high."""
    cells = Image.fromarray(np.eye(map_size, dtype=np.float32))
    return cells.resize((map_size, crop_size), Image.Resampling.BILINEAR)
