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

from mal.data.ids import exact_id
from mal.errors import AnnotationError
from mal.shown import shown

Rle = dict[str, Any]

MIN_POLYGON_NUMBERS = 6
_POINT_NUMBERS = 2
# Tools draw somewhat beyond the border. The rest is a mistake, and pycocotools takes five steps for
# each pixel of an outline, about 125 bytes: without these limits up to all memory, or it crashes.
_MAX_MARGIN = 4.0
_MAX_OUTLINE_PX = 4_000_000
_MAX_COORDINATE_PX = 1e9
_MAX_PIXELS = 2**31  # pycocotools counts pixels in 32 bits


class SegmentationError(AnnotationError):
    """A segmentation that is no mask of its image.

    Attributes:
        rule: What it must do or be.
        got: What it is, without the rule.
        remedy: What to do, as sentences.
    """

    def __init__(self, rule: str, got: str, remedy: str = "Fix or delete it.") -> None:
        self.rule, self.got, self.remedy = rule, got, remedy
        super().__init__(f"segmentation must {rule}, got {got}. {remedy}")


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


def is_segmentation_given(segmentation: Any) -> bool:
    """Return whether a field `segmentation` holds a mask; [], [[]], {} and "" are none."""
    if not segmentation:
        return False
    if isinstance(segmentation, list) and segmentation[0] == []:
        return any(part != [] for part in segmentation)
    return True


def rle_from_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """Convert polygons, uncompressed or compressed RLE to compressed RLE with `counts` as bytes.

    Raises:
        SegmentationError: The segmentation is none of these, of another size, or so far outside the
            image that pycocotools would take gigabytes for it.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        polygons = _polygons_from(segmentation)
        _refuse_far_polygons(polygons, height, width)
        flat: Any = [xy_K2.ravel().tolist() for xy_K2 in polygons]
        rles = coco_mask.frPyObjects(flat, height, width)
        return dict(coco_mask.merge(rles))
    size, counts, runs = _runs_of(segmentation)
    if size != [height, width]:
        raise SegmentationError(
            "have the size of its image",
            f"size {shown(size)} for an image of height {height} and width {width}",
            "The size of RLE is [height, width].",
        )
    _refuse_other_sum(runs, height * width)
    if isinstance(counts, bytes):
        return {"size": size, "counts": counts}
    return dict(coco_mask.frPyObjects({"size": size, "counts": runs.tolist()}, height, width))


def box_of_segmentation(segmentation: Any) -> tuple[float, float, float, float]:
    """Return x, y, width and height of a mask whose image's size is unknown; zeros for no pixel.

    Raises:
        SegmentationError: The segmentation is no mask.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        xy_K2 = np.concatenate(_polygons_from(segmentation))
        low_2 = xy_K2.min(axis=0)
        return _four_floats(*low_2, *(xy_K2.max(axis=0) - low_2))
    size, counts, runs = _runs_of(segmentation)
    height, width = size
    if min(size) <= 0 or height * width >= _MAX_PIXELS:
        raise SegmentationError("have the size of its image", f"size {shown(size)}")
    _refuse_other_sum(runs, height * width)
    rle: Any = {"size": size, "counts": counts if isinstance(counts, bytes) else runs.tolist()}
    if not isinstance(counts, bytes):
        rle = coco_mask.frPyObjects(rle, height, width)
    return _four_floats(*coco_mask.toBbox(rle))


def _four_floats(x: Any, y: Any, width: Any, height: Any) -> tuple[float, float, float, float]:
    return float(x), float(y), float(width), float(height)


def box_of_rle(rle: Rle) -> NDArray[np.float64]:
    """Return x, y, width and height of the pixels of compressed RLE; zeros where it has none."""
    from pycocotools import mask as coco_mask

    return np.asarray(coco_mask.toBbox(cast("Any", rle)), dtype=np.float64)


def mask_from_rle(rle: Rle) -> NDArray[np.uint8]:
    """Decode compressed RLE of `rle_from_segmentation` to 0 and 1, shape (height, width)."""
    from pycocotools import mask as coco_mask

    return np.asarray(coco_mask.decode(cast("Any", rle)), dtype=np.uint8)


def area_of(rle: Rle) -> int:
    """Return the number of pixels of a mask, without decoding it."""
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(cast("Any", rle)))


def _polygons_from(parts: list[Any]) -> list[NDArray[np.float64]]:
    """Return polygons as K points each; empty lists among them are left out.

    Raises:
        SegmentationError: They are no polygons.
    """
    parts = [part for part in parts if part != []]
    if not parts:
        raise SegmentationError("have a polygon", "an empty list")
    if any(isinstance(part, int | float) for part in parts):
        raise SegmentationError(
            "be a list of polygons [[x, y, x, y, ...], ...]",
            f"a flat list {shown(parts)}",
            "Put the numbers of each polygon in brackets of their own.",
        )
    return [_points_of(part) for part in parts]


