"""Read an image as its annotations describe it: upright, three channels, 8 bits.

Shape letters: H, W = height and width that the JSON gives, in pixels.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mal.errors import AnnotationError

MAX_FACTOR_DIFFERENCE = 0.01
UPRIGHT = 1

_EXIF_ORIENTATION = 0x0112
_UPRIGHT_FROM_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_SIDE_SWAPPING_ORIENTATION = 5
_BROKEN_IMAGE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error,
    zlib.error,
)  # fmt: skip


class MissingImageError(AnnotationError):
    """An annotated image has no file."""


class UnreadableImageError(AnnotationError):
    """An image file is truncated, too large or no image."""


class ImageSizeError(AnnotationError):
    """An image has another shape than its annotations say."""


@dataclass(frozen=True)
class DecodedImage:
    """An image, and what the reader did to it.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        mode: Pillow's name of the file's pixel format.
        orientation: EXIF orientation of the file, 1..8; 1 is upright.
        is_resized: Whether the file is smaller or larger than the annotated image.
    """

    pixels: NDArray[np.uint8]
    mode: str
    orientation: int
    is_resized: bool


def read_image(path: Path, *, width: int, height: int) -> NDArray[np.uint8]:
    """Return the pixels of `decode_image`, (height, width, 3) uint8 RGB."""
    return decode_image(path, width=width, height=height).pixels


def decode_image(path: Path, *, width: int, height: int) -> DecodedImage:
    """Read an image of the annotated width and height in pixels.

    Some annotation tools obey EXIF orientation, others do not. The annotated size decides: the
    reader takes the upright image if that fits, else the stored one.

    Raises:
        AnnotationError: The file is missing, broken, or of another shape.
    """
    try:
        with Image.open(path) as image:
            mode, orientation = image.mode, _orientation_of(image)
            uses_upright = _fits_upright(path, image.size, orientation, (width, height))
            rgb = _rgb_from(image)
            if uses_upright and orientation != UPRIGHT:
                rgb = rgb.transpose(_UPRIGHT_FROM_ORIENTATION[orientation])
    except FileNotFoundError as error:
        raise MissingImageError(
            f"Cannot read image {path}: it does not exist. Check the image folder and file_name."
        ) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"Cannot read image {path}: {str(error).rstrip('.')}. Cut it into tiles."
        ) from error
    except _BROKEN_IMAGE_ERRORS as error:
        raise UnreadableImageError(
            f"Cannot read image {path}: {error}. Copy or export it again."
        ) from error
    is_resized = rgb.size != (width, height)
    if is_resized:
        rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return DecodedImage(np.array(rgb, dtype=np.uint8), mode, orientation, is_resized)


def upright_size_of(path: Path) -> tuple[int, int]:
    """Return width and height in pixels as EXIF turns the image; the pixels are not decoded.

    Raises:
        UnreadableImageError: The file is no image.
    """
    try:
        with Image.open(path) as image:
            return _upright_size(image.size, _orientation_of(image))
    except (*_BROKEN_IMAGE_ERRORS, Image.DecompressionBombError) as error:
        raise UnreadableImageError(
            f"Cannot read the size of image {path}: {error}. Copy or export it again."
        ) from error


def _orientation_of(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, UPRIGHT)
    except _BROKEN_IMAGE_ERRORS:  # a broken tag does not make the pixels unreadable
        return UPRIGHT
    return orientation if orientation in _UPRIGHT_FROM_ORIENTATION else UPRIGHT


def _upright_size(stored_size: tuple[int, int], orientation: int) -> tuple[int, int]:
    width, height = stored_size
    return (height, width) if orientation >= _FIRST_SIDE_SWAPPING_ORIENTATION else (width, height)


def _fits_upright(
    path: Path, stored_size: tuple[int, int], orientation: int, annotated_size: tuple[int, int]
) -> bool:
    """Return whether the annotations describe the upright image, rather than the stored one."""
    upright_size = _upright_size(stored_size, orientation)
    for fits in (tuple.__eq__, _have_equal_proportions):
        if fits(upright_size, annotated_size):
            return True
        if fits(stored_size, annotated_size):
            return False
    if annotated_size == upright_size[::-1]:
        raise ImageSizeError(
            f"Image {path} has {upright_size[0]} x {upright_size[1]} pixels, but its annotations "
            "swap width and height. Swap them: mal dataset convert IN OUT --boxes swapped-sizes."
        )
    raise ImageSizeError(
        f"Image {path} has {upright_size[0]} x {upright_size[1]} pixels, but its annotations are "
        f"for {annotated_size[0]} x {annotated_size[1]}. Use the images that were annotated, or "
        "fix width and height in the JSON."
    )


def _have_equal_proportions(size: tuple[int, int], annotated_size: tuple[int, int]) -> bool:
    """Return whether both sides differ by the same factor, up to the rounding of a resize."""
    factor_x, factor_y = (given / side for given, side in zip(annotated_size, size, strict=True))
    return abs(factor_x / factor_y - 1) <= MAX_FACTOR_DIFFERENCE


def _rgb_from(image: Image.Image) -> Image.Image:
    """Convert any pixel format. Alpha is dropped; more than 8 bits are scaled to the image's range.

    Pillow's own conversion saturates 16-bit values at 255, and copies an image that is RGB already.
    """
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I") or image.mode == "F":
        grey = _bytes_from_range(np.asarray(image, dtype=np.float64))
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("La", "RGBa"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    return image.convert("RGB")


def _bytes_from_range(values_HW: NDArray[np.float64]) -> NDArray[np.uint8]:
    is_finite = np.isfinite(values_HW)
    if not is_finite.any():
        return np.zeros(values_HW.shape, dtype=np.uint8)
    low, high = values_HW[is_finite].min(), values_HW[is_finite].max()
    scaled = (np.where(is_finite, values_HW, low) - low) * (255.0 / max(high - low, 1e-300))
    return np.asarray(np.rint(scaled), dtype=np.uint8)
