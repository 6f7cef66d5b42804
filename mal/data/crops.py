"""Crop windows around boxes: position, cutting, and the box inside a window.

Boxes and windows are `xyxy` in image pixels unless the name says `unit` (0..1 of the window).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from mal.spec.experiment import DatasetSpec, TrainSpec

Window = tuple[int, int, int, int]


def xyxy_from_xywh(box_xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert COCO boxes, shape (..., 4)."""
    corner, side = box_xywh[..., :2], box_xywh[..., 2:]
    return np.concatenate([corner, corner + side], axis=-1)


def xywh_from_xyxy(box_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert corners to corner and size; shape (..., 4)."""
    return np.concatenate([box_xyxy[..., :2], box_xyxy[..., 2:] - box_xyxy[..., :2]], axis=-1)


def sample_training_window(
    box_xyxy: NDArray[np.float64],
    dataset: DatasetSpec,
    train: TrainSpec,
    rng: np.random.Generator,
) -> Window:
    """Draw a window that holds the whole box: TAO's margins, or ours if window_rate is set."""
    if dataset.window_rate:
        return _sample_jittered_window(box_xyxy, dataset.window_rate, dataset.box_jitter, rng)
    low, high = train.margin_rate
    share_xy = rng.uniform(size=2)
    gates = np.concatenate([share_xy, 1 - share_xy])
    return _window_with_margins(box_xyxy, rng.uniform(low, high, size=4) * gates)


def prediction_window(box_xyxy: NDArray[np.float64], test_margin_rate: float) -> Window:
    """Return the window of evaluation and inference: half the margin on each side."""
    return _window_with_margins(box_xyxy, np.full(4, test_margin_rate / 2))


def _window_with_margins(box_xyxy: NDArray[np.float64], margins_4: NDArray[np.float64]) -> Window:
    """Move each side away from the centre by a part of the half box; far sides round up by one."""
    centre_xy = (box_xyxy[:2] + box_xyxy[2:]) / 2
    half_xy = (box_xyxy[2:] - box_xyxy[:2]) / 2
    near = centre_xy - half_xy * (1 + margins_4[:2])
    far = centre_xy + half_xy * (1 + margins_4[2:])
    return (
        math.floor(near[0]),
        math.floor(near[1]),
        math.ceil(far[0]) + 1,
        math.ceil(far[1]) + 1,
    )


def _sample_jittered_window(
    box_xyxy: NDArray[np.float64],
    window_rate: list[float],
    box_jitter: float,
    rng: np.random.Generator,
) -> Window:
    """Draw size and position per axis, so that the box does not always have the same position."""
    side_xy = box_xyxy[2:] - box_xyxy[:2]
    rate_xy = rng.uniform(window_rate[0], window_rate[1], size=2)
    room_xy = (rate_xy - 1) / 2
    shift_xy = rng.uniform(-1, 1, size=2) * np.minimum(box_jitter, room_xy) * side_xy
    centre_xy = (box_xyxy[:2] + box_xyxy[2:]) / 2 + shift_xy
    near, far = centre_xy - side_xy * rate_xy / 2, centre_xy + side_xy * rate_xy / 2
    return math.floor(near[0]), math.floor(near[1]), math.ceil(far[0]), math.ceil(far[1])


def cut_window(image: NDArray[np.uint8], window: Window, size_px: int) -> NDArray[np.uint8]:
    """Cut a window, zero outside the image, and resize it to a square, bilinearly.

    Pillow shrinks (its filter averages all pixels). torch enlarges: it returns the same bytes in
    less than half of the time. When shrinking, some of its bytes would differ by one.

    Args:
        image: (H, W, 3) or (H, W), uint8.
        window: May reach beyond the image.
        size_px: Side of the result.
    """
    patch = _patch_of(image, window)
    if max(patch.shape[:2]) > size_px:
        shrunk = Image.fromarray(patch).resize((size_px, size_px), Image.Resampling.BILINEAR)
        return np.array(shrunk, dtype=np.uint8)
    planes = torch.from_numpy(np.atleast_3d(patch)).permute(2, 0, 1)[None]
    enlarged = functional.interpolate(
        planes, size=(size_px, size_px), mode="bilinear", antialias=True
    )
    cut: NDArray[np.uint8] = enlarged[0].permute(1, 2, 0).numpy()
    return cut.reshape(size_px, size_px, *image.shape[2:])


def _patch_of(image: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Copy the window's pixels; those outside the image are zero."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = window
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        return image[y0:y1, x0:x1].copy()
    patch = np.zeros((y1 - y0, x1 - x0, *image.shape[2:]), dtype=np.uint8)
    inside_x = slice(max(x0, 0), max(min(x1, width), 0))
    inside_y = slice(max(y0, 0), max(min(y1, height), 0))
    part = image[inside_y, inside_x]
    top, left = inside_y.start - y0, inside_x.start - x0
    patch[top : top + part.shape[0], left : left + part.shape[1]] = part
    return patch


def unit_box_in_window(
    box_xyxy: NDArray[np.float64], window: Window, width: int, height: int
) -> NDArray[np.float32]:
    """Return the box, clipped to the image, as 0..1 of the window, xyxy."""
    visible = np.clip(box_xyxy, 0, [width, height, width, height])
    origin = np.array([window[0], window[1]] * 2)
    side = np.array([window[2] - window[0], window[3] - window[1]] * 2)
    unit_box: NDArray[np.float32] = ((visible - origin) / side).astype(np.float32)
    return unit_box


def window_from_unit_box(
    box_xyxy: NDArray[np.float64], unit_box: NDArray[np.float32], width: int, height: int
) -> Window:
    """Return the window in which a box has this unit box: the inverse of `unit_box_in_window`."""
    visible = np.clip(box_xyxy, 0, [width, height, width, height])
    side = (visible[2:] - visible[:2]) / (unit_box[2:] - unit_box[:2]).astype(np.float64)
    near = visible[:2] - unit_box[:2] * side
    x0, y0, x1, y1 = np.rint(np.concatenate([near, near + side])).astype(int).tolist()
    return x0, y0, x1, y1
