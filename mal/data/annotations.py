"""COCO annotation files as flat arrays: one path in for training, evaluation and inference.

Shape letters: N annotations of the file (crowds included), I images, 4 = x, y, w, h in pixels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mal.data.points import (
    NO_BOX_XYWH,
    ON,
    LabelledPoint,
    PointPrompts,
    parse_points,
    split_unusable,
)
from mal.data.segmentations import Rle, rle_from_segmentation
from mal.errors import AnnotationError

__all__ = [
    "CROWD",
    "CocoBoxes",
    "CocoImage",
    "Problems",
    "Rle",
    "load_boxes",
    "read_annotation_document",
    "rle_from_segmentation",
]

# COCO's size classes by w * h of the box: small up to the first, medium up to the second.
SMALL_MAX_AREA_PX2, MEDIUM_MAX_AREA_PX2 = 32.0**2, 96.0**2
MAX_NAMED_SUBJECTS = 5
MAX_BOX_RATE = 4.0
CROWD = "crowd, neither trained nor measured"
NO_POINT_ON_OBJECT = "annotation without a bbox or a point on the object"

_UNUSABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass
class Problems:
    """What is wrong with a data set, counted by kind, the first few of each named."""

    subjects: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, subject: str) -> None:
        self.subjects.setdefault(kind, []).append(subject)

    def __bool__(self) -> bool:
        return bool(self.subjects)

    def lines(self, max_named: int = MAX_NAMED_SUBJECTS) -> list[str]:
        """Describe each kind in one line: count, kind and the first subjects."""
        return [
            f"{len(names)} x {kind}: {', '.join(names[:max_named])}"
            + (f" and {len(names) - max_named} more" if len(names) > max_named else "")
            for kind, names in self.subjects.items()
        ]


@dataclass(frozen=True)
class CocoImage:
    """One image of the file; `width` and `height` in pixels."""

    id: int
    file_name: str
    width: int
    height: int


_ARRAYS = (
    "annotation_position_N",
    "annotation_id_N",
    "image_index_N",
    "category_id_N",
    "box_xywh_N4",
    "is_crowd_N",
)


@dataclass(frozen=True)
class CocoBoxes:
    """Every box of an annotation file, in the file's order.

    Attributes:
        path: The file it was read from.
        images: All images, those without boxes included.
        categories: Name by category id.
        annotation_position_N: Place of each box in the file's `annotations` list.
        annotation_id_N: COCO ids.
        image_index_N: Index into `images`.
        category_id_N: Keys of `categories`.
        box_xywh_N4: COCO boxes, float64.
        is_crowd_N: Crowds: never trained, never measured.
        segmentations: COCO segmentations, or None where none were asked for; an entry is None
            where the file has none.
        problems: What was left out, and why.
        points: Labelled points; None where no annotation has any. Boxes of annotations with
            points alone are NaN until they are estimated.
    """

    path: Path
    images: tuple[CocoImage, ...]
    categories: Mapping[int, str]
    annotation_position_N: NDArray[np.int64]
    annotation_id_N: NDArray[np.int64]
    image_index_N: NDArray[np.int64]
    category_id_N: NDArray[np.int64]
    box_xywh_N4: NDArray[np.float64]
    is_crowd_N: NDArray[np.bool_]
    segmentations: Sequence[Any] | None
    problems: Problems
    points: PointPrompts | None = None

    def __len__(self) -> int:
        return len(self.annotation_id_N)

    @property
    def box_area_N(self) -> NDArray[np.float64]:  # noqa: N802 - a shape letter
        """Width times height, px^2."""
        area: NDArray[np.float64] = self.box_xywh_N4[:, 2] * self.box_xywh_N4[:, 3]
        return area

    @property
    def image_area_I(self) -> NDArray[np.int64]:  # noqa: N802 - a shape letter
        """Pixels of each image."""
        return np.array([image.width * image.height for image in self.images], dtype=np.int64)

    def image_of(self, index: int) -> CocoImage:
        return self.images[int(self.image_index_N[index])]

    def select(self, rows: NDArray[np.int64]) -> Self:
        """Return the set with these boxes only; all images stay."""
        return dataclasses.replace(
            self,
            **{name: getattr(self, name)[rows] for name in _ARRAYS},
            segmentations=self.segmentations and [self.segmentations[row] for row in rows],
            points=self.points and self.points.select(rows),
        )

    def has_masks(self) -> bool:
        """Whether any box has a true mask (and masks were asked for)."""
        return self.segmentations is not None and any(s is not None for s in self.segmentations)

    def rle_of(self, index: int) -> Rle | None:
        """Return the true mask of a box as compressed RLE, or None where the file has none."""
        if self.segmentations is None or self.segmentations[index] is None:
            return None
        image = self.image_of(index)
        return rle_from_segmentation(self.segmentations[index], image.height, image.width)


def read_annotation_document(path: Path) -> dict[str, Any]:
    """Read a COCO JSON file whole.

    Raises:
        AnnotationError: It is missing, not JSON or not a COCO instance file.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise AnnotationError(
            f"annotation file must exist, got {path}. Give the path of a COCO JSON file."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise AnnotationError(
            f"annotation file must be readable JSON, got {path} ({error}). Repair or replace it."
        ) from error
    if not isinstance(document, dict):
        raise AnnotationError(
            f"annotation file must hold a JSON object, got a {type(document).__name__} in {path}. "
            "Give a COCO instance file."
        )
    for key in ("images", "annotations"):
        if not isinstance(document.get(key), list):
            raise AnnotationError(
                f"annotation file must have a list '{key}', got none in {path}. "
                "Give a COCO instance file."
            )
    return document


def load_boxes(path: Path, *, with_masks: bool) -> CocoBoxes:
    """Read the boxes of a COCO file; what cannot be used is left out, counted and named.

    Args:
        path: A local COCO JSON file.
        with_masks: Keep segmentations. Training from boxes does not ask for them.

    Raises:
        AnnotationError: The file cannot be read, or no image is left.
    """
    document = read_annotation_document(path)
    problems = Problems()
    images = _parse_images(document["images"], problems)
    if not images:
        raise AnnotationError(
            f"annotation file must list images, got none that can be used in {path}. "
            f"{'; '.join(problems.lines())}"
        )
    categories = _parse_categories(document.get("categories"), problems)
    index_of_image = {image.id: index for index, image in enumerate(images)}
    rows = list(
        _parse_annotations(document["annotations"], images, index_of_image, categories, problems)
    )
    annotations = document["annotations"]
    return CocoBoxes(
        path=path,
        images=tuple(images),
        categories=categories,
        annotation_position_N=np.array([r[0] for r in rows], dtype=np.int64),
        annotation_id_N=np.array([r[1] for r in rows], dtype=np.int64),
        image_index_N=np.array([r[2] for r in rows], dtype=np.int64),
        category_id_N=np.array([r[3] for r in rows], dtype=np.int64),
        box_xywh_N4=np.array([r[4] for r in rows], dtype=np.float64).reshape(-1, 4),
        is_crowd_N=np.array([r[5] for r in rows], dtype=np.bool_),
        segmentations=(
            [annotations[r[0]].get("segmentation") or None for r in rows] if with_masks else None
        ),
        problems=problems,
        points=_join_points([r[6] for r in rows], [r[4] is NO_BOX_XYWH for r in rows]),
    )


def _join_points(
    points_of_each: Sequence[Sequence[LabelledPoint]], is_without_box: Sequence[bool]
) -> PointPrompts | None:
    if not any(points_of_each):
        return None
    return PointPrompts.from_lists(points_of_each, is_without_box)


def _parse_images(entries: Iterable[Any], problems: Problems) -> list[CocoImage]:
    images: list[CocoImage] = []
    seen: set[int] = set()
    for position, entry in enumerate(entries):
        try:
            image = CocoImage(
                id=_id_from(entry["id"]),
                file_name=str(entry["file_name"]),
                width=int(entry["width"]),
                height=int(entry["height"]),
            )
        except _UNUSABLE:
            problems.add("image without id, file_name, width or height", f"images[{position}]")
            continue
        if image.width <= 0 or image.height <= 0:
            problems.add("image without a size", image.file_name)
        elif image.id in seen:
            problems.add("image id given twice", f"{image.id} ({image.file_name})")
        else:
            seen.add(image.id)
            images.append(image)
    return images


def _parse_categories(entries: Any, problems: Problems) -> dict[int, str]:
    categories: dict[int, str] = {}
    for position, entry in enumerate(entries if isinstance(entries, list) else []):
        try:
            categories[_id_from(entry["id"])] = str(entry.get("name", entry["id"]))
        except _UNUSABLE:
            problems.add("category without id", f"categories[{position}]")
    return categories


def _parse_annotations(
    entries: Iterable[Any],
    images: Sequence[CocoImage],
    index_of_image: Mapping[int, int],
    categories: dict[int, str],
    problems: Problems,
) -> Iterable[tuple[int, int, int, int, Sequence[float], bool, list[LabelledPoint]]]:
    """Yield position, id, image index, category id, box, crowd flag and points of each object."""
    for position, entry in enumerate(entries):
        name = f"annotations[{position}]"
        try:
            annotation_id = _id_from(entry.get("id", position + 1))
            name = f"annotation {annotation_id}"
            image_id = _id_from(entry["image_id"])
            category_id = _id_from(entry.get("category_id", 1))
            has_box = bool(entry.get("bbox")) or not entry.get("points")
            box = _box_from(entry["bbox"]) if has_box else NO_BOX_XYWH
        except _UNUSABLE:
            problems.add("annotation without image_id or a bbox of numbers", name)
            continue
        if has_box and (len(box) != 4 or not all(np.isfinite(box))):
            problems.add("bbox that is not four finite numbers", name)
            continue
        if image_id not in index_of_image:
            problems.add("annotation of an unknown image", f"{name} (image {image_id})")
            continue
        if categories and category_id not in categories:
            problems.add("annotation of an unknown category", f"{name} (category {category_id})")
            continue
        categories.setdefault(category_id, str(category_id))
        image_index = index_of_image[image_id]
        problem = _box_problem(box, images[image_index])
        if problem:
            problems.add(problem, f"{name} {box} in {images[image_index].file_name}")
            continue
        points = _usable_points(entry, name, box, images[image_index], problems)
        if not has_box and not any(label == ON for _, _, label in points):
            problems.add(NO_POINT_ON_OBJECT, name)
            continue
        crowd = bool(entry.get("iscrowd", 0))
        if crowd:
            problems.add(CROWD, name)
        yield position, annotation_id, image_index, category_id, box, crowd, points


def _usable_points(
    entry: Mapping[str, Any],
    name: str,
    box_xywh: Sequence[float],
    image: CocoImage,
    problems: Problems,
) -> list[LabelledPoint]:
    if "points" not in entry:
        return []
    points = parse_points(entry["points"], name)
    usable, unusable = split_unusable(points, box_xywh, image.width, image.height)
    for problem, left_out in unusable.items():
        for x, y, _ in left_out:
            problems.add(problem, f"({x:g}, {y:g}) of {name} in {image.file_name}")
    return usable


def _id_from(value: Any) -> int:
    """Convert an id; one that 64 bits cannot hold raises OverflowError."""
    return int(np.int64(int(value)))


def _box_from(values: Any) -> Sequence[float]:
    if not isinstance(values, list):
        raise TypeError
    return [float(value) for value in values]


def _box_problem(box_xywh: Sequence[float], image: CocoImage) -> str | None:
    x, y, w, h = box_xywh  # all NaN, where there is no box, is no problem
    if w <= 0 or h <= 0:
        return "box of zero or negative size"
    if x >= image.width or y >= image.height or x + w <= 0 or y + h <= 0:
        return "box outside its image"
    if w > MAX_BOX_RATE * image.width or h > MAX_BOX_RATE * image.height:
        return "box far larger than its image"
    return None
