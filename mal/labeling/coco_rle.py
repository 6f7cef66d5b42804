"""Run-length codes of full images, computed from the pixels of a small window.

A COCO RLE counts pixels column by column over the whole image. Pasting every mask into an array of
the image's size takes time for each box; here the runs are found inside the window and shifted.

Shape letters: H, W a window; K run borders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mal.data.annotations import Rle
from mal.data.segmentations import runs_from_bytes


def rle_from_window_mask(
    mask_HW: NDArray[np.bool_] | NDArray[np.uint8],
    window_xyxy: Sequence[int],
    image_height: int,
    image_width: int,
) -> Rle:
    """Encode a window's mask as compressed RLE of the image it was cut from.

    The bytes equal those of pycocotools for the same mask pasted into an empty image.

    Args:
        mask_HW: Every non-zero pixel belongs to the object.
        window_xyxy: Pixels of the image, right and bottom exclusive. Parts outside the image are
            cut off.
        image_height: Pixels.
        image_width: Pixels.
    """
    left, top, right, bottom = (int(value) for value in window_xyxy)
    if mask_HW.shape != (bottom - top, right - left):
        size = (bottom - top, right - left)
        raise ValueError(f"mask must be of the window's size {size}, got {mask_HW.shape}.")
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(right, image_width), min(bottom, image_height)
    if x0 >= x1 or y0 >= y1:
        return empty_rle(image_height, image_width)
    inside_HW = mask_HW[y0 - top : y1 - top, x0 - left : x1 - left] != 0
    return _rle_from_borders(
        _run_borders(inside_HW, x0, y0, image_height), image_height, image_width
    )


def empty_rle(image_height: int, image_width: int) -> Rle:
    """Return the RLE of a mask without pixels."""
    return _compress([image_height * image_width], image_height, image_width)


def box_rle(box_xywh: Sequence[float], image_height: int, image_width: int) -> Rle:
    """Return the mask of all pixels whose centre lies in the box: the baseline 'mask = box'."""
    x0, y0, x1, y1 = _pixels_of_box(box_xywh, image_height, image_width)
    filled_HW = np.ones((y1 - y0, x1 - x0), dtype=np.bool_)
    return rle_from_window_mask(filled_HW, (x0, y0, x1, y1), image_height, image_width)


def ellipse_rle(box_xywh: Sequence[float], image_height: int, image_width: int) -> Rle:
    """Return the mask of all pixels whose centre lies in the ellipse inscribed in the box."""
    x0, y0, x1, y1 = _pixels_of_box(box_xywh, image_height, image_width)
    x, y, width, height = (float(value) for value in box_xywh)
    across_W = (np.arange(x0, x1) + 0.5 - (x + width / 2)) / (width / 2)
    down_H = (np.arange(y0, y1) + 0.5 - (y + height / 2)) / (height / 2)
    inside_HW = down_H[:, None] ** 2 + across_W[None, :] ** 2 <= 1
    return rle_from_window_mask(inside_HW, (x0, y0, x1, y1), image_height, image_width)


def area_of_rle(rle: Rle) -> int:
    """Count the pixels of a mask."""
    return int(coco_mask.area(_as_coco(rle)))


def box_of_rle(rle: Rle) -> list[float]:
    """Return the extent of a mask, xywh."""
    box: list[float] = coco_mask.toBbox(_as_coco(rle)).tolist()
    return box


def ious_with_rle(rles: Sequence[Rle], other: Rle) -> list[float]:
    """Return each mask's IoU with one other mask of the same image; 0 when both are empty."""
    for rle in rles:
        if list(rle["size"]) != list(other["size"]):
            raise ValueError(
                f"masks must be of one image's size, got {rle['size']} and {other['size']}."
            )
    iou_N1 = coco_mask.iou([_as_coco(rle) for rle in rles], [_as_coco(other)], [0])
    return [float(iou) for (iou,) in iou_N1]


