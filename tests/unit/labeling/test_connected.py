from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mal.labeling.connected import keep_largest_part

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
