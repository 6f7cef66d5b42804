"""COCO annotation files as flat arrays, for training, evaluation and inference.

There is no Python object per box or image: the arrays of a million boxes are small, and loader
processes share them without a copy.

Shape letters: N annotations of the file (crowds included), I images, 4 = x, y, w, h in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mal.data.annotation_columns import AnnotationColumns
from mal.data.annotation_stream import Entry, read_members
from mal.data.box_evidence import add_doubt, find_doubt_of_columns
from mal.data.entry_values import number_id_of
from mal.data.ids import Id, IdColumn, IdLookup
from mal.data.image_entries import SizeReader, read_images
from mal.data.image_table import CocoImage, ImageTable
from mal.data.points import PointPrompts
from mal.data.problems import CROWD, ID_BY_NUMBER, FieldError, Problems
from mal.data.segmentations import (
    Rle,
    Segmentations,
    rle_from_segmentation,
)
from mal.errors import AnnotationError
from mal.shown import shown

__all__ = ["CROWD", "CocoBoxes", "CocoImage", "Problems", "Rle", "load_boxes"]

# COCO's size classes by w * h of the box: small up to the first, medium up to the second.
SMALL_MAX_AREA_PX2, MEDIUM_MAX_AREA_PX2 = 32.0**2, 96.0**2
CATEGORY_TWICE = "category id given twice, the first name is taken"

_COLUMNS = (
    "annotation_position_N",
    "annotation_id_N",
    "image_index_N",
    "category_id_N",
    "box_xywh_N4",
    "is_crowd_N",
)


@dataclass(frozen=True)
class CocoBoxes:
    """Every usable box of an annotation file, in the file's order.

    Attributes:
        images: All images, those without boxes included.
        categories: Name by category id.
        annotation_position_N: Index of each box in the file's `annotations` list.
        annotation_id_N: An array where all ids are 64-bit numbers.
        image_index_N: Index into `images`.
        box_xywh_N4: NaN for annotations with points only, until their boxes are estimated.
        is_crowd_N: Crowds are neither trained nor measured.
        segmentations: None where the caller did not ask for masks.
        problems: What was left out, and why.
        points: None where no annotation has any.
        num_unusable: Number of annotations that were left out.
    """

    path: Path
    images: Sequence[CocoImage]
    categories: Mapping[int, str]
    annotation_position_N: NDArray[np.int64]
    annotation_id_N: NDArray[np.int64] | IdColumn
    image_index_N: NDArray[np.int64]
    category_id_N: NDArray[np.int64]
    box_xywh_N4: NDArray[np.float64]
    is_crowd_N: NDArray[np.bool_]
    segmentations: Segmentations | None
    problems: Problems
    points: PointPrompts | None = None
    num_unusable: int = 0

    def __len__(self) -> int:
        return len(self.annotation_id_N)

    @property
    def box_area_N(self) -> NDArray[np.float64]:  # noqa: N802 - a shape letter
        """Width times height, px^2."""
        return np.asarray(self.box_xywh_N4[:, 2] * self.box_xywh_N4[:, 3])

    @property
    def image_area_I(self) -> NDArray[np.int64]:  # noqa: N802 - a shape letter
        """Number of pixels of each image."""
        return np.array([image.width * image.height for image in self.images], dtype=np.int64)

    def area_of(self, index: int) -> float:
        """Return the area of one box, px^2, without computing all of them."""
        return float(self.box_xywh_N4[index, 2] * self.box_xywh_N4[index, 3])

    def annotation_id_of(self, index: int) -> Id:
        value: Id = self.annotation_id_N[index]
        return value if isinstance(value, str) else int(value)

    def name_of(self, index: int) -> str:
        """Return what messages call a box: `annotation 17`."""
        return f"annotation {shown(self.annotation_id_of(index))}"

    def image_of(self, index: int) -> CocoImage:
        return self.images[int(self.image_index_N[index])]

    def select(self, rows: NDArray[np.int64]) -> Self:
        """Return the set with these boxes only; all images stay."""
        return dataclasses.replace(
            self,
            **{name: getattr(self, name)[rows] for name in _COLUMNS},
            segmentations=None if self.segmentations is None else self.segmentations.select(rows),
            points=None if self.points is None else self.points.select(rows),
        )

    def has_masks(self) -> bool:
        """Return whether any box has a true mask, and the caller asked for masks."""
        return self.segmentations is not None and bool(self.segmentations.is_given_N.any())

    def rle_of(self, index: int) -> Rle | None:
        """Return the true mask of a box as compressed RLE, or None where the file has none."""
        segmentation = None if self.segmentations is None else self.segmentations[index]
        if segmentation is None:
            return None
        image = self.image_of(index)
        return rle_from_segmentation(segmentation, image.height, image.width)


def load_boxes(
    path: Path,
    *,
    with_masks: bool,
    refuse_points: bool = True,
    read_size: SizeReader | None = None,
) -> CocoBoxes:
    """Read the boxes of a COCO file. Unusable annotations are left out, counted and named.

    Args:
        path: A local COCO JSON file.
        with_masks: Keep the byte ranges of the segmentations; each is read when it is needed.
        refuse_points: Raise an error for points from which a network would learn the opposite of
            what the user meant. If not set, they are a problem like others.
        read_size: For images whose width and height are missing; None: they are left out.

    Raises:
        AnnotationError: The file cannot be read, its points are refused, or no image is usable.
    """
    problems, images, lookup = Problems(), ImageTable(), IdLookup()
    columns = AnnotationColumns(path, refuse_points=refuse_points)
    categories: dict[int, str] = {}
    missing = ["images", "annotations"]
    for key, _, entries in read_members(path):
        if entries is None:
            continue
        missing = [name for name in missing if name != key]
        if key == "images":
            lookup = read_images(entries, images, problems, read_size)
        elif key == "categories":
            _read_categories(entries, categories, problems)
        elif key == "annotations":
            for position, entry in enumerate(entries):
                columns.add(position, entry, problems)
    for key in missing:
        raise AnnotationError(
            f"Cannot use {path} as a COCO file: it has no list '{key}'. Give a COCO instance file."
        )
    if not images:
        reasons = "; ".join(problems.lines()) or "Its list 'images' is empty."
        raise AnnotationError(f"Cannot use {path}: no image of it is usable. {reasons}")
    return _boxes_from_columns(
        path, columns, images, categories, problems, lookup=lookup, with_masks=with_masks
    )


def _boxes_from_columns(
    path: Path,
    columns: AnnotationColumns,
    images: ImageTable,
    categories: dict[int, str],
    problems: Problems,
    *,
    lookup: IdLookup,
    with_masks: bool,
) -> CocoBoxes:
    image_index_N, is_by_number_N = columns.image_id.found_in(lookup)
    for row in np.flatnonzero(is_by_number_N).tolist():
        image_id = shown(columns.image_id[row], quoted=True)
        problems.add(ID_BY_NUMBER, f"{columns.name_of(row)} (image_id {image_id})")
    doubt = find_doubt_of_columns(columns, image_index_N, images)
    if doubt is not None:
        add_doubt(doubt, path, problems, refuse=columns.refuse_points)
    rows = columns.usable_rows(image_index_N, images, categories, problems)
    rows, points = columns.usable_points(
        rows, images.size_I2[np.maximum(image_index_N, 0)], problems
    )

    def kept(values: Sequence[int]) -> NDArray[np.int64]:
        return np.asarray(values, dtype=np.int64)[rows]

    segmentations = None
    if with_masks:
        segmentations = Segmentations(path, kept(columns.start), kept(columns.num_bytes))
    boxes = CocoBoxes(
        path=path,
        images=images,
        categories=categories or {k: str(k) for k in kept(columns.category_id).tolist()},
        annotation_position_N=kept(columns.position),
        annotation_id_N=columns.annotation_id.rows(rows),
        image_index_N=image_index_N[rows],
        category_id_N=kept(columns.category_id),
        box_xywh_N4=columns.box_xywh_N4()[rows],
        is_crowd_N=np.asarray(columns.is_crowd, dtype=np.bool_)[rows],
        segmentations=segmentations,
        problems=problems,
        points=points,
        num_unusable=columns.num_seen - len(rows),
    )
    for row in np.flatnonzero(boxes.is_crowd_N).tolist():
        problems.add(CROWD, boxes.name_of(row))
    return boxes


def _read_categories(
    entries: Iterator[Entry], categories: dict[int, str], problems: Problems
) -> None:
    for position, (entry, _, _) in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise FieldError("category that is not an object", f" is {shown(entry)}")
            category_id = number_id_of(entry)
        except FieldError as error:
            problems.add_field(f"categories[{position}]", error)
            continue
        # The name is printed and drawn only: it becomes safe for that once, here.
        name = shown(entry.get("name", category_id))
        if categories.setdefault(category_id, name) != name:
            problems.add(CATEGORY_TWICE, f"{category_id} ({categories[category_id]}, {name})")
