"""Labelled points of annotations: positions that lie on the object, or off it.

Points are continuous like boxes: the pixel in column i and row j covers [i, i + 1) x [j, j + 1).

Shape letters: N annotations, P points of all annotations, K points of one annotation, or the
largest K of any.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mal.data.problems import Problems
from mal.errors import AnnotationError
from mal.shown import shown

ON, OFF, NO_POINT = 1, 0, -1
NO_BOX = (math.nan,) * 4

LabelledPoint = tuple[float, float, int]

BAD_POINTS = "points that are not [x, y, label] each"
BAD_LABEL = "label of a point that is neither 0 nor 1"
CONTRADICTION = "points of one pixel with both labels"
REFUSED_POINTS = (BAD_POINTS, BAD_LABEL, CONTRADICTION)

_MAX_COORDINATE_PX = 1e9
_REMEDY = "Write [[x, y, label], ...] in pixels, label 1 on the object and 0 off it."
_RULE_AND_REMEDY = {
    BAD_POINTS: ("points must be [x, y, label] each", _REMEDY),
    BAD_LABEL: ("label of a point must be 0 or 1", _REMEDY),
    CONTRADICTION: ("points of a pixel must agree", "Delete one of the two."),
}


class PointsError(AnnotationError):
    """Points from which a network would learn the opposite of what the user meant.

    Attributes:
        kind: One of REFUSED_POINTS.
        got: The bad value as text.
    """

    def __init__(self, kind: str, got: str, name: str) -> None:
        self.kind = kind
        self.got = got
        rule, remedy = _RULE_AND_REMEDY[kind]
        super().__init__(f"{rule}, got {got} in {name}. {remedy}")


@dataclass(frozen=True)
class PointPrompts:
    """The points of all annotations in one array.

    Attributes:
        xy_P2: Pixels, float64.
        label_P: 1 on the object, 0 off it.
        start_N1: The points of annotation i are those from start[i] to start[i + 1].
        is_without_box_N: True for annotations with points only; their box is estimated.
    """

    xy_P2: NDArray[np.float64]
    label_P: NDArray[np.int64]
    start_N1: NDArray[np.int64]
    is_without_box_N: NDArray[np.bool_]

    @classmethod
    def from_lists(
        cls, points_of_each: Iterable[Sequence[LabelledPoint]], is_without_box: Iterable[bool]
    ) -> PointPrompts:
        """Join the points of every annotation."""
        columns = PointColumns()
        for points, is_without in zip(points_of_each, is_without_box, strict=True):
            columns.add(points, has_box=not is_without)
        return columns.joined()

    def __len__(self) -> int:
        return len(self.is_without_box_N)

    @property
    def count_N(self) -> NDArray[np.int64]:  # noqa: N802 - a shape letter
        """The number of points of each annotation."""
        return np.diff(self.start_N1)

    def count_of(self, index: int) -> int:
        """Return the number of points of one annotation, without counting all."""
        return int(self.start_N1[index + 1] - self.start_N1[index])

    @property
    def owner_P(self) -> NDArray[np.int64]:  # noqa: N802 - a shape letter
        """The annotation of each point."""
        return np.repeat(np.arange(len(self)), self.count_N)

    @property
    def has_point_on_N(self) -> NDArray[np.bool_]:  # noqa: N802 - a shape letter
        """Whether each annotation has a point on its object."""
        return np.bincount(self.owner_P[self.label_P == ON], minlength=len(self)) > 0

    @functools.cached_property
    def max_count(self) -> int:
        """The largest number of points of any annotation."""
        return int(self.count_N.max(initial=0))

    def of(self, index: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the points of an annotation, (K, 2), and their labels, (K,)."""
        own = slice(int(self.start_N1[index]), int(self.start_N1[index + 1]))
        return self.xy_P2[own], self.label_P[own]

    def select(self, rows: NDArray[np.int64]) -> Self:
        """Return the points of these annotations only."""
        counts = self.count_N[rows]
        start_N1 = _starts(counts)
        kept = np.repeat(self.start_N1[rows] - start_N1[:-1], counts) + np.arange(start_N1[-1])
        return type(self)(
            self.xy_P2[kept], self.label_P[kept], start_N1, self.is_without_box_N[rows]
        )

    def without_unusable(
        self,
        box_xywh_N4: NDArray[np.float64],
        image_size_N2: NDArray[np.int64],
        names: Sequence[str],
        problems: Problems,
    ) -> Self:
        """Leave out points outside their image, and points on the object outside its box.

        Args:
            box_xywh_N4: NaN for objects without a box, whose points may lie anywhere.
            image_size_N2: Width and height, px.
            names: The annotations' names for `problems`.
            problems: Gets what is left out.
        """
        owner_P = self.owner_P
        low_P2 = box_xywh_N4[owner_P, :2]
        high_P2 = low_P2 + box_xywh_N4[owner_P, 2:]
        is_outside_P = np.any((self.xy_P2 < 0) | (self.xy_P2 >= image_size_N2[owner_P]), axis=1)
        is_beyond_P = np.any((self.xy_P2 < low_P2) | (self.xy_P2 > high_P2), axis=1)
        is_beyond_P &= (self.label_P == ON) & ~is_outside_P
        for kind, is_bad_P in (
            ("point outside its image", is_outside_P),
            ("point on the object, but outside its box", is_beyond_P),
        ):
            for index in np.flatnonzero(is_bad_P).tolist():
                x, y = self.xy_P2[index].tolist()
                problems.add(kind, f"({x:g}, {y:g}) of {names[owner_P[index]]}")
        is_good_P = ~(is_outside_P | is_beyond_P)
        counts = np.bincount(owner_P[is_good_P], minlength=len(self))
        return type(self)(
            self.xy_P2[is_good_P], self.label_P[is_good_P], _starts(counts), self.is_without_box_N
        )


