"""COCO segmentations: polygons and run-length codes, checked before pycocotools reads them.

pycocotools reads a polygon of four numbers as a box, raises a bare `Exception` for what it cannot
parse, and decodes a run-length code of too few pixels to arbitrary memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from mal.errors import AnnotationError

Rle = dict[str, Any]

MIN_POLYGON_NUMBERS = 6
_MAX_SHOWN = 60


def file_has_changed(path: Path) -> AnnotationError:
    """Return the error for an annotation file that changed after its boxes were read."""
    return AnnotationError(
        f"The annotation file {path} changed after its boxes were read. Start again."
    )


def _stamp_of(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_size, facts.st_mtime_ns


class Segmentations:
    """The segmentation of each box, None where the file has none.

    They stay in the file, and each is read when it is needed: those of COCO's training set take
    more than a gigabyte of memory.

    Args:
        path: The annotation file.
        start_N: Byte at which each annotation begins.
        num_bytes_N: Its length; 0 where it has no segmentation.
    """

    def __init__(
        self, path: Path, start_N: NDArray[np.int64], num_bytes_N: NDArray[np.int64]
    ) -> None:
        self._path = path
        self._start_N = start_N
        self._num_bytes_N = num_bytes_N
        self._stamp = _stamp_of(path.stat())

    def __len__(self) -> int:
        return len(self._start_N)

    def __getitem__(self, index: int) -> Any:
        """Return a segmentation.

        Raises:
            AnnotationError: The file is no longer what it was when the boxes were read.
        """
        if not self._num_bytes_N[index]:
            return None
        try:
            with self._path.open("rb") as file:
                if _stamp_of(os.fstat(file.fileno())) == self._stamp:
                    file.seek(int(self._start_N[index]))
                    return json.loads(file.read(int(self._num_bytes_N[index])))["segmentation"]
        except OSError as error:
            raise file_has_changed(self._path) from error
        raise file_has_changed(self._path)

    @property
    def is_given_N(self) -> NDArray[np.bool_]:  # noqa: N802 - a shape letter
        """Whether the file has the segmentation of each box."""
        return self._num_bytes_N > 0

    def select(self, rows: NDArray[np.int64]) -> Self:
        """Return the segmentations of these boxes."""
        return type(self)(self._path, self._start_N[rows], self._num_bytes_N[rows])


def rle_from_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """Convert polygons, uncompressed or compressed RLE to compressed RLE with `counts` as bytes.

    Raises:
        AnnotationError: The segmentation is none of these, or of another size.
    """
    from pycocotools import mask as coco_mask

    if _are_polygons(segmentation):
        rles = coco_mask.frPyObjects(segmentation, height, width)
        return dict(coco_mask.merge(rles))
    try:
        size = [int(side) for side in segmentation["size"]]
        counts = segmentation["counts"]
        counts = counts.encode("ascii") if isinstance(counts, str) else counts
        runs = _runs_from_bytes(counts) if isinstance(counts, bytes) else _runs_from_list(counts)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise AnnotationError(
            "segmentation must be COCO polygons or RLE, got "
            f"{str(segmentation)[:_MAX_SHOWN]}. Fix or delete it."
        ) from error
    if size != [height, width]:
        raise AnnotationError(
            f"segmentation must be of the image's size {height} x {width}, got {size}. "
            "Fix or delete it."
        )
    if runs.min(initial=0) < 0 or int(runs.sum()) != height * width:
        raise AnnotationError(
            f"segmentation must have runs of {height * width} pixels in all, got "
            f"{int(runs.sum())}. Fix or delete it."
        )
    if isinstance(counts, bytes):
        return {"size": size, "counts": counts}
    return dict(coco_mask.frPyObjects({"size": size, "counts": runs.tolist()}, height, width))


def box_of_segmentation(segmentation: Any, height: int, width: int) -> tuple[float, ...]:
    """Return x, y, width and height of a segmentation in pixels; polygons may leave the image.

    Raises:
        AnnotationError: As `rle_from_segmentation`.
    """
    if _are_polygons(segmentation):
        points = np.concatenate([np.asarray(part, dtype=np.float64) for part in segmentation])
        low_2, high_2 = (edge(points.reshape(-1, 2), axis=0) for edge in (np.min, np.max))
        return (*low_2.tolist(), *(high_2 - low_2).tolist())
    return tuple(box_of_rle(rle_from_segmentation(segmentation, height, width)).tolist())


def box_of_rle(rle: Rle) -> NDArray[np.float64]:
    """Return x, y, width and height of the pixels of compressed RLE; zeros where it has none."""
    from pycocotools import mask as coco_mask

    return np.asarray(coco_mask.toBbox(cast("Any", rle)), dtype=np.float64)


def mask_from_rle(rle: Rle) -> NDArray[np.uint8]:
    """Decode compressed RLE of `rle_from_segmentation` to 0 and 1, shape (height, width)."""
    from pycocotools import mask as coco_mask

    return np.asarray(coco_mask.decode(cast("Any", rle)), dtype=np.uint8)


def _are_polygons(segmentation: Any) -> bool:
    return (
        isinstance(segmentation, list)
        and bool(segmentation)
        and all(_is_polygon(part) for part in segmentation)
    )


def _is_polygon(part: Any) -> bool:
    return (
        isinstance(part, list)
        and len(part) >= MIN_POLYGON_NUMBERS
        and len(part) % 2 == 0
        and all(isinstance(value, int | float) and abs(value) < np.inf for value in part)
    )


def _runs_from_list(counts: Sequence[Any]) -> NDArray[np.int64]:
    if not isinstance(counts, list):
        raise TypeError
    return np.array([int(count) for count in counts], dtype=np.int64)


def _runs_from_bytes(counts: bytes) -> NDArray[np.int64]:
    """Read COCO's compressed run lengths.

    A number has five bits per byte, lowest first, from character 48 on. Bit 32 is set if the number
    has another byte; bit 16 of its last byte is its sign. From the fourth run on, a number is the
    difference to the run two positions before.

    Raises:
        ValueError: The bytes are not such a code.
    """
    code = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if len(code) == 0 or code.min() < 0 or code.max() > 63 or code[-1] & 32:
        raise ValueError
    is_last = (code & 32) == 0
    starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    rank = np.arange(len(code)) - np.repeat(starts, np.diff([*starts, len(code)]))
    if rank.max() > 10:  # 55 bits hold any image
        raise ValueError
    numbers = np.add.reduceat((code & 31) << (5 * rank), starts)
    is_negative = (code[is_last] & 16) != 0
    numbers -= is_negative * (np.int64(1) << (5 * (rank[is_last] + 1)))
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return np.asarray(numbers, dtype=np.int64)
