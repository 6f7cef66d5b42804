"""One object drawn on its image: predicted mask, true mask and box, as a small JPEG.

Shape letters: H, W pixels of the picture; 3 = RGB, uint8.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mal.data.annotations import Rle
from mal.labeling.coco_rle import mask_from_rle

PICTURE_SIDE_PX = 240
MIN_CONTEXT_PX = 6
CONTEXT_RATE = 0.2
MAX_ENLARGEMENT = 8.0
JPEG_QUALITY = 80

# Orange and blue differ for every kind of colour vision; the page's legend uses them too.
PREDICTED_RGB = (255, 140, 0)
TRUE_RGB = (40, 190, 255)
BOX_RGB = (255, 255, 255)

_FILL_OPACITY = 0.35
_OUTLINE_PX = 2
_BOX_DASH_PX = 4
_MASK_LEVEL = 128


@dataclass(frozen=True)
class Picture:
    """A JPEG as data URI, with its size for the page's layout."""

    uri: str
    width: int
    height: int


def draw_object(
    image_HW3: NDArray[np.uint8],
    box_xywh: Sequence[float],
    predicted: Rle,
    true: Rle | None,
    *,
    max_side_px: int = PICTURE_SIDE_PX,
) -> Picture:
    """Crop an image around a box and draw its masks.

    Args:
        image_HW3: The whole image. If its size is not that of the masks, it is resized to theirs.
        box_xywh: The box, pixels of the masks' image.
        predicted: Predicted mask.
        true: True mask, outlined in another colour.
        max_side_px: Longer side of the picture. Small objects are enlarged to it, at most
            eightfold.
    """
    height, width = (int(side) for side in predicted["size"])
    image = Image.fromarray(image_HW3)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    window = _window_around(box_xywh, width, height)
    scale = min(max_side_px / max(window[2] - window[0], window[3] - window[1]), MAX_ENLARGEMENT)
    size = (
        max(1, round((window[2] - window[0]) * scale)),
        max(1, round((window[3] - window[1]) * scale)),
    )
    canvas_HW3 = np.array(
        image.crop(window).resize(size, Image.Resampling.BICUBIC).convert("RGB"), dtype=np.uint8
    )
    predicted_HW = _mask_in_window(predicted, window, size)
    _blend(canvas_HW3, predicted_HW, PREDICTED_RGB, _FILL_OPACITY)
    _draw_box(canvas_HW3, box_xywh, window, scale)
    if true is not None:
        _blend(canvas_HW3, _outline(_mask_in_window(true, window, size)), TRUE_RGB, 1.0)
    _blend(canvas_HW3, _outline(predicted_HW), PREDICTED_RGB, 1.0)
    return Picture(_jpeg_uri(canvas_HW3), *size)


def _window_around(box_xywh: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """Return a box with some context, cut at the image's edges, as xyxy with exclusive ends."""
    x, y, box_width, box_height = box_xywh
    context = max(MIN_CONTEXT_PX, CONTEXT_RATE * max(box_width, box_height))
    x0 = min(max(math.floor(x - context), 0), width - 1)
    y0 = min(max(math.floor(y - context), 0), height - 1)
    x1 = max(min(math.ceil(x + box_width + context), width), x0 + 1)
    y1 = max(min(math.ceil(y + box_height + context), height), y0 + 1)
    return x0, y0, x1, y1


def _mask_in_window(
    rle: Rle, window_xyxy: tuple[int, int, int, int], size: tuple[int, int]
) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = window_xyxy
    inside = mask_from_rle(rle)[y0:y1, x0:x1].astype(np.uint8) * np.uint8(255)
    resized = Image.fromarray(inside).resize(size, Image.Resampling.BILINEAR)
    mask_HW: NDArray[np.bool_] = np.asarray(resized) >= _MASK_LEVEL
    return mask_HW


def _outline(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask's pixels near its border; the picture's own edge counts as border."""
    inner_HW = mask_HW
    for _ in range(_OUTLINE_PX):
        padded = np.pad(inner_HW, 1)
        inner_HW = (
            padded[1:-1, 1:-1]
            & padded[:-2, 1:-1]
            & padded[2:, 1:-1]
            & padded[1:-1, :-2]
            & padded[1:-1, 2:]
        )
    return mask_HW & ~inner_HW


def _blend(
    canvas_HW3: NDArray[np.uint8],
    where_HW: NDArray[np.bool_],
    color_rgb: tuple[int, int, int],
    opacity: float,
) -> None:
    """Paint pixels of the canvas in place."""
    mixed = canvas_HW3[where_HW] * (1 - opacity) + np.array(color_rgb) * opacity
    canvas_HW3[where_HW] = mixed.round().astype(np.uint8)


def _draw_box(
    canvas_HW3: NDArray[np.uint8],
    box_xywh: Sequence[float],
    window_xyxy: tuple[int, int, int, int],
    scale: float,
) -> None:
    """Draw the box dashed in white and black, visible on any background."""
    height, width = canvas_HW3.shape[:2]
    x, y, box_width, box_height = box_xywh
    left, right = (
        min(max(round((edge - window_xyxy[0]) * scale), 0), width - 1)
        for edge in (x, x + box_width)
    )
    top, bottom = (
        min(max(round((edge - window_xyxy[1]) * scale), 0), height - 1)
        for edge in (y, y + box_height)
    )
    on_line_HW = np.zeros((height, width), dtype=np.bool_)
    on_line_HW[top : bottom + 1, [left, right]] = True
    on_line_HW[[top, bottom], left : right + 1] = True
    rows, columns = np.indices((height, width))
    is_dash_HW = (rows + columns) // _BOX_DASH_PX % 2 == 0
    _blend(canvas_HW3, on_line_HW & is_dash_HW, BOX_RGB, 1.0)
    _blend(canvas_HW3, on_line_HW & ~is_dash_HW, (0, 0, 0), 1.0)


def _jpeg_uri(canvas_HW3: NDArray[np.uint8]) -> str:
    """Encode as data URI; without chroma subsampling, which would smear thin coloured lines."""
    buffer = io.BytesIO()
    # Without `optimize`: its buffer is too small for noisy pictures, and Pillow then fails.
    Image.fromarray(canvas_HW3).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
