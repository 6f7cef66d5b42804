from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mal.data.segmentations import mask_from_rle, rle_from_segmentation
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
    "segmentation",
    [
        [[1, 2]],
        [[]],
        [],
        [{"a": 1}],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [1, 2, 3, 4, 5, 6],
        [["a"] * 6],
        [[float("nan")] * 6],
        [[0, 0, 4, 0, 4, 4], [1, 2, 3, 4]],
        "text",
        5,
        {"counts": "P1"},
        {"size": [4, 4]},
        {"size": 4, "counts": [16]},
        {"size": [4, 4], "counts": "Ö"},
        {"size": [4, 4], "counts": ["a"]},
    ],
    ids=str,
)
def test_what_is_no_segmentation_says_so(segmentation: Any) -> None:
    with pytest.raises(AnnotationError, match=r"^segmentation must be COCO polygons or RLE, got "):
        rle_from_segmentation(segmentation, 4, 4)


@pytest.mark.parametrize(
    "counts", [[15], [17], [-1, 17], [3, 9999], "11", "", "0P1", b"\xff", "o" * 30]
)
def test_runs_that_do_not_fill_the_image_are_refused(counts: Any) -> None:
    with pytest.raises(AnnotationError, match=r"^segmentation must "):
        rle_from_segmentation({"size": [4, 4], "counts": counts}, 4, 4)


def test_another_size_is_refused() -> None:
    with pytest.raises(AnnotationError, match="image's size 4 x 5, got \\[5, 4\\]"):
        rle_from_segmentation({"size": [5, 4], "counts": [20]}, 4, 5)
