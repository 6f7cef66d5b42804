"""Colour images of 16 bits a channel, of which Pillow reads the high byte alone."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX"})
# The other byte of each value is the high byte for a reader that expects the other byte order.
_OTHER_BYTE = {
    ";16L": ";16B",
    ";16B": ";16L",
    ";16N": ";16B" if sys.byteorder == "little" else ";16L",
}
_NUM_VALUES = 1 << 16


def is_wide(image: Image.Image) -> bool:
    """Return whether both bytes of an image that was opened, but not loaded, can be read."""
    tiles = list(getattr(image, "tile", None) or ())
    endings = {_raw_mode_of(tile)[-4:] for tile in tiles}
    return image.mode in _COLOUR_MODES and bool(tiles) and endings <= set(_OTHER_BYTE)


def wide_rgb(image: Image.Image, twin: Image.Image) -> Image.Image:
    """Scale an image of 16 bits a channel to its range, the same for all channels.

    Args:
        image: Opened, but not loaded.
        twin: A second image of the file, which is changed.
    """
    twin.tile = [_of_other_byte(tile) for tile in twin.tile]  # type: ignore[attr-defined]
    high_HW3, low_HW3 = (np.asarray(half)[..., :3] for half in (image, twin))
    values_HW3 = (high_HW3.astype(np.uint16) << 8) | low_HW3
    low, high = int(values_HW3.min()), int(values_HW3.max())
    scale = 255.0 / max(high - low, 1)
    scaled = np.clip((np.arange(_NUM_VALUES) - low) * scale, 0, 255)
    byte_of_value: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return Image.fromarray(byte_of_value[values_HW3])


def _raw_mode_of(tile: Any) -> str:
    arguments = tile[3]
    raw_mode = arguments[0] if isinstance(arguments, tuple | list) and arguments else arguments
    return raw_mode if isinstance(raw_mode, str) else ""


def _of_other_byte(tile: Any) -> Any:
    raw_mode = _raw_mode_of(tile)
    other = raw_mode[:-4] + _OTHER_BYTE[raw_mode[-4:]]
    arguments = other if isinstance(tile[3], str) else (other, *tile[3][1:])
    return type(tile)(*tile[:3], arguments) if hasattr(tile, "_fields") else (*tile[:3], arguments)
