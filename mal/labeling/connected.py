"""The connected parts of a mask."""

from __future__ import annotations

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
        spread_HW = number_HW.copy()
        np.maximum(spread_HW[1:], number_HW[:-1], out=spread_HW[1:])
        np.maximum(spread_HW[:-1], number_HW[1:], out=spread_HW[:-1])
        np.maximum(spread_HW[:, 1:], number_HW[:, :-1], out=spread_HW[:, 1:])
        np.maximum(spread_HW[:, :-1], number_HW[:, 1:], out=spread_HW[:, :-1])
        spread_HW[~mask_HW] = 0
        if np.array_equal(spread_HW, number_HW):
            break
        number_HW = spread_HW
    numbers, sizes = np.unique(number_HW[mask_HW], return_counts=True)
    largest: NDArray[np.bool_] = number_HW == numbers[np.argmax(sizes)]
    return largest
