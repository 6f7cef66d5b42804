"""The objects of a set image by image, as the writers need them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from mal.data.annotations import CocoBoxes, CocoImage, Rle
from mal.errors import AnnotationError
from mal.labeling.coco_rle import area_of_rle


class Empty(StrEnum):
    """What is written for an object whose mask is empty or absent."""

    SKIP = "skip"
    BOX = "box"
    KEEP = "keep"


@dataclass(frozen=True)
class WrittenObject:
    """One object of an image.

    Attributes:
        class_index: Index of its category in `ObjectSet.class_names`.
        box_xywh: Clipped to the image, px.
        rle: Its mask; None for an object that is written as its box, or as an empty mask.
    """

    annotation_id: str
    class_index: int
    class_name: str
    box_xywh: tuple[float, float, float, float]
    rle: Rle | None

    @property
    def corners(self) -> list[tuple[float, float]]:
        """The corners of the box, clockwise."""
        x, y, width, height = self.box_xywh
        return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


@dataclass
class ObjectSet:
    """A set whose objects are written image by image; masks are read when they are needed.

    Attributes:
        empty: What is written for an object without a mask.
        left_out: Number of objects that are not written, by reason.
    """

    boxes: CocoBoxes
    empty: Empty
    left_out: Counter[str] = field(default_factory=Counter)
    num_written: int = 0

    def __post_init__(self) -> None:
        order_N = np.argsort(self.boxes.image_index_N, kind="stable")
        self._order_N = order_N
        self._start_I = np.searchsorted(
            self.boxes.image_index_N[order_N], np.arange(len(self.boxes.images) + 1)
        )
        ids = list(self.boxes.categories)
        self._class_of: Mapping[int, int] = {each: index for index, each in enumerate(ids)}
        if self.boxes.num_unusable:
            self.left_out["that cannot be used"] = self.boxes.num_unusable

    @property
    def class_names(self) -> list[str]:
        """The categories in the order of the file; a name used twice gets its id added."""
        names = list(self.boxes.categories.values())
        return [
            name if names.count(name) == 1 else f"{name} ({each})"
            for each, name in self.boxes.categories.items()
        ]

    def images(self) -> Iterator[tuple[CocoImage, list[WrittenObject]]]:
        """Yield each image with its objects, images without objects too."""
        names = self.class_names
        for index, image in enumerate(self.boxes.images):
            rows = self._order_N[self._start_I[index] : self._start_I[index + 1]]
            yield image, list(self._objects(image, rows, names))

    def _objects(
        self, image: CocoImage, rows: NDArray[np.int64], names: list[str]
    ) -> Iterator[WrittenObject]:
        for row in rows.tolist():
            rle = self._mask_of(row)
            if self.boxes.is_crowd_N[row]:
                self.left_out["crowds"] += 1
                continue
            if rle is None and self.empty is Empty.SKIP:
                self.left_out["without a mask"] += 1
                continue
            class_index = self._class_of[int(self.boxes.category_id_N[row])]
            self.num_written += 1
            yield WrittenObject(
                str(self.boxes.annotation_id_of(row)),
                class_index,
                names[class_index],
                _clipped(self.boxes.box_xywh_N4[row], image),
                rle,
            )

    def _mask_of(self, row: int) -> Rle | None:
        try:
            rle = self.boxes.rle_of(row)
        except AnnotationError:
            return None
        return rle if rle is not None and area_of_rle(rle) else None

    def line(self) -> str:
        """Say how many objects were written, and how many were left out for which reason."""
        reasons = [f"{count:,} {reason}" for reason, count in self.left_out.items() if count]
        rest = f"; left out: {', '.join(reasons)}" if reasons else ""
        return f"{self.num_written:,} objects in {len(self.boxes.images):,} images{rest}"


def _clipped(box_xywh: NDArray[np.float64], image: CocoImage) -> tuple[float, float, float, float]:
    x, y, width, height = (float(value) for value in box_xywh)
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, image.width), min(y + height, image.height)
    return left, top, right - left, bottom - top
