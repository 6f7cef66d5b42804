"""The annotations of a file as flat arrays: parsed one by one, then checked all together.

Shape letters: N annotations that could be parsed, I images, 4 = x, y, w, h in pixels.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.data.annotation_stream import Entry
from mal.data.image_table import ImageTable
from mal.data.points import (
    NO_BOX,
    LabelledPoint,
    PointColumns,
    PointPrompts,
    PointsError,
    is_without_box,
    parse_points,
)
from mal.data.problems import Problems

# What parsing an entry of any JSON may raise.
UNUSABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
MAX_BOX_RATE = 4.0
NO_POINT_ON_OBJECT = "annotation without a bbox or a point on the object"

_INT64 = np.iinfo(np.int64)


class AnnotationColumns:
    """The fields of the annotations, one array each.

    References are resolved when the whole file is known, because the list of images may come last.

    Args:
        path: The file's name for errors.
        refuse_points: Whether bad points are an error. If not, they are a problem, and the
            annotation is used without them.
    """

    def __init__(self, path: Path, *, refuse_points: bool = True) -> None:
        self.path = path
        self.refuse_points = refuse_points
        self.num_seen = 0
        self.position = array("q")
        self.annotation_id = array("q")
        self.image_id = array("q")
        self.category_id = array("q")
        self.box = array("d")
        self.is_crowd = array("b")
        # The annotation's byte range in the file; 0 bytes where it has no segmentation.
        self.start = array("q")
        self.num_bytes = array("q")
        self.points = PointColumns()

    def add(self, position: int, entry: Entry, problems: Problems) -> None:
        """Parse an annotation, or add to `problems` why that fails.

        Raises:
            PointsError: Its points are bad, and `refuse_points` is set.
        """
        self.num_seen += 1
        value = entry.value
        name = f"annotations[{position}]"
        try:
            annotation_id = int64_from(value.get("id", position + 1))
            name = f"annotation {annotation_id}"
            image_id = int64_from(value["image_id"])
            category_id = int64_from(value.get("category_id", 1))
            has_box = not is_without_box(value)
            box_xywh = _box_from(value["bbox"]) if has_box else NO_BOX
        except UNUSABLE:
            problems.add("annotation without image_id or a bbox of numbers", name)
            return
        if has_box and (len(box_xywh) != 4 or not all(map(math.isfinite, box_xywh))):
            problems.add("bbox that is not four finite numbers", name)
            return
        points = self._points_from(value.get("points"), name, problems)
        if not points and not has_box:
            return
        self.points.add(points, has_box=has_box)
        self.position.append(position)
        self.annotation_id.append(annotation_id)
        self.image_id.append(image_id)
        self.category_id.append(category_id)
        self.box.extend(box_xywh)
        self.is_crowd.append(bool(value.get("iscrowd", 0)))
        self.start.append(entry.start)
        self.num_bytes.append(entry.num_bytes if value.get("segmentation") else 0)

    def _points_from(self, value: Any, name: str, problems: Problems) -> list[LabelledPoint]:
        try:
            return parse_points(value, f"{name} in {self.path}")
        except PointsError as error:
            if self.refuse_points:
                raise
            problems.add(error.kind, f"{name}: {error.got}")
            return []

    def box_xywh_N4(self) -> NDArray[np.float64]:  # noqa: N802 - shape letters
        """Return the boxes, without a copy."""
        return np.asarray(self.box, dtype=np.float64).reshape(-1, 4)

    def image_index_N(self, images: ImageTable) -> NDArray[np.int64]:  # noqa: N802
        """Return the index of each annotation's image, -1 where the file does not list it."""
        id_I, wanted_N = images.id_I, np.asarray(self.image_id, dtype=np.int64)
        order_I = np.argsort(id_I)
        rank_N = np.searchsorted(id_I, wanted_N, sorter=order_I)
        index_N = order_I[np.minimum(rank_N, len(id_I) - 1)]
        return np.where(id_I[index_N] == wanted_N, index_N, -1)

    def usable_rows(
        self,
        image_index_N: NDArray[np.int64],
        images: ImageTable,
        categories: Mapping[int, str],
        problems: Problems,
    ) -> NDArray[np.int64]:
        """Return the rows with a known image and category and a box inside the image.

        All other rows are added to `problems`.
        """
        box_xywh_N4 = self.box_xywh_N4()
        left_N = np.arange(len(box_xywh_N4))

        def leave_out(kind: str, is_bad_N: NDArray[np.bool_], template: str) -> None:
            nonlocal left_N
            for row in left_N[is_bad_N[left_N]].tolist():
                subject = template.format(
                    name=f"annotation {self.annotation_id[row]}",
                    image_id=self.image_id[row],
                    category_id=self.category_id[row],
                    box=box_xywh_N4[row].tolist(),
                    file_name=images[int(image_index_N[row])].file_name,
                )
                problems.add(kind, subject)
            left_N = left_N[~is_bad_N[left_N]]

        leave_out("annotation of an unknown image", image_index_N < 0, "{name} (image {image_id})")
        if categories:
            is_known_N = np.isin(np.asarray(self.category_id, dtype=np.int64), list(categories))
            leave_out(
                "annotation of an unknown category", ~is_known_N, "{name} (category {category_id})"
            )
        for kind, is_bad_N in _box_problems(box_xywh_N4, images.size_I2[image_index_N]).items():
            leave_out(kind, is_bad_N, "{name} {box} in {file_name}")
        return left_N

    def usable_points(
        self, rows: NDArray[np.int64], image_size_N2: NDArray[np.int64], problems: Problems
    ) -> tuple[NDArray[np.int64], PointPrompts | None]:
        """Return the rows that have a box or a point on the object, and their points.

        Args:
            rows: Rows that `usable_rows` returned.
            image_size_N2: Width and height of each annotation's image, px.
            problems: Gets what is left out.
        """
        if not self.points:
            return rows, None
        names = [f"annotation {self.annotation_id[row]}" for row in rows.tolist()]
        prompts = (
            self.points.joined()
            .select(rows)
            .without_unusable(self.box_xywh_N4()[rows], image_size_N2[rows], names, problems)
        )
        is_located_N = ~prompts.is_without_box_N | prompts.has_point_on_N
        for index in np.flatnonzero(~is_located_N).tolist():
            problems.add(NO_POINT_ON_OBJECT, names[index])
        prompts = prompts.select(np.flatnonzero(is_located_N))
        return rows[is_located_N], prompts if prompts.max_count else None


def int64_from(value: Any) -> int:
    """Convert an id or a size; a number that needs more than 64 bits raises OverflowError."""
    number = int(value)
    if not _INT64.min <= number <= _INT64.max:
        raise OverflowError
    return number


def _box_from(values: Any) -> Sequence[float]:
    if not isinstance(values, list):
        raise TypeError
    return [float(value) for value in values]


def _box_problems(
    box_xywh_N4: NDArray[np.float64], image_size_N2: NDArray[np.int64]
) -> dict[str, NDArray[np.bool_]]:
    low_N2, side_N2 = box_xywh_N4[:, :2], box_xywh_N4[:, 2:]
    is_bad_N2 = {
        "box of zero or negative size": side_N2 <= 0,
        "box outside its image": (low_N2 >= image_size_N2) | (low_N2 + side_N2 <= 0),
        "box far larger than its image": side_N2 > MAX_BOX_RATE * image_size_N2,
    }
    return {kind: np.logical_or(*is_bad.T) for kind, is_bad in is_bad_N2.items()}
