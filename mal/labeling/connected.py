"""Connected parts of a mask: pixels that touch by their sides, not by their corners.

Why not `scipy.ndimage.label` or OpenCV: docs/decisions/0004-connected-parts.md.

Shape letters: H, W = rows and columns of the mask; R = its horizontal runs, row by row; E = pairs
of runs of neighbouring rows that overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def keep_largest_part(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the part with the most pixels; of equal parts, the one whose last row ends first."""
    part_HW = _number_parts(mask_HW)
    num_pixels = np.bincount(part_HW[mask_HW])
    return mask_HW if len(num_pixels) == 0 else part_HW == np.argmax(num_pixels)


def grow(seed_HW: NDArray[np.bool_], mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the seeds, and the parts of the mask that hold or touch one."""
    part_HW = _number_parts(mask_HW | seed_HW)
    return np.isin(part_HW, part_HW[seed_HW])


def _number_parts(mask_HW: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of each pixel's part, -1 outside the mask.

    Runs are joined instead of pixels, because a mask has far fewer of them. The number of a part is
    the index of its last run.
    """
    height, width = mask_HW.shape
    padded = np.zeros((height, width + 1), dtype=np.bool_)  # so that no run crosses into a new row
    padded[:, :-1] = mask_HW
    borders = np.flatnonzero(np.diff(padded.ravel(), prepend=False))
    start_R, end_R = borders[::2], borders[1::2]
    first_above_R = np.searchsorted(end_R, start_R - padded.shape[1], side="right")
    end_above_R = np.searchsorted(start_R, end_R - padded.shape[1], side="left")
    count_R = np.maximum(end_above_R - first_above_R, 0)
    lower_E = np.repeat(np.arange(len(start_R)), count_R)
    skipped_R = np.cumsum(count_R) - count_R
    upper_E = np.arange(len(lower_E)) + np.repeat(first_above_R - skipped_R, count_R)
    part_HW = np.full(mask_HW.shape, -1, dtype=np.int64)
    part_R = _join(len(start_R), lower_E, upper_E)
    part_HW[mask_HW] = np.repeat(part_R, end_R - start_R)
    return part_HW


def _join(
    num_runs: int, lower_E: NDArray[np.int64], upper_E: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the highest index among the runs that each run is connected with.

    Each pass halves the distance to that index, so that a spiral takes few passes as well.
    """
    part_R = np.arange(num_runs)
    while True:
        joined_R = part_R.copy()
        np.maximum.at(joined_R, part_R[lower_E], part_R[upper_E])
        np.maximum.at(joined_R, part_R[upper_E], part_R[lower_E])
        joined_R = joined_R[joined_R]
        if np.array_equal(joined_R, part_R):
            return part_R
        part_R = joined_R
