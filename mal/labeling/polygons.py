"""Polygons of masks: their corners are corners of pixels, so that they cover the mask exactly.

COCO's, YOLO's and Label Studio's polygons know no holes. A hole is joined to its outline by a
bridge: a vertical cut of no width, which the polygon follows down and up again.

Shape letters: H, W a window; K corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.data.annotations import Rle
from mal.labeling.coco_rle import window_from_rle

Point = tuple[int, int]
Ring = list[Point]


@dataclass(frozen=True)
class Outline:
    """A connected part of a mask: its outer ring, and the rings of its holes."""

    outer: Ring
    holes: tuple[Ring, ...] = ()


def polygons_from_rle(rle: Rle) -> list[list[float]]:
    """Return COCO polygons of a mask, one for each connected part; [] for an empty mask."""
    return [[float(side) for point in ring for side in point] for ring in rings_from_rle(rle)]


def rings_from_rle(rle: Rle) -> list[Ring]:
    """Return one ring for each connected part of a mask, with bridges to its holes."""
    return [bridged(outline) for outline in outlines_from_rle(rle)]


def outlines_from_rle(rle: Rle) -> list[Outline]:
    """Return the outlines of the connected parts of a mask, in pixels of its image."""
    mask_HW, offset_xy = window_from_rle(rle)
    return outlines_of_mask(mask_HW, offset_xy) if mask_HW.size else []


def outlines_of_mask(mask_HW: NDArray[np.bool_], offset_xy: Point = (0, 0)) -> list[Outline]:
    """Return the outlines of the parts whose pixels share edges.

    Args:
        mask_HW: True inside.
        offset_xy: Position of the mask in its image, px.
    """
    outers: list[Ring] = []
    holes: list[Ring] = []
    for ring, is_outer in _rings_of(mask_HW):
        (outers if is_outer else holes).append(ring)
    holes_of: list[list[Ring]] = [[] for _ in outers]
    for hole in holes:
        holes_of[_part_around(hole, outers)].append(hole)
    return [
        Outline(_moved(outer, offset_xy), tuple(_moved(hole, offset_xy) for hole in of_part))
        for outer, of_part in zip(outers, holes_of, strict=True)
    ]


def bridged(outline: Outline) -> Ring:
    """Return an outline as one ring that visits its holes over bridges."""
    ring = list(outline.outer)
    # The bridge goes up from the hole's first corner, which is its topmost: what it meets first is
    # the outline or a hole that starts further up, and so is part of the ring already.
    for hole in sorted(outline.holes, key=lambda corners: (corners[0][1], corners[0][0])):
        x, y = hole[0]
        index, edge_y = _edge_above(ring, x, y)
        # Against the direction of the outline: fills by winding number and areas need that.
        ring[index + 1 : index + 1] = [(x, edge_y), (x, y), *hole[:0:-1], (x, y), (x, edge_y)]
    return ring


def joined(rings: Sequence[Ring]) -> Ring:
    """Return several rings as one, connected by cuts between their nearest corners."""
    ring, *rest = rings
    ring = list(ring)
    for other in rest:
        mine, theirs = np.array(ring), np.array(other)
        # Of large rings some corners are enough to find a short cut.
        step_mine, step_theirs = len(mine) // 300 + 1, len(theirs) // 300 + 1
        distance = ((mine[::step_mine, None] - theirs[None, ::step_theirs]) ** 2).sum(axis=2)
        row, column = np.unravel_index(int(distance.argmin()), distance.shape)
        at, start = int(row) * step_mine, int(column) * step_theirs
        ring[at + 1 : at + 1] = [*other[start:], *other[: start + 1], ring[at]]
    return ring


def _rings_of(mask_HW: NDArray[np.bool_]) -> list[tuple[Ring, bool]]:
    """Return the closed rings between inside and outside, and whether each is an outer one.

    Each starts with its topmost corner, of these the leftmost, and goes right from there.
    """
    x_K, y_K, goes_right_K, goes_down_K, has_pixel_K = _corners_of(mask_HW)
    # On a line of corners, edges connect the first with the second, the third with the fourth...
    # A corner that two diagonal pixels share occurs twice; its edges keep to one pixel.
    row_K = np.lexsort((goes_right_K, x_K, y_K))
    column_K = np.lexsort((goes_down_K, y_K, x_K))
    across_K, along_K = np.empty_like(row_K), np.empty_like(row_K)
    across_K[row_K[::2]], across_K[row_K[1::2]] = row_K[1::2], row_K[::2]
    along_K[column_K[::2]], along_K[column_K[1::2]] = column_K[1::2], column_K[::2]
    points = list(zip(x_K.tolist(), y_K.tolist(), strict=True))
    across, along, has_pixel = across_K.tolist(), along_K.tolist(), has_pixel_K.tolist()
    is_visited = bytearray(len(points))
    rings: list[tuple[Ring, bool]] = []
    for start in row_K.tolist():
        if is_visited[start]:
            continue
        ring: Ring = []
        corner = start
        while not is_visited[corner]:
            opposite = across[corner]
            is_visited[corner] = is_visited[opposite] = 1
            ring += (points[corner], points[opposite])
            corner = along[opposite]
        rings.append((ring, has_pixel[start]))
    return rings


def _corners_of(mask_HW: NDArray[np.bool_]) -> tuple[NDArray[Any], ...]:
    """Return x and y of each corner, where its edges lead, and whether the pixel there is inside.

    Edges lead left or right, and up or down; the pixel is the one that lies right and below.
    """
    padded = np.pad(mask_HW.astype(np.uint8), 1)
    # Bits of the four pixels around a corner: 1 left above, 2 right above, 4 left below, 8 right
    # below.
    code = padded[:-1, :-1] | padded[:-1, 1:] << 1 | padded[1:, :-1] << 2 | padded[1:, 1:] << 3
    y_K, x_K = np.nonzero(_LEADS[code, 0] >= 0)
    first_K = code[y_K, x_K]
    is_shared_K = _LEADS[first_K, 1] >= 0
    x_K, y_K = np.append(x_K, x_K[is_shared_K]), np.append(y_K, y_K[is_shared_K])
    lead_K = np.append(_LEADS[first_K, 0], _LEADS[first_K[is_shared_K], 1])
    has_pixel_K = (code[y_K, x_K] & 8) > 0
    return x_K, y_K, (lead_K & 1) > 0, (lead_K & 2) > 0, has_pixel_K


def _leads_of_codes() -> NDArray[np.int8]:
    """Return where the edges of a corner lead, by the code of its pixels: 1 right, 2 down.

    -1: no corner. The second column is that of a second corner at the same point.
    """
    leads = np.full((16, 2), -1, dtype=np.int8)
    for lead, code in ((0, 1), (1, 2), (2, 4), (3, 8)):
        leads[code, 0] = leads[15 - code, 0] = lead
    leads[1 | 8] = 0, 3
    leads[2 | 4] = 1, 2
    return leads


_LEADS = _leads_of_codes()


def _part_around(hole: Ring, outers: Sequence[Ring]) -> int:
    """Return the index of the ring that a hole is cut out of: the innermost around it."""
    if len(outers) == 1:
        return 0
    x, y = hole[0][0] + 0.5, hole[0][1] - 0.5  # the pixel above the hole's first one
    around = [index for index, outer in enumerate(outers) if _is_inside(x, y, outer)]
    return min(around, key=lambda index: _area_of(outers[index]))


def _is_inside(x: float, y: float, ring: Ring) -> bool:
    corners = np.array(ring)
    # Edges lie between corners 0-1, 2-3...; a ray upwards crosses those across its column.
    left = np.minimum(corners[::2, 0], corners[1::2, 0])
    right = np.maximum(corners[::2, 0], corners[1::2, 0])
    return bool(np.count_nonzero((left < x) & (x < right) & (corners[::2, 1] < y)) % 2)


def _area_of(ring: Ring) -> float:
    corners = np.array(ring, dtype=np.float64)
    x, y = corners.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _edge_above(ring: Ring, x: int, y: int) -> tuple[int, int]:
    """Return the nearest horizontal edge above a point: index of its first corner, and its y."""
    corners = np.array([*ring, ring[0]])
    first, second = corners[:-1], corners[1:]
    is_above = (
        (first[:, 1] == second[:, 1])
        & (first[:, 1] < y)
        & (np.minimum(first[:, 0], second[:, 0]) <= x)
        & (np.maximum(first[:, 0], second[:, 0]) >= x)
    )
    candidates = np.flatnonzero(is_above)
    index = int(candidates[first[candidates, 1].argmax()])
    return index, int(first[index, 1])


def _moved(ring: Ring, offset_xy: Point) -> Ring:
    left, top = offset_xy
    return [(x + left, y + top) for x, y in ring]
