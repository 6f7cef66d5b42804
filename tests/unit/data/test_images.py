from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mal.data.images import decode_image, read_image
from mal.errors import AnnotationError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(width: int = 6, height: int = 4) -> Image.Image:
    """Red, green / blue, white: no two of its eight orientations look alike."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    pixels[height // 2 :, width // 2 :] = WHITE
    return Image.fromarray(pixels)


def save_with_orientation(image: Image.Image, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def corners(pixels: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    return [tuple(pixels[y, x].tolist()) for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_where_the_boxes_are(orientation: int, tmp_path: Path) -> None:
    path = save_with_orientation(quarters(), tmp_path / "a.png", orientation)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    height, width, _ = expected.shape
    pixels = read_image(path, width=width, height=height)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_stored_orientation_keep_it(orientation: int, tmp_path: Path) -> None:
    path = save_with_orientation(quarters(), tmp_path / "a.png", orientation)
    decoded = decode_image(path, width=6, height=4)
    assert corners(decoded.pixels) == [RED, GREEN, BLUE, WHITE]
    assert decoded.orientation == orientation


def test_an_unknown_orientation_is_upright(tmp_path: Path) -> None:
    path = save_with_orientation(quarters(), tmp_path / "a.png", 77)
    assert corners(read_image(path, width=6, height=4)) == [RED, GREEN, BLUE, WHITE]


GREY = Image.fromarray(np.array([[0, 128], [200, 255]], dtype=np.uint8))
BILEVEL = GREY.convert("1", dither=Image.Dither.NONE)


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        pytest.param(GREY, "png", [0, 128, 200, 255], id="greyscale"),
        pytest.param(GREY.convert("P"), "png", [0, 128, 200, 255], id="palette"),
        pytest.param(BILEVEL, "png", [0, 255, 255, 255], id="bilevel"),
        pytest.param(GREY.convert("LA"), "png", [0, 128, 200, 255], id="grey with alpha"),
        pytest.param(GREY.convert("RGBA"), "png", [0, 128, 200, 255], id="rgb with alpha"),
        pytest.param(GREY.convert("CMYK"), "tiff", [0, 128, 200, 255], id="cmyk"),
    ],
)
def test_every_pixel_format_becomes_rgb(
    image: Image.Image, suffix: str, expected: list[int], tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    pixels = read_image(path, width=2, height=2)
    assert pixels.shape == (2, 2, 3)
    np.testing.assert_array_equal(pixels, np.repeat(np.reshape(expected, (2, 2, 1)), 3, axis=2))


def test_transparent_pixels_keep_their_colour(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", width=2, height=2)[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        pytest.param(np.array([[1000, 2000], [3000, 4000]], dtype=np.uint16), "png", id="uint16"),
        pytest.param(np.array([[1000, 2000], [3000, 4000]], dtype=np.int32), "tiff", id="int32"),
        pytest.param(np.array([[-1, 0], [1, 2]], dtype=np.float32), "tiff", id="float"),
        pytest.param(np.array([[0, 85], [170, 255]], dtype=np.uint16), "png", id="dark uint16"),
    ],
)
def test_deep_images_are_scaled_to_their_range(
    values: NDArray[np.generic], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    assert read_image(path, width=2, height=2)[..., 0].tolist() == [[0, 85], [170, 255]]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.full((2, 2), 7, dtype=np.float32), id="flat"),
        pytest.param(np.full((2, 2), np.nan, dtype=np.float32), id="nothing finite"),
    ],
)
def test_a_deep_image_without_a_range_is_black(values: NDArray[np.float32], tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert not read_image(tmp_path / "a.tiff", width=2, height=2).any()


@pytest.mark.parametrize(
    ("orientation", "size"),
    [
        pytest.param(1, (60, 40), id="annotated on a larger one"),
        pytest.param(1, (3, 2), id="annotated on a smaller one"),
        pytest.param(6, (40, 60), id="upright and larger"),
        pytest.param(6, (60, 40), id="stored and larger"),
    ],
)
def test_a_scaled_twin_is_resized_to_the_annotated_size(
    orientation: int, size: tuple[int, int], tmp_path: Path
) -> None:
    path = save_with_orientation(quarters(), tmp_path / "a.png", orientation)
    decoded = decode_image(path, width=size[0], height=size[1])
    assert decoded.pixels.shape == (size[1], size[0], 3)
    assert decoded.is_resized


def test_an_image_of_another_shape_is_refused_with_both_sizes(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match=r"a\.png has 6 x 4 .*for 7 x 4\. Use"):
        read_image(tmp_path / "a.png", width=7, height=4)


def png_of_claimed_size(path: Path, width: int, height: int) -> None:
    quarters().save(path, format="png")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "text", "truncated jpeg", "truncated png", "folder", "bomb"]
)
def test_a_file_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not an image")
    elif kind.startswith("truncated"):
        noise.save(path, format=kind.split()[1])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "folder":
        path.mkdir()
    elif kind == "bomb":
        png_of_claimed_size(path, 60000, 60000)
    with pytest.raises(AnnotationError, match=r"Cannot read image .*a\.jpg: .*\. \w+"):
        read_image(path, width=64, height=64)
