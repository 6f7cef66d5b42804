"""Tiny annotated sets drawn by hand, shared by the tests of measuring and reporting."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mal.data.annotations import CocoBoxes, CocoImage, Problems, Rle
from mal.data.segmentations import Segmentations
from mal.labeling.coco_rle import area_of_rle, rle_from_window_mask, rle_to_json
from mal.labeling.masks import InstanceMask

Rectangle = tuple[int, int, int, int]


class HeldSegmentations(Segmentations):
    """Segmentations of a set without a file."""

    def __init__(self, held: Iterable[Any]) -> None:
        self.held = list(held)

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, index: int) -> Any:
        return self.held[index]

    @property
    def is_given_N(self) -> NDArray[np.bool_]:  # noqa: N802 - a shape letter
        return np.array([one is not None for one in self.held], dtype=np.bool_)

    def select(self, rows: NDArray[np.int64]) -> Self:
        return type(self)(self.held[row] for row in rows)


def rle_of_rectangle(rectangle: Rectangle, size: tuple[int, int]) -> Rle:
    x, y, w, h = rectangle
    height, width = size
    return rle_from_window_mask(
        np.ones((h, w), dtype=np.bool_), (x, y, x + w, y + h), height, width
    )


def set_of_boxes(
    rows: Sequence[tuple[Any, ...]],
    *,
    size: tuple[int, int] = (8, 8),
    num_images: int = 1,
    categories: Mapping[int, str] | None = None,
    with_masks: bool = True,
) -> CocoBoxes:
    """Build a set from rows of (image index, category id, box, true rectangle or None[, crowd])."""
    segmentations = HeldSegmentations(
        None if row[3] is None else rle_to_json(rle_of_rectangle(row[3], size)) for row in rows
    )
    return CocoBoxes(
        path=Path("drawn.json"),
        images=tuple(
            CocoImage(100 + index, f"image{index}.jpg", size[1], size[0])
            for index in range(num_images)
        ),
        categories=categories or {1: "cat", 2: "dog"},
        annotation_position_N=np.arange(len(rows)),
        annotation_id_N=np.arange(len(rows)) + 10,
        image_index_N=np.array([row[0] for row in rows], dtype=np.int64),
        category_id_N=np.array([row[1] for row in rows], dtype=np.int64),
        box_xywh_N4=np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4),
        is_crowd_N=np.array([len(row) > 4 and row[4] for row in rows], dtype=np.bool_),
        segmentations=segmentations if with_masks else None,
        problems=Problems(),
    )


def predict_rectangle(
    index: int, rectangle: Rectangle, *, size: tuple[int, int] = (8, 8), score: float = 0.5
) -> InstanceMask:
    rle = rle_of_rectangle(rectangle, size)
    return InstanceMask(index, rle, score, area_of_rle(rle))