class PointColumns:
    """Collects points while a file is read."""

    def __init__(self) -> None:
        self._values = array("d")
        self._counts = array("q")
        self._is_without_box = array("b")

    def __bool__(self) -> bool:
        return bool(self._values)

    def add(self, points: Sequence[LabelledPoint], *, has_box: bool) -> None:
        """Add the points of the next annotation."""
        for point in points:
            self._values.extend(point)
        self._counts.append(len(points))
        self._is_without_box.append(not has_box)

    def joined(self) -> PointPrompts:
        """Return the points of all annotations."""
        values_P3 = np.array(self._values, dtype=np.float64).reshape(-1, 3)
        return PointPrompts(
            xy_P2=values_P3[:, :2],
            label_P=values_P3[:, 2].astype(np.int64),
            start_N1=_starts(np.array(self._counts, dtype=np.int64)),
            is_without_box_N=np.array(self._is_without_box, dtype=np.bool_),
        )


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def parse_points(value: Any, name: str) -> list[LabelledPoint]:
    """Read the field `points` of an annotation; None and [] are no points.

    Args:
        value: The field as JSON gives it.
        name: The annotation's name for errors.

    Raises:
        PointsError: The value is not a list of [x, y, label], a label is neither 0 nor 1, or one
            pixel has two labels.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(is_labelled_point(point) for point in value):
        raise PointsError(BAD_POINTS, shown(value), name)
    label_of_pixel: dict[tuple[int, int], int] = {}
    for x, y, label in value:
        if label not in (ON, OFF):
            raise PointsError(BAD_LABEL, f"{shown(label)} at ({x:g}, {y:g})", name)
        pixel = math.floor(x), math.floor(y)
        if label_of_pixel.setdefault(pixel, label) != label:
            raise PointsError(CONTRADICTION, f"labels 0 and 1 at {pixel}", name)
    return [(float(x), float(y), int(label)) for x, y, label in value]


def is_labelled_point(point: Any) -> bool:
    """Return whether a value is three numbers that a pixel of an image can have."""
    return (
        isinstance(point, list | tuple)
        and len(point) == 3
        and all(
            isinstance(number, int | float) and abs(number) <= _MAX_COORDINATE_PX
            for number in point
        )
    )


def is_without_box(annotation: Mapping[str, Any]) -> bool:
    """Return whether an annotation has points only; some tools write four zeros for "no box"."""
    bbox = annotation.get("bbox")
    return bool(annotation.get("points")) and (not bbox or bbox == [0, 0, 0, 0])


def points_in_unit_window(
    prompts: PointPrompts, index: int, window: tuple[int, int, int, int]
) -> NDArray[np.float32]:
    """Return an annotation's points in a crop window, (K, 3): x and y as 0..1 of it, and the label.

    K is that of the annotation with the most points. Rows beyond the annotation's own points, and
    points outside the window, have the label NO_POINT.
    """
    unit_K3 = np.zeros((prompts.max_count, 3), dtype=np.float32)
    unit_K3[:, 2] = NO_POINT
    xy_K2, label_K = prompts.of(index)
    x0, y0, x1, y1 = window
    unit_K2 = (xy_K2 - [x0, y0]) / [x1 - x0, y1 - y0]
    is_inside_K = np.all((unit_K2 >= 0) & (unit_K2 <= 1), axis=1)
    unit_K3[: len(xy_K2), :2] = np.where(is_inside_K[:, None], unit_K2, 0)
    unit_K3[: len(xy_K2), 2] = np.where(is_inside_K, label_K, NO_POINT)
    return unit_K3
