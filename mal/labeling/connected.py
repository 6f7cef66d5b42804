"""The connected parts of a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def keep_largest_part(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest of the parts that touch by their sides; the first of equals.

    Each pixel takes the highest number among itself and its neighbours until nothing changes: as
    many passes as the longest path inside a part, each over the whole window.
    """
    if not mask_HW.any():
        return mask_HW
    number_HW = np.where(mask_HW, np.arange(1, mask_HW.size + 1).reshape(mask_HW.shape), 0)
    while True:
        spread_HW = _highest_around(number_HW)
        spread_HW[~mask_HW] = 0
        if np.array_equal(spread_HW, number_HW):
            break
        number_HW = spread_HW
    numbers, sizes = np.unique(number_HW[mask_HW], return_counts=True)
    largest: NDArray[np.bool_] = number_HW == numbers[np.argmax(sizes)]
    return largest


def grow(seed_HW: NDArray[np.bool_], mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the parts of a mask that touch the seeds by their sides, and the seeds."""
    part_HW = seed_HW
    while True:
        spread_HW = (_highest_around(part_HW) & mask_HW) | seed_HW
        if np.array_equal(spread_HW, part_HW):
            return part_HW
        part_HW = spread_HW


def _highest_around(value_HW: NDArray[Any]) -> NDArray[Any]:
    """Return the highest value among each pixel and its four neighbours."""
    highest_HW = value_HW.copy()
    np.maximum(highest_HW[1:], value_HW[:-1], out=highest_HW[1:])
    np.maximum(highest_HW[:-1], value_HW[1:], out=highest_HW[:-1])
    np.maximum(highest_HW[:, 1:], value_HW[:, :-1], out=highest_HW[:, 1:])
    np.maximum(highest_HW[:, :-1], value_HW[:, 1:], out=highest_HW[:, :-1])
    return highest_HW
