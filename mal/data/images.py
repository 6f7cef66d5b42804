"""Read an image as its annotations describe it: upright, three channels, 8 bits.

Shape letters: H, W = height and width that the JSON gives, in pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mal.data.image_rescue import rescued_file
from mal.data.wide_pixels import is_wide, wide_rgb
from mal.errors import AnnotationError
from mal.shown import shown
from mal.spec.experiment import DEFAULT_MAX_IMAGE_MPX
from mal.storage.file_kinds import describe_content, read_head

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

RESCUED = "image without its end marker, or with broken text, whose pixels are all there"

_PAGED_FORMATS = frozenset({"TIFF", "GIF", "PNG", "WEBP", "AVIF"})
_TIFF_SAMPLES_PER_PIXEL = 277
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_BANDS = 4
_MAX_PATH_CHARS = 300


@dataclass
class _Limits:
    max_pixels: int


_limits = _Limits(round(DEFAULT_MAX_IMAGE_MPX * 1e6))


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
        notes: What the reader chose or left out, such as the first page.
    """

    pixels: NDArray[np.uint8]
    mode: str
    orientation: int
    is_resized: bool
    notes: tuple[str, ...] = ()


def allow_image_mpx(max_image_mpx: float) -> None:
    """Set the largest image, in millions of pixels, that this process and its children read."""
    _limits.max_pixels = round(max_image_mpx * 1e6)
    if max_image_mpx > DEFAULT_MAX_IMAGE_MPX:
        Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit; `_require_readable` has ours


def read_image(path: Path, *, width: int, height: int) -> NDArray[np.uint8]:
    """Return the pixels of `decode_image`, (height, width, 3) uint8 RGB."""
    return _decode(path, (width, height), with_notes=False).pixels


def decode_image(path: Path, *, width: int, height: int) -> DecodedImage:
    """Read an image of the annotated width and height in pixels.

    Some annotation tools obey EXIF orientation, others do not. The annotated size decides: the
    reader takes the upright image if that fits, else the stored one.

    Raises:
        AnnotationError: The file is missing, broken, too large, or of another shape.
    """
    return _decode(path, (width, height), with_notes=True)


def _decode(path: Path, annotated_size: tuple[int, int], *, with_notes: bool) -> DecodedImage:
    try:
        return _decode_from(path, path, annotated_size, with_notes=with_notes)
    except FileNotFoundError as error:
        raise MissingImageError(
            f"Cannot read image {shown_path(path)}: it does not exist. Check the image folder and "
            "file_name."
        ) from error
    except _BROKEN_IMAGE_ERRORS as error:
        return _decode_rescued(path, annotated_size, error, with_notes=with_notes)
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error).rstrip(".")) from error


def _decode_rescued(
    path: Path, annotated_size: tuple[int, int], error: Exception, *, with_notes: bool
) -> DecodedImage:
    """Read a file that Pillow refuses, if its pixels are there."""
    rescued = path if register_heif(path) else rescued_file(path)
    if rescued is None:
        raise _unreadable(path, error) from error
    try:
        decoded = _decode_from(rescued, path, annotated_size, with_notes=with_notes)
    except _BROKEN_IMAGE_ERRORS:
        raise _unreadable(path, error) from error
    if rescued is path or not with_notes:
        return decoded
    return dataclasses.replace(decoded, notes=(*decoded.notes, RESCUED))


def _decode_from(
    source: Path | io.BytesIO, path: Path, annotated_size: tuple[int, int], *, with_notes: bool
) -> DecodedImage:
    with Image.open(source) as image:
        has_16_bits = is_wide(image)  # which a loaded image does not say
        mode, orientation = image.mode, _orientation_of(image)
        _require_readable(path, image.size)
        uses_upright = _fits_upright(path, image.size, orientation, annotated_size)
        _require_readable(path, annotated_size)
        notes = _notes_of(image, has_16_bits=has_16_bits) if with_notes else ()
        if has_16_bits:
            with Image.open(source) as twin:
                rgb = wide_rgb(image, twin)
        else:
            rgb = _rgb_from(image)
        if uses_upright and orientation != UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT_FROM_ORIENTATION[orientation])
    is_resized = rgb.size != annotated_size
    if is_resized:
        rgb = rgb.resize(annotated_size, Image.Resampling.BICUBIC)
    return DecodedImage(np.array(rgb, dtype=np.uint8), mode, orientation, is_resized, notes)


