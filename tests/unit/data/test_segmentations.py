from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mal.data.segmentations import (
    SegmentationError,
    box_of_segmentation,
    mask_from_rle,
    rle_from_segmentation,
)
from mal.errors import AnnotationError

masks = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=7)
        | st.dictionaries(st.sampled_from(["size", "counts", "a"]), inner, max_size=2)
    ),
    max_leaves=10,
)


def runs_of(mask: NDArray[np.uint8]) -> list[int]:
    runs, value = [0], 0
    for pixel in mask.flatten(order="F").tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@given(masks, st.sampled_from(["text", "bytes", "runs"]))
def test_every_run_length_code_becomes_its_mask(mask: NDArray[np.uint8], form: str) -> None:
    height, width = mask.shape
    compressed = coco_mask.encode(np.asfortranarray(mask))["counts"]
    assert isinstance(compressed, bytes)
    counts = {"text": compressed.decode(), "bytes": compressed, "runs": runs_of(mask)}[form]
    rle = rle_from_segmentation({"size": [height, width], "counts": counts}, height, width)
    assert rle == {"size": [height, width], "counts": compressed}
    np.testing.assert_array_equal(mask_from_rle(rle), mask)


def test_large_runs_survive_compression() -> None:
    mask = np.zeros((3000, 2000), dtype=np.uint8)
    mask[100:2900, 1000] = 1
    mask[5, 1500:] = 1
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
    rle = rle_from_segmentation({"size": [3000, 2000], "counts": counts}, 3000, 2000)
    np.testing.assert_array_equal(mask_from_rle(rle), mask)


def test_polygons_are_joined() -> None:
    squares = [[0, 0, 4, 0, 4, 4, 0, 4], [4.0, 4.0, 8.0, 4.0, 8.0, 8.0, 4.0, 8.0]]
    mask = mask_from_rle(rle_from_segmentation(squares, 8, 8))
    expected = np.zeros((8, 8), dtype=np.uint8)
    expected[:4, :4] = expected[4:, 4:] = 1
    np.testing.assert_array_equal(mask, expected)


@given(json_values)
def test_whatever_json_holds_is_a_mask_or_an_error_of_the_set(segmentation: Any) -> None:
    try:
        mask = mask_from_rle(rle_from_segmentation(segmentation, 4, 4))
    except AnnotationError:
        return
    assert mask.shape == (4, 4)
    assert mask.max() <= 1


@given(st.binary(max_size=12))
def test_whatever_bytes_counts_holds_is_a_mask_or_an_error_of_the_set(counts: bytes) -> None:
    try:
        mask = mask_from_rle(rle_from_segmentation({"size": [4, 4], "counts": counts}, 4, 4))
    except AnnotationError:
        return
    assert mask.max() <= 1


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        ([[1, 2]], "have each polygon as a flat list [x, y, x, y, ...], got a list of points"),
        ([[1, 1], [3, 1], [3, 3]], "have each polygon as a flat list [x, y, x, y, ...], got a"),
        ([[[1, 1], [3, 1], [3, 3]]], "have each polygon as a flat list [x, y, x, y, ...], got"),
        ([[{"x": 1, "y": 1}] * 3], "have each polygon as a flat list [x, y, x, y, ...], got a"),
        ([[]], "have a polygon, got an empty list"),
        ([], "have a polygon, got an empty list"),
        ([{"a": 1}], 'be COCO polygons or RLE, got {"a": 1}'),
        ([[1, 2, 3, 4]], "have polygons of 3 points or more, got 4 numbers, [1, 2, 3, 4]"),
        ([[1, 2, 3, 4, 5, 6, 7]], "have polygons of x and y, got 7 numbers"),
        ([1, 2, 3, 4, 5, 6], "be a list of polygons [[x, y, x, y, ...], ...], got a flat list"),
        ([["a"] * 6], "have polygons of numbers, got"),
        ([[True] * 6], "have polygons of numbers, got"),
        ([[float("nan")] * 6], "have polygons inside its image, got [nan"),
        ([[0, 0, 10**400, 4, 4, 4]], "have polygons inside its image, got"),
        ([[0, 0, 4, 0, 4, 21]], "have polygons inside its image, got"),
        ([[0, 0, -17, 0, 4, 4]], "have polygons inside its image, got"),
        ([[0, 0, 4, 0, 4, 4], [1, 2, 3, 4]], "have polygons of 3 points or more"),
        ("text", "be COCO polygons or RLE, got 'text'"),
        (5, "be COCO polygons or RLE, got 5"),
        ({"counts": "P1"}, "be COCO polygons or RLE, got"),
        ({"size": [4, 4]}, "be COCO polygons or RLE, got"),
        ({"size": 4, "counts": [16]}, "be COCO polygons or RLE, got"),
        ({"size": [4, 4, 4], "counts": [16]}, "be COCO polygons or RLE, got size [4, 4, 4]"),
        ({"size": [4, 4], "counts": "Ö"}, "be COCO polygons or RLE, got"),
        ({"size": [4, 4], "counts": ["a"]}, "be COCO polygons or RLE, got"),
        ({"size": [4, 4], "counts": [8.5, 7.5]}, "be COCO polygons or RLE, got"),
        ({"size": [4, 4], "counts": [10**30]}, "be COCO polygons or RLE, got"),
        ({"size": [4, 4], "counts": [2**62, 2**62, 2**62, 2**62, 16]}, "have runs that fill its"),
    ],
    ids=str,
)
def test_what_is_no_segmentation_is_shown_with_the_rule(segmentation: Any, told: str) -> None:
    with pytest.raises(SegmentationError) as caught:
        rle_from_segmentation(segmentation, 4, 4)
    assert str(caught.value).startswith(f"segmentation must {told}")
    assert len(str(caught.value)) < 300


