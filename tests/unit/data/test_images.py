from __future__ import annotations

import re
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mal.data.images import (
    RESCUED,
    allow_image_mpx,
    decode_image,
    read_image,
    upright_size_of,
)
from mal.errors import AnnotationError
from mal.spec.experiment import DEFAULT_MAX_IMAGE_MPX

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


def noise(width: int = 61, height: int = 43) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    )


JPEG_KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True},
    "no subsampling": {"subsampling": 0},
    "restarts": {"restart_marker_blocks": 3},
    "restart rows": {"restart_marker_rows": 1},
    "progressive restarts": {"progressive": True, "restart_marker_rows": 1},
}


@pytest.mark.parametrize("options", JPEG_KINDS.values(), ids=JPEG_KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_without_its_end_marker_is_read(
    options: dict[str, Any], mode: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    noise().convert(mode).save(path, **options)
    expected = read_image(path, width=61, height=43)
    data = path.read_bytes()
    for cut in (2, 1):
        path.write_bytes(data[:-cut])
        np.testing.assert_array_equal(read_image(path, width=61, height=43), expected)
    assert decode_image(path, width=61, height=43).notes == (RESCUED,)
    assert upright_size_of(path) == (61, 43)


@pytest.mark.parametrize("options", JPEG_KINDS.values(), ids=JPEG_KINDS)
def test_a_jpeg_that_lacks_a_few_pixels_is_an_error(
    options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    noise().save(path, **options)
    data = path.read_bytes()
    last_scan = data.rindex(b"\xff\xda")
    for size in range(last_scan - 40, len(data) - 6, 7):
        path.write_bytes(data[:size])
        with pytest.raises(AnnotationError, match="Cannot read image"):
            read_image(path, width=61, height=43)


def test_a_progressive_jpeg_without_its_last_scan_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    noise().save(path, progressive=True)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"\xff\xc4")])
    with pytest.raises(AnnotationError, match="truncated"):
        read_image(path, width=61, height=43)


