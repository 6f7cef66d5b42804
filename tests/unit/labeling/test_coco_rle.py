"""RLE of a window against pycocotools' RLE of the pasted full image."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mal.data.annotations import Rle
from mal.labeling.coco_rle import (
    area_of_rle,
    box_rle,
    ellipse_rle,
    empty_rle,
    ious_with_rle,
    mask_from_rle,
    rle_from_window_mask,
    rle_to_json,
)


def paste(mask: Any, window: Sequence[int], height: int, width: int) -> NDArray[np.uint8]:
    """Build the full-image mask the slow way."""
    left, top, _, _ = window
    full = np.zeros((height, width), dtype=np.uint8)
    for row, column in zip(*np.nonzero(mask), strict=True):
        y, x = top + row, left + column
        if 0 <= y < height and 0 <= x < width:
            full[y, x] = 1
    return full


def oracle(full: Any) -> Rle:
    return dict(coco_mask.encode(np.asfortranarray(full.astype(np.uint8))))


def drawing(*rows: str) -> NDArray[np.bool_]:
    return np.array([[cell == "#" for cell in row] for row in rows])


@st.composite
def windows(draw: st.DrawFn) -> Any:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    left, top = draw(st.integers(-6, 13)), draw(st.integers(-6, 13))
    shape = (draw(st.integers(0, 14)), draw(st.integers(0, 14)))
    mask = draw(
        st.one_of(
            np_st.arrays(np.bool_, shape),
            np_st.arrays(np.uint8, shape, elements=st.integers(0, 255)),
            st.just(np.ones(shape, dtype=np.bool_)),
        )
    )
    return mask, (left, top, left + shape[1], top + shape[0]), height, width


@settings(max_examples=400, deadline=None)
@given(windows())
def test_window_rle_equals_the_rle_of_the_pasted_image(case: Any) -> None:
    mask, window, height, width = case
    expected = oracle(paste(mask, window, height, width))
    rle = rle_from_window_mask(mask, window, height, width)
    assert rle["counts"] == expected["counts"]
    assert list(rle["size"]) == list(expected["size"])


@pytest.mark.parametrize(
    ("mask", "window", "size"),
    [
        pytest.param(drawing("####"), (0, 0, 4, 1), (1, 4), id="whole image of one row"),
        pytest.param(drawing("##", "##"), (1, 0, 3, 2), (2, 4), id="full-height columns merge"),
        pytest.param(drawing(".#", "##"), (2, 2, 4, 4), (4, 4), id="last pixel of the image"),
        pytest.param(drawing("#.", ".."), (0, 0, 2, 2), (4, 4), id="first pixel of the image"),
        pytest.param(drawing("#..#", ".##.", "#..#"), (1, 1, 5, 4), (6, 8), id="several runs"),
        pytest.param(drawing("##", "##"), (9, 9, 11, 11), (4, 4), id="window outside the image"),
        pytest.param(drawing("..", ".."), (1, 1, 3, 3), (4, 4), id="empty mask"),
    ],
)
def test_hand_drawn_masks_encode_like_pycocotools(
    mask: NDArray[np.bool_], window: Sequence[int], size: tuple[int, int]
) -> None:
    rle = rle_from_window_mask(mask, window, *size)
    assert rle["counts"] == oracle(paste(mask, window, *size))["counts"]


def test_large_image_encodes_like_pycocotools() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((300, 200)) > 0.5
    full = np.zeros((3000, 4000), dtype=np.uint8)
    full[2700:, 3800:] = mask
    rle = rle_from_window_mask(mask, (3800, 2700, 4000, 3000), 3000, 4000)
    assert rle["counts"] == oracle(full)["counts"]


def test_mask_of_another_size_than_its_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window's size"):
        rle_from_window_mask(np.ones((2, 2), dtype=np.bool_), (0, 0, 3, 2), 8, 8)


def test_empty_rle_has_no_pixels() -> None:
    assert empty_rle(4, 5)["counts"] == oracle(np.zeros((4, 5)))["counts"]
    assert area_of_rle(empty_rle(4, 5)) == 0


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        pytest.param((1, 1, 2, 2), ("....", ".##.", ".##.", "...."), id="whole pixels"),
        pytest.param((0.4, 0.6, 2, 1), ("....", "##..", "....", "...."), id="rounded to centres"),
        pytest.param((2, 2, 9, 9), ("....", "....", "..##", "..##"), id="beyond the image"),
        pytest.param((-3, -3, 4.0, 4.0), ("#...", "....", "....", "...."), id="before the image"),
        pytest.param((1.6, 1.6, 0.5, 0.5), ("....",) * 4, id="between centres"),
    ],
)
def test_box_mask_holds_the_pixel_centres_of_the_box(
    box: tuple[float, float, float, float], expected: tuple[str, ...]
) -> None:
    np.testing.assert_array_equal(mask_from_rle(box_rle(box, 4, 4)), drawing(*expected))


def test_ellipse_mask_cuts_the_corners() -> None:
    expected = drawing(
        "........",
        "..####..",
        ".######.",
        ".######.",
        ".######.",
        ".######.",
        "..####..",
        "........",
    )
    np.testing.assert_array_equal(mask_from_rle(ellipse_rle((1, 1, 6, 6), 8, 8)), expected)


@settings(max_examples=100, deadline=None)
@given(st.tuples(st.floats(-5, 15), st.floats(-5, 15), st.floats(0.01, 20), st.floats(0.01, 20)))
def test_ellipse_lies_in_its_box_and_fills_pi_quarters_of_large_ones(
    box: tuple[float, float, float, float],
) -> None:
    ellipse, filled = ellipse_rle(box, 16, 20), box_rle(box, 16, 20)
    assert not np.any(mask_from_rle(ellipse) & ~mask_from_rle(filled))
    large = area_of_rle(ellipse_rle((3.3, 2.2, 300, 200), 400, 400))
    assert large == pytest.approx(np.pi / 4 * 300 * 200, rel=1e-3)


@settings(max_examples=100, deadline=None)
@given(np_st.arrays(np.bool_, (6, 5)), np_st.arrays(np.bool_, (6, 5)))
def test_iou_and_area_equal_those_of_the_arrays(first: Any, second: Any) -> None:
    whole = (0, 0, 5, 6)
    rle, other = (rle_from_window_mask(mask, whole, 6, 5) for mask in (first, second))
    union = np.count_nonzero(first | second)
    expected = np.count_nonzero(first & second) / union if union else 0.0
    assert ious_with_rle([rle], other)[0] == pytest.approx(expected)
    assert area_of_rle(rle) == np.count_nonzero(first)


def test_iou_of_different_image_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="one image's size"):
        ious_with_rle([empty_rle(4, 4)], empty_rle(4, 5))


def test_json_form_survives_a_file_and_decodes_to_the_same_mask() -> None:
    mask = drawing("#..#", ".##.", "####", "#...")
    rle = rle_from_window_mask(mask, (0, 0, 4, 4), 4, 4)
    read_back = json.loads(json.dumps(rle_to_json(rle)))
    assert isinstance(read_back["counts"], str)
    np.testing.assert_array_equal(mask_from_rle(read_back), mask)
    assert ious_with_rle([read_back], rle)[0] == 1.0
