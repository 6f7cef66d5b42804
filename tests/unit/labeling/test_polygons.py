"""Polygons cover their masks exactly, with holes and parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mal.labeling.coco_rle import window_from_rle
from mal.labeling.polygons import joined, outlines_from_rle, polygons_from_rle, rings_from_rle


def rle_of(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    return dict(coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8))))


def drawn(rows: str) -> NDArray[np.bool_]:
    return np.array([[char == "#" for char in row] for row in rows.split()])


def shoelace(ring: list[tuple[int, int]]) -> float:
    x, y = np.array(ring, dtype=np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.booleans())


@given(masks)
def test_pycocotools_draws_the_mask_from_its_polygons(mask_HW: NDArray[np.bool_]) -> None:
    rle = rle_of(mask_HW)
    polygons: Any = polygons_from_rle(rle)
    if not mask_HW.any():
        assert polygons == []
        return
    drawn_again = coco_mask.merge(coco_mask.frPyObjects(polygons, *mask_HW.shape))
    assert np.array_equal(coco_mask.decode(drawn_again), mask_HW)


@given(masks)
def test_rings_enclose_the_pixels_of_the_mask_less_those_of_its_holes(
    mask_HW: NDArray[np.bool_],
) -> None:
    rings = rings_from_rle(rle_of(mask_HW))
    assert sum(shoelace(ring) for ring in rings) == mask_HW.sum()
    if rings:
        assert shoelace(joined(rings)) == mask_HW.sum()


@given(masks, st.integers(0, 5), st.integers(0, 5))
def test_a_window_is_the_part_of_the_mask_in_its_extent(
    mask_HW: NDArray[np.bool_], left: int, top: int
) -> None:
    padded = np.pad(mask_HW, ((top, 2), (left, 1)))
    window_HW, (x, y) = window_from_rle(rle_of(padded))
    pasted = np.zeros_like(padded)
    height, width = window_HW.shape
    pasted[y : y + height, x : x + width] = window_HW
    assert np.array_equal(pasted, padded)


@pytest.mark.parametrize(
    ("rows", "num_parts", "num_holes"),
    [
        pytest.param("####", 1, 0, id="solid"),
        pytest.param("### #.# ###", 1, 1, id="hole"),
        pytest.param("##### #.#.# #####", 1, 2, id="two holes"),
        pytest.param("#. .#", 2, 0, id="diagonal pixels are two parts"),
        pytest.param("##### #...# #.#.# #...# #####", 2, 1, id="a part in a hole"),
        pytest.param("#### #.## ##.# ####", 1, 1, id="diagonal pixels of a hole are one hole"),
    ],
)
def test_parts_and_holes_are_told_apart(rows: str, num_parts: int, num_holes: int) -> None:
    outlines = outlines_from_rle(rle_of(drawn(rows)))
    assert len(outlines) == num_parts
    assert sum(len(outline.holes) for outline in outlines) == num_holes