@pytest.mark.parametrize("chunk", [b"zTXt", b"iTXt", b"tEXt"])
@pytest.mark.parametrize("is_broken", [False, True])
def test_text_of_a_png_is_no_pixel(chunk: bytes, is_broken: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    quarters().save(path)
    data = path.read_bytes()
    packed = zlib.compress(bytes(2 << 20))
    text = b"key\0" + {b"zTXt": b"\0" + packed, b"iTXt": b"\1\0\0\0" + packed, b"tEXt": b"x"}[chunk]
    crc = zlib.crc32(chunk + text) ^ is_broken
    block = struct.pack(">I", len(text)) + chunk + text + struct.pack(">I", crc)
    for position in (data.index(b"IDAT") - 4, data.index(b"IEND") - 4):
        path.write_bytes(data[:position] + block + data[position:])
        assert corners(read_image(path, width=6, height=4)) == [RED, GREEN, BLUE, WHITE]


def test_a_corrupt_exif_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    quarters(64, 48).save(path, exif=exif.tobytes()[:-7], quality=95)
    assert read_image(path, width=64, height=48).shape == (48, 64, 3)


def wide_tiff(path: Path, values_HWC: NDArray[np.uint16], order: str) -> Path:
    """Write a TIFF of 16 bits a channel; `order` is < or >."""
    height, width, num_bands = values_HWC.shape
    pixels = values_HWC.astype(f"{order}u2").tobytes()
    entries = [
        (256, 3, [width]), (257, 3, [height]), (258, 3, [16] * num_bands), (259, 3, [1]),
        (262, 3, [2]), (273, 4, [0]), (277, 3, [num_bands]), (278, 3, [height]),
        (279, 4, [len(pixels)]),
    ]  # fmt: skip
    if num_bands > 3:
        entries.append((338, 3, [0] * (num_bands - 3)))
    start = 8 + 2 + 12 * len(entries) + 4
    extra, body = b"", b""
    offset = start
    for tag, kind, given in entries:
        values = [start + 2 * num_bands + 8] if tag == 273 else given
        data = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(data) > 4:
            extra, data, offset = extra + data, struct.pack(f"{order}I", offset), offset + len(data)
        body += struct.pack(f"{order}HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    extra = extra.ljust(2 * num_bands + 8, b"\0")
    path.write_bytes(
        head + struct.pack(f"{order}H", len(entries)) + body + bytes(4) + extra + pixels
    )
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("num_bands", [3, 4])
@pytest.mark.parametrize("high", [65535, 4095, 255])
def test_colours_of_16_bits_are_scaled_to_their_range(
    order: str, num_bands: int, high: int, tmp_path: Path
) -> None:
    values = np.linspace(0, high, 6 * 4 * num_bands).reshape(4, 6, num_bands).astype(np.uint16)
    decoded = decode_image(wide_tiff(tmp_path / "a.tif", values, order), width=6, height=4)
    expected = np.rint(values[..., :3] * (255 / values[..., :3].max()))
    assert np.abs(decoded.pixels - expected).max() <= 1
    assert "image of 16 bits a channel, scaled to its range" in decoded.notes


def test_a_png_of_12_bits_in_16_is_not_dark(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 6 * 4 * 3).reshape(4, 6, 3).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )  # fmt: skip
    pixels = read_image(tmp_path / "a.png", width=6, height=4)
    np.testing.assert_array_equal(pixels, np.rint(values / 4095.0 * 255))


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("a.tif", "image of several pages, the first is taken"),
        ("a.gif", "animated image, the first frame is taken"),
        ("a.png", "animated image, the first frame is taken"),
        ("a.webp", "animated image, the first frame is taken"),
    ],
)
def test_of_several_pages_the_first_is_taken_and_noted(
    name: str, note: str, tmp_path: Path
) -> None:
    first, second = Image.new("RGB", (6, 4), RED), Image.new("RGB", (6, 4), BLUE)
    options: dict[str, Any] = {} if name != "a.webp" else {"lossless": True}
    first.save(tmp_path / name, save_all=True, append_images=[second], **options)
    decoded = decode_image(tmp_path / name, width=6, height=4)
    assert tuple(decoded.pixels[0, 0]) == RED
    assert decoded.notes == (note,)
    first.save(tmp_path / name)
    assert decode_image(tmp_path / name, width=6, height=4).notes == ()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image, which is not read. Convert"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2", "a video"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\3\4", "a zip archive"),
        (b"{\"error\": 404}", "JSON text"),
        (b"", "an empty file"),
        (bytes(4000), "a file of zeros"),
        (b"II*\0\x08\0\0\0\0\0", "a TIFF of a pixel format that is not read. Convert"),
        (b"any text", "it is no image"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for read in (partial(read_image, width=2, height=2), upright_size_of):
        with pytest.raises(AnnotationError, match=re.escape(told)) as caught:
            read(tmp_path / "a.jpg")
        assert "\n" not in str(caught.value)


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", format="png")
    assert corners(read_image(tmp_path / "a.jpg", width=6, height=4))[0] == RED


def test_the_largest_image_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    quarters().save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match=r"Raise dataset\.max_image_mpx"):
        read_image(tmp_path / "a.png", width=6, height=4)
    try:
        allow_image_mpx(1000)
        assert read_image(tmp_path / "a.png", width=6, height=4).shape == (4, 6, 3)
        allow_image_mpx(20e-6)
        for size in ((6, 4), (3, 2)):
            with pytest.raises(AnnotationError, match=r"6 x 4 pixels.*max_image_mpx"):
                read_image(tmp_path / "a.png", width=size[0], height=size[1])
    finally:
        allow_image_mpx(DEFAULT_MAX_IMAGE_MPX)


def test_a_small_image_of_a_huge_annotated_size_is_refused(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match=r"600000 x 400000 pixels are too large"):
        read_image(tmp_path / "a.png", width=600_000, height=400_000)
