from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mal.data.crops import (
    Window,
    cut_window,
    prediction_window,
    sample_training_window,
    unit_box_in_window,
    xyxy_from_xywh,
)
from mal.spec import ExperimentSpec

seeds = st.integers(0, 2**32)
coordinates = st.floats(-500, 500)
sides = st.floats(0.01, 800)


@st.composite
def boxes_xyxy(draw: st.DrawFn) -> NDArray[np.float64]:
    x, y, w, h = draw(coordinates), draw(coordinates), draw(sides), draw(sides)
    return np.array([x, y, x + w, y + h])


@st.composite
def windows(draw: st.DrawFn, reach: int = 12) -> Window:
    x0, y0 = draw(st.integers(-reach, reach)), draw(st.integers(-reach, reach))
    return x0, y0, x0 + draw(st.integers(1, 16)), y0 + draw(st.integers(1, 16))


def sample(
    box_xyxy: NDArray[np.float64], seed: int, *, rate: list[float] | None = None, jitter: float = 0
) -> Window:
    spec = ExperimentSpec()
    spec.dataset.window_rate, spec.dataset.box_jitter = rate or [], jitter
    return sample_training_window(box_xyxy, spec.dataset, spec.train, np.random.default_rng(seed))


def assert_holds(window: Window, box_xyxy: NDArray[np.float64]) -> None:
    # Rounding of the box's own corners is in the order of 1e-13.
    assert np.all(np.array(window[:2]) <= box_xyxy[:2] + 1e-9)
    assert np.all(np.array(window[2:]) >= box_xyxy[2:] - 1e-9)


@given(boxes_xyxy(), seeds)
def test_a_margin_window_holds_the_whole_box(box: NDArray[np.float64], seed: int) -> None:
    assert_holds(sample(box, seed), box)


@given(boxes_xyxy(), seeds, st.floats(1, 3), st.floats(0, 1), st.floats(0, 1))
def test_a_jittered_window_holds_the_whole_box(
    box: NDArray[np.float64], seed: int, low: float, spread: float, jitter: float
) -> None:
    window = sample(box, seed, rate=[low, low + spread], jitter=jitter)
    assert_holds(window, box)
    side = np.array(window[2:]) - np.array(window[:2])
    assert np.all(side <= (box[2:] - box[:2]) * (low + spread) + 2)


@given(boxes_xyxy(), seeds)
def test_opposite_margins_share_one_budget(box: NDArray[np.float64], seed: int) -> None:
    largest_margin = ExperimentSpec().train.margin_rate[1]
    window = sample(box, seed)
    half = (box[2:] - box[:2]) / 2
    near = box[:2] - np.array(window[:2])
    far = np.array(window[2:]) - box[2:]
    # Each side gives way by less than a pixel of rounding, the far one by one more.
    assert np.all(near + far <= half * largest_margin + 3 + 1e-9)


def test_each_side_takes_the_whole_budget_at_times() -> None:
    box = np.array([1000.0, 1000.0, 3000.0, 3000.0])
    sampled = np.array([sample(box, seed) for seed in range(300)])
    moved = np.abs(sampled - box) / 1000
    assert np.all(moved.max(axis=0) > 0.9)
    assert np.all(moved.min(axis=0) < 0.05)


def test_jitter_moves_the_box_about_in_its_window() -> None:
    box = np.array([0.0, 0.0, 100.0, 50.0])
    sampled = np.array([sample(box, seed, rate=[2, 2], jitter=0.25) for seed in range(200)])
    shift = ((sampled[:, :2] + sampled[:, 2:]) / 2 - [50, 25]) / [100, 50]
    assert np.all(shift.max(axis=0) > 0.2)
    assert np.all(shift.min(axis=0) < -0.2)
    assert np.all(np.abs(shift) <= 0.27)


@given(boxes_xyxy(), st.floats(0, 3))
def test_the_prediction_window_is_symmetric_about_the_box(
    box: NDArray[np.float64], margin_rate: float
) -> None:
    window = prediction_window(box, margin_rate)
    assert_holds(window, box)
    margin = (box[2:] - box[:2]) / 2 * margin_rate / 2
    near, far = box[:2] - np.array(window[:2]), np.array(window[2:]) - box[2:]
    assert np.all(np.abs(near - margin) <= 1 + 1e-9)
    assert np.all(np.abs(far - margin - 1) <= 1 + 1e-9)