def test_polygons_whose_outline_would_take_gigabytes_are_refused() -> None:
    polygon = [0, 0, 20_000, 0] * 200 + [20_000, 20_000]
    with pytest.raises(SegmentationError, match="must have an outline below 4,000,000 px"):
        rle_from_segmentation([polygon], 20_000, 20_000)


def test_a_polygon_somewhat_beyond_the_border_is_clipped() -> None:
    mask = mask_from_rle(rle_from_segmentation([[-4, -4, 12, -4, 12, 4, -4, 4]], 8, 8))
    np.testing.assert_array_equal(mask, np.repeat([[1], [0]], 4, axis=0) * np.ones((1, 8)))


@pytest.mark.parametrize("quote", ["'", '"'])
def test_counts_that_str_made_of_bytes_are_read(quote: str) -> None:
    mask = np.zeros((60, 40), dtype=np.uint8)
    mask[44:50, 0] = 1
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
    assert b"\\" in counts
    written = "b" + quote + repr(counts)[2:-1] + quote
    rle = rle_from_segmentation({"size": [60, 40], "counts": written}, 60, 40)
    np.testing.assert_array_equal(mask_from_rle(rle), mask)


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([[1, 2, 5, 2, 5, 7]], (1, 2, 4, 5)),
        ([[1, 2, 5, 2, 5, 7], [], [0, 3, 1, 3, 1, 9.5]], (0, 2, 5, 7.5)),
        ({"size": [3, 4], "counts": [4, 2, 1, 2, 3]}, (1, 1, 2, 2)),
        ({"size": [3, 4], "counts": [12]}, (0, 0, 0, 0)),
    ],
)
def test_the_box_of_a_segmentation_encloses_it(segmentation: Any, box: Any) -> None:
    assert box_of_segmentation(segmentation) == box


@pytest.mark.parametrize("side", [0, -1, 10**6, 10**18])
def test_a_run_length_code_of_an_impossible_size_has_no_box(side: int) -> None:
    with pytest.raises(SegmentationError):
        box_of_segmentation({"size": [side, side], "counts": [side * side]})


@pytest.mark.parametrize(
    "counts", [[15], [17], [-1, 17], [3, 9999], "11", "", "0P1", b"\xff", "o" * 30]
)
def test_runs_that_do_not_fill_the_image_are_refused(counts: Any) -> None:
    with pytest.raises(AnnotationError, match=r"^segmentation must "):
        rle_from_segmentation({"size": [4, 4], "counts": counts}, 4, 4)


def test_another_size_is_refused() -> None:
    told = r"size \[5, 4\] for an image of height 4 and width 5"
    with pytest.raises(AnnotationError, match=told):
        rle_from_segmentation({"size": [5, 4], "counts": [20]}, 4, 5)