def mask_from_rle(rle: Rle) -> NDArray[np.bool_]:
    """Decode a mask into an array of its image's size."""
    return np.asarray(coco_mask.decode(_as_coco(rle)), dtype=np.bool_)


def window_from_rle(rle: Rle) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Decode the part of a mask that its extent holds; returns it with its left and top.

    The array has no side for an empty mask. Other columns of the image are not decoded.
    """
    x, y, width, height = (int(side) for side in box_of_rle(rle))
    image_height = int(rle["size"][0])
    if not width or not height:
        return np.zeros((0, 0), dtype=np.bool_), (0, 0)
    counts = rle["counts"]
    end_K = runs_from_bytes(counts.encode("ascii") if isinstance(counts, str) else counts).cumsum()
    num_pixels = width * image_height
    change_P = np.zeros(num_pixels + 1, dtype=np.int8)
    inside_K = (end_K - x * image_height).clip(0, num_pixels)
    np.add.at(change_P, inside_K[0::2], 1)
    np.add.at(change_P, inside_K[1::2], -1)
    filled_WH = change_P[:-1].cumsum(dtype=np.int8).reshape(width, image_height) > 0
    return filled_WH.T[y : y + height], (x, y)


def rle_to_json(rle: Rle) -> dict[str, Any]:
    """Return the form that JSON files hold: `counts` as text, plain integers as size."""
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def _run_borders(
    mask_HW: NDArray[np.bool_], x0: int, y0: int, image_height: int
) -> NDArray[np.int64]:
    """Return start and end (exclusive) of each run, alternating, in the image's column order."""
    height, width = mask_HW.shape
    padded = np.zeros((width, height + 2), dtype=np.bool_)
    padded[:, 1:-1] = mask_HW.T
    # One flat search is several times faster than one by row and column.
    position_K = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    skipped_K = position_K // (height + 1) * (image_height - height - 1)
    borders_K: NDArray[np.int64] = position_K + skipped_K + (x0 * image_height + y0)
    # A run at the image's lower edge continues where the next column starts with the object.
    is_continued = borders_K[1:-1:2] == borders_K[2::2]
    if is_continued.any():
        inner = borders_K[1:-1].reshape(-1, 2)[~is_continued].ravel()
        borders_K = np.concatenate([borders_K[:1], inner, borders_K[-1:]])
    return borders_K


def _rle_from_borders(borders_K: NDArray[np.int64], image_height: int, image_width: int) -> Rle:
    num_pixels = image_height * image_width
    if len(borders_K) and borders_K[-1] == num_pixels:
        borders_K = borders_K[:-1]
    counts = np.empty(len(borders_K) + 1, dtype=np.int64)
    counts[0], counts[-1] = borders_K[:1].sum(), num_pixels - borders_K[-1:].sum()
    counts[1:-1] = borders_K[1:] - borders_K[:-1]
    return _compress(counts.tolist(), image_height, image_width)


def _compress(counts: list[int], image_height: int, image_width: int) -> Rle:
    uncompressed: Any = {"size": [image_height, image_width], "counts": counts}
    return dict(coco_mask.frPyObjects(uncompressed, image_height, image_width))


def _pixels_of_box(
    box_xywh: Sequence[float], image_height: int, image_width: int
) -> tuple[int, int, int, int]:
    """Return the image's pixels whose centres lie in a box, as xyxy with exclusive ends."""
    x, y, width, height = (float(value) for value in box_xywh)
    x0 = max(math.ceil(x - 0.5), 0)
    y0 = max(math.ceil(y - 0.5), 0)
    x1 = min(math.ceil(x + width - 0.5), image_width)
    y1 = min(math.ceil(y + height - 0.5), image_height)
    return x0, y0, max(x1, x0), max(y1, y0)


def _as_coco(rle: Rle) -> Any:
    """Accept `counts` as text too: files hold text, pycocotools wants bytes."""
    counts = rle["counts"]
    return {
        "size": list(rle["size"]),
        "counts": counts.encode("ascii") if isinstance(counts, str) else counts,
    }
