from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mal.data.transforms import augment_colours


def crop(size_px: int = 12) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)


@given(st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=50)
def test_the_same_generator_state_changes_a_crop_alike(seed: int, rate: float) -> None:
    original = crop()
    first = augment_colours(original, rate, np.random.default_rng(seed))
    second = augment_colours(original, rate, np.random.default_rng(seed))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(original, crop())
    assert first.shape == original.shape
    assert first.dtype == np.uint8


@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_rate_zero_changes_nothing(seed: int) -> None:
    changed = augment_colours(crop(), 0.0, np.random.default_rng(seed))
    np.testing.assert_array_equal(changed, crop())


@pytest.mark.parametrize(("rate", "share"), [(1.0, 0.8), (0.5, 0.4875)])
def test_crops_change_as_often_as_the_probabilities_say(rate: float, share: float) -> None:
    rng = np.random.default_rng(3)
    changed = [bool((augment_colours(crop(), rate, rng) != crop()).any()) for _ in range(400)]
    assert np.mean(changed) == pytest.approx(share, abs=0.08)


def test_a_fifth_of_the_crops_is_grey() -> None:
    rng = np.random.default_rng(4)
    crops = [augment_colours(crop(), 1.0, rng) for _ in range(400)]
    assert np.mean([bool((c == c[..., :1]).all()) for c in crops]) == pytest.approx(0.2, abs=0.06)


def test_geometry_stays() -> None:
    """A bright spot stays where it is, whatever is drawn."""
    image = np.zeros((15, 15, 3), dtype=np.uint8)
    image[3, 11] = 255
    for seed in range(40):
        brightness = augment_colours(image, 1.0, np.random.default_rng(seed)).sum(axis=2)
        assert np.unravel_index(brightness.argmax(), brightness.shape) == (3, 11)