def test_the_prediction_window_of_a_drawn_box() -> None:
    assert prediction_window(np.array([10.0, 20.0, 30.0, 60.0]), 0.6) == (7, 14, 34, 67)


def test_coco_boxes_become_corners() -> None:
    boxes = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0]])
    assert xyxy_from_xywh(boxes).tolist() == [[1, 2, 4, 6], [0, 0, 1, 1]]


def pad_pixel_by_pixel(image: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    x0, y0, x1, y1 = window
    height, width = image.shape[:2]
    patch = np.zeros((y1 - y0, x1 - x0, *image.shape[2:]), dtype=np.uint8)
    for row in range(y0, y1):
        for column in range(x0, x1):
            if 0 <= row < height and 0 <= column < width:
                patch[row - y0, column - x0] = image[row, column]
    return patch


@given(windows(), st.booleans(), st.integers(1, 9), st.integers(1, 9), seeds)
def test_a_cut_equals_the_padded_patch_resized(
    window: Window, has_colour: bool, height: int, width: int, seed: int
) -> None:
    shape = (height, width, 3) if has_colour else (height, width)
    image = np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)
    patch = Image.fromarray(pad_pixel_by_pixel(image, window))
    expected = np.array(patch.resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(cut_window(image, window, 8), expected)


@given(
    st.sampled_from([1, 7, 24, 63, 64, 65, 90]),
    st.sampled_from([1, 8, 31, 64, 70, 130]),
    st.booleans(),
    seeds,
)
def test_enlarged_and_shrunk_cuts_are_pillows_to_the_byte(
    width: int, height: int, has_colour: bool, seed: int
) -> None:
    shape = (140, 100, 3) if has_colour else (140, 100)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    patch = Image.fromarray(image[5 : 5 + height, 3 : 3 + width])
    expected = np.array(patch.resize((64, 64), Image.Resampling.BILINEAR))
    found = cut_window(image, (3, 5, 3 + width, 5 + height), 64)
    np.testing.assert_array_equal(found, expected)


def test_a_cut_is_a_copy() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image.flags.writeable = False
    cut_window(image, (0, 0, 8, 8), 8)[:] = 1
    assert not image.any()


@given(st.integers(-9, 9), st.integers(-9, 9), seeds)
def test_a_cut_of_the_same_size_is_the_padded_patch(x: int, y: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(1, 256, (6, 5, 3), dtype=np.uint8)
    window = (x, y, x + 7, y + 7)
    np.testing.assert_array_equal(cut_window(image, window, 7), pad_pixel_by_pixel(image, window))


@given(windows(reach=40), boxes_xyxy())
def test_the_unit_box_is_the_visible_box_seen_from_the_window(
    window: Window, box: NDArray[np.float64]
) -> None:
    unit_box = unit_box_in_window(box, window, 64, 48).astype(np.float64)
    origin, side = np.array(window[:2]), np.array(window[2:]) - np.array(window[:2])
    back = np.concatenate([unit_box[:2] * side + origin, unit_box[2:] * side + origin])
    visible = np.clip(box, 0, [64, 48, 64, 48])
    np.testing.assert_allclose(back, visible, atol=1e-3)


@given(boxes_xyxy(), seeds)
def test_a_box_in_its_own_window_lies_within_it(box: NDArray[np.float64], seed: int) -> None:
    unit_box = unit_box_in_window(box, sample(box, seed), 1000, 1000)
    is_inside = np.clip(box, 0, 1000)
    if is_inside[0] < is_inside[2] and is_inside[1] < is_inside[3]:
        assert -1e-6 <= unit_box.min() <= unit_box.max() <= 1 + 1e-6


@pytest.mark.parametrize("side", [0.01, 1.0, 3.7])
def test_no_window_is_empty(side: float) -> None:
    box = np.array([5.0, 5.0, 5.0 + side, 5.0 + side])
    for window in (prediction_window(box, 0), sample(box, 0), sample(box, 0, rate=[1, 1])):
        assert window[2] - window[0] >= math.ceil(side)
        assert window[3] - window[1] >= math.ceil(side)