def _points_of(part: Any) -> NDArray[np.float64]:
    if not isinstance(part, list):
        raise SegmentationError("be COCO polygons or RLE", shown(part, quoted=True))
    types = set(map(type, part))
    if types & {list, dict} or len(part) == _POINT_NUMBERS:
        raise SegmentationError(
            "have each polygon as a flat list [x, y, x, y, ...]",
            f"a list of points, {shown(part)}",
            "Write the numbers of all points of a polygon in one list.",
        )
    if not types <= {int, float}:
        raise SegmentationError("have polygons of numbers", shown(part))
    if len(part) < MIN_POLYGON_NUMBERS:
        raise SegmentationError(
            "have polygons of 3 points or more",
            f"{len(part)} numbers, {shown(part)}",
            "Two corners are a box: delete the segmentation.",
        )
    if len(part) % 2:
        raise SegmentationError("have polygons of x and y", f"{len(part)} numbers, {shown(part)}")
    try:
        xy_K2 = np.array(part, dtype=np.float64).reshape(-1, 2)
    except OverflowError:
        xy_K2 = np.full((1, 2), np.inf)
    if not np.all(np.abs(xy_K2) <= _MAX_COORDINATE_PX):  # NaN too
        raise SegmentationError("have polygons inside its image", shown(part))
    return xy_K2


def _refuse_far_polygons(polygons: Sequence[NDArray[np.float64]], height: int, width: int) -> None:
    """Refuse what makes pycocotools crash or take gigabytes: it draws every pixel of an outline."""
    size, num_outline_px = np.array([width, height]), 0.0
    for xy_K2 in polygons:
        if np.any((xy_K2 < -_MAX_MARGIN * size) | (xy_K2 > (1 + _MAX_MARGIN) * size)):
            raise SegmentationError(
                "have polygons inside its image",
                f"{shown(xy_K2.ravel().tolist())}, far outside {width} x {height}",
                "Fix the polygon, or the image's width and height.",
            )
        num_outline_px += float(np.abs(np.diff(xy_K2, axis=0, append=xy_K2[:1])).max(axis=1).sum())
    if num_outline_px > _MAX_OUTLINE_PX:
        raise SegmentationError(
            f"have an outline below {_MAX_OUTLINE_PX:,} px", f"{num_outline_px:,.0f} px"
        )


def _refuse_other_sum(runs: NDArray[np.int64], num_pixels: int) -> None:
    if runs.min(initial=0) < 0 or runs.max(initial=0) > num_pixels:
        bad = runs[(runs < 0) | (runs > num_pixels)][0]
        raise SegmentationError(
            "have runs that fill its image", f"a run of {bad} of {num_pixels} pixels"
        )
    if int(runs.sum()) != num_pixels:
        raise SegmentationError(
            "have runs that fill its image", f"{int(runs.sum())} of {num_pixels} pixels in all"
        )


def _runs_of(segmentation: Any) -> tuple[list[int], bytes | list[Any], NDArray[np.int64]]:
    """Return size, counts and run lengths of an RLE.

    Raises:
        SegmentationError: It is no RLE.
    """
    try:
        size = [_whole_number(side) for side in segmentation["size"]]
        counts = segmentation["counts"]
        if isinstance(counts, str):
            counts = _without_bytes_literal(counts.strip()).encode("ascii")
        runs = runs_from_bytes(counts) if isinstance(counts, bytes) else _runs_from_list(counts)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise SegmentationError(
            "be COCO polygons or RLE", shown(segmentation, quoted=True)
        ) from error
    if len(size) != len(("height", "width")):
        raise SegmentationError("be COCO polygons or RLE", f"size {shown(segmentation['size'])}")
    return size, counts, runs


def _without_bytes_literal(counts: str) -> str:
    """Undo `str(counts)` of bytes, b'...': a quote cannot be in compressed counts."""
    if counts[:2] in ("b'", 'b"') and counts[-1:] == counts[1]:
        return counts[2:-1].replace("\\\\", "\\")
    return counts


def _whole_number(value: Any) -> int:
    number = exact_id(value)
    if isinstance(number, str):
        raise TypeError
    return number


def _runs_from_list(counts: Any) -> NDArray[np.int64]:
    if not isinstance(counts, list):
        raise TypeError
    if not set(map(type, counts)) <= {int}:
        counts = [_whole_number(count) for count in counts]
    return np.array(counts, dtype=np.int64)


def runs_from_bytes(counts: bytes) -> NDArray[np.int64]:
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
