from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mal.labeling.connected import grow, keep_largest_part

DRAWN = [
    pytest.param(["....", "...."], ["....", "...."], id="empty"),
    pytest.param(["##..", "##.#"], ["##..", "##.."], id="a speck beside a block"),
    pytest.param(["#..#", "#.##"], ["...#", "..##"], id="the larger of two"),
    pytest.param(
        ["#####", "#...#", "#.#.#", "#...#", "#####"],
        ["#####", "#...#", "#...#", "#...#", "#####"],
        id="a ring around a dot",
    ),
]


def _mask(rows: list[str]) -> NDArray[np.bool_]:
    return np.array([[cell == "#" for cell in row] for row in rows])


@pytest.mark.parametrize(("drawn", "expected"), DRAWN)
def test_only_the_largest_part_stays(drawn: list[str], expected: list[str]) -> None:
    assert np.array_equal(keep_largest_part(_mask(drawn)), _mask(expected))


def test_corners_do_not_touch() -> None:
    assert keep_largest_part(_mask(["#.", ".#"])).sum() == 1


def test_a_winding_part_is_one() -> None:
    snake = _mask(["#####", "....#", "#####", "#....", "#####"])
    assert np.array_equal(keep_largest_part(snake), snake)


def _largest_by_flooding(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what version 0.1.0 kept: highest pixel numbers spread until nothing changes."""
    number_HW = np.where(mask_HW, np.arange(1, mask_HW.size + 1).reshape(mask_HW.shape), 0)
    while True:
        spread_HW = _highest_around(number_HW)
        spread_HW[~mask_HW] = 0
        if np.array_equal(spread_HW, number_HW):
            break
        number_HW = spread_HW
    numbers, sizes = np.unique(number_HW[mask_HW], return_counts=True)
    return mask_HW if len(numbers) == 0 else number_HW == numbers[np.argmax(sizes)]


def _grown_by_flooding(seed_HW: NDArray[np.bool_], mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    part_HW = seed_HW
    while True:
        spread_HW = (_highest_around(part_HW) & mask_HW) | seed_HW
        if np.array_equal(spread_HW, part_HW):
            return part_HW
        part_HW = spread_HW


def _highest_around(value_HW: NDArray[Any]) -> NDArray[Any]:
    highest_HW = value_HW.copy()
    np.maximum(highest_HW[1:], value_HW[:-1], out=highest_HW[1:])
    np.maximum(highest_HW[:-1], value_HW[1:], out=highest_HW[:-1])
    np.maximum(highest_HW[:, 1:], value_HW[:, :-1], out=highest_HW[:, 1:])
    np.maximum(highest_HW[:, :-1], value_HW[:, 1:], out=highest_HW[:, :-1])
    return highest_HW


_SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
_MASKS = arrays(np.bool_, _SIZES)
_SEEDS_AND_MASKS = _SIZES.flatmap(
    lambda size: st.tuples(arrays(np.bool_, size), arrays(np.bool_, size))
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(_MASKS)
def test_the_part_kept_is_that_of_a_flood(mask_HW: NDArray[np.bool_]) -> None:
    assert np.array_equal(keep_largest_part(mask_HW), _largest_by_flooding(mask_HW))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(_SEEDS_AND_MASKS)
def test_seeds_grow_as_a_flood_does(pair: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> None:
    seed_HW, mask_HW = pair
    assert np.array_equal(grow(seed_HW, mask_HW), _grown_by_flooding(seed_HW, mask_HW))


@pytest.mark.parametrize("density", [0.4, 0.6, 0.9])
def test_large_random_masks_are_cut_as_by_a_flood(density: float) -> None:
    mask_HW = np.random.default_rng(0).random((97, 64)) < density
    assert np.array_equal(keep_largest_part(mask_HW), _largest_by_flooding(mask_HW))
