"""The annotations of a file as flat arrays: parsed one by one, then checked all together.

Shape letters: N annotations that could be parsed, I images, 4 = x, y, w, h in pixels.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.data.annotation_stream import Entry
from mal.data.entry_values import (
    box_of,
    category_id_of,
    has_rotation,
    id_of,
    is_crowd_of,
    takes_box_of_segmentation,
)
from mal.data.ids import (
    AMBIGUOUS,
    UNKNOWN,
    UNUSABLE_IMAGE,
    Id,
    IdColumn,
    IdError,
    exact_id,
)
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
from mal.data.problems import BOX_OF_SEGMENTATION, ROTATED, FieldError, Problems
from mal.data.segmentations import is_segmentation_given
from mal.shown import shown

MAX_BOX_RATE = 4.0
NO_POINT_ON_OBJECT = "annotation without a bbox or a point on the object"
NO_OBJECT = "annotation that is not an object"

_IMAGE_PROBLEMS = {
    "annotation of an unknown image": UNKNOWN,
    "annotation of an image id that several images have": AMBIGUOUS,
    "annotation of an image that cannot be used": UNUSABLE_IMAGE,
}


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
        self.annotation_id = IdColumn()
        self.image_id = IdColumn(is_repetitive=True)
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
        try:
            if not isinstance(value, dict):
                raise FieldError(NO_OBJECT, f" is {shown(value, quoted=True)}")
            image_id = id_of(value, "image_id", "annotation")
            category_id = category_id_of(value)
            is_crowd = is_crowd_of(value)
            has_box = not is_without_box(value)
            box_xywh = box_of(value) if has_box else NO_BOX
        except FieldError as error:
            problems.add_field(f"annotations[{position}]", error)
            return
        annotation_id = name_id_of(value, position)
        raw_points = value.get("points")
        points = []
        if raw_points is not None:
            points = self._points_from(raw_points, f"annotation {shown(annotation_id)}", problems)
        if not points and not has_box:
            return
        self.points.add(points, has_box=has_box)
        self.position.append(position)
        self.annotation_id.append(annotation_id)
        self.image_id.append(image_id)
        self.category_id.append(category_id)
        self.box.extend(box_xywh)
        self.is_crowd.append(is_crowd)
        self.start.append(entry.start)
        is_given = is_segmentation_given(value.get("segmentation"))
        self.num_bytes.append(entry.num_bytes if is_given else 0)
        if has_box and takes_box_of_segmentation(value):
            problems.add(BOX_OF_SEGMENTATION, f"annotations[{position}]")
        if has_rotation(value):
            rotation = shown(value["attributes"]["rotation"])
            problems.add(ROTATED, f"annotations[{position}] ({rotation} degrees)")

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

        def leave_out(kind: str, is_bad_N: NDArray[np.bool_], template: str, remedy: str) -> None:
            nonlocal left_N
            for row in left_N[is_bad_N[left_N]].tolist():
                subject = template.format(
                    name=self.name_of(row),
                    image_id=shown(self.image_id[row], quoted=True),
                    category_id=self.category_id[row],
                    box=box_xywh_N4[row].tolist(),
                    file_name=shown(images[max(0, int(image_index_N[row]))].file_name),
                )
                problems.add(kind, subject, remedy)
            left_N = left_N[~is_bad_N[left_N]]

        for kind, found in _IMAGE_PROBLEMS.items():
            leave_out(kind, image_index_N == found, "{name} (image {image_id})", "")
        if categories:
            is_known_N = np.isin(np.asarray(self.category_id, dtype=np.int64), list(categories))
            leave_out(
                "annotation of an unknown category",
                ~is_known_N,
                "{name} (category {category_id})",
                f"The categories are {shown(sorted(categories)).strip('[]')}.",
            )
        size_N2 = images.size_I2[np.maximum(image_index_N, 0)]
        for kind, is_bad_N in _box_problems(box_xywh_N4, size_N2).items():
            leave_out(kind, is_bad_N, "{name} {box} in {file_name}", "")
        return left_N

    def name_of(self, row: int) -> str:
        """Return what messages call an annotation."""
        return f"annotation {shown(self.annotation_id[row])}"

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
        names = [self.name_of(row) for row in rows.tolist()]
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


def name_id_of(annotation: Mapping[str, Any], position: int) -> Id:
    """Return the id of an annotation, which is used for its name only: any value is one."""
    value = annotation.get("id")
    if value is None:
        return position + 1
    try:
        return exact_id(value)
    except IdError:
        return shown(value)


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