def _require_readable(path: Path, size: tuple[int, int]) -> None:
    """Refuse an image, or its annotated size, that is too large for the memory."""
    if size[0] * size[1] > _limits.max_pixels:
        raise _too_large(path, f"{size[0]} x {size[1]} pixels are too large")


def _too_large(path: Path, reason: str) -> UnreadableImageError:
    return UnreadableImageError(
        f"Cannot read image {shown_path(path)}: {reason}. Raise dataset.max_image_mpx "
        f"({_limits.max_pixels / 1e6:g}; --max-image-mpx of mal dataset check), or cut the image "
        "into tiles."
    )


def _unreadable(path: Path, error: Exception) -> UnreadableImageError:
    what, remedy = describe_content(path)
    if what:
        reason = f"it is {what}"
    elif isinstance(error, UnidentifiedImageError):
        is_tiff = read_head(path)[:4] in _TIFF_STARTS
        reason = "it is a TIFF of a pixel format that is not read" if is_tiff else "it is no image"
        remedy = "Convert it to 8 bits and three channels." if is_tiff else ""
    else:
        reason = str(error).rstrip(".")
    return UnreadableImageError(
        f"Cannot read image {shown_path(path)}: {reason}. {remedy or 'Copy or export it again.'}"
    )


def shown_path(path: Path) -> str:
    """Return a path for messages: its last part comes from an annotation file."""
    return shown(str(path), _MAX_PATH_CHARS)


def register_heif(path: Path) -> bool:
    """Let Pillow read HEIC if a file is that, and pillow-heif is installed."""
    if "HEIC" not in describe_content(path)[0]:
        return False
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def _notes_of(image: Image.Image, *, has_16_bits: bool) -> tuple[str, ...]:
    """Say what of an image is not read."""
    notes = []
    try:
        num_frames = getattr(image, "n_frames", 1) if image.format in _PAGED_FORMATS else 1
    except _BROKEN_IMAGE_ERRORS:  # of a page that is not read
        num_frames = 1
    if num_frames > 1:
        kind = "image of several pages, the first is taken"
        notes.append(kind if image.format == "TIFF" else "animated image, the first frame is taken")
    num_bands = getattr(image, "tag_v2", {}).get(_TIFF_SAMPLES_PER_PIXEL, 1)
    if isinstance(num_bands, int) and num_bands > _MAX_BANDS:
        notes.append("image of more than four bands, the first three are taken")
    if has_16_bits:
        notes.append("image of 16 bits a channel, scaled to its range")
    return tuple(notes)


def upright_size_of(path: Path) -> tuple[int, int]:
    """Return width and height in pixels as EXIF turns the image; the pixels are not decoded.

    Raises:
        UnreadableImageError: The file is no image.
    """
    try:
        return _upright_size_from(path)
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error).rstrip(".")) from error
    except _BROKEN_IMAGE_ERRORS as error:
        rescued = path if register_heif(path) else rescued_file(path)
        if rescued is not None:
            with contextlib.suppress(*_BROKEN_IMAGE_ERRORS):
                return _upright_size_from(rescued)
        raise _unreadable(path, error) from error


def _upright_size_from(source: Path | io.BytesIO) -> tuple[int, int]:
    with Image.open(source) as image:
        return _upright_size(image.size, _orientation_of(image))


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
            f"Image {shown_path(path)} has {upright_size[0]} x {upright_size[1]} pixels, but its "
            "annotations swap width and height. Swap them: mal dataset convert IN OUT --boxes "
            "swapped-sizes."
        )
    raise ImageSizeError(
        f"Image {shown_path(path)} has {upright_size[0]} x {upright_size[1]} pixels, but its "
        f"annotations are for {annotated_size[0]} x {annotated_size[1]}. Use the images that were "
        "annotated, or fix width and height in the JSON."
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
