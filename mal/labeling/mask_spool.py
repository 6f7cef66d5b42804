"""Keeps predicted masks on disk until the label file is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from mal.data.annotations import CocoBoxes, Rle
from mal.labeling.masks import EMPTY_REASONS, InstanceMask, PredictedMasks

_REASONS = ("", *EMPTY_REASONS)


class MaskSpool:
    """Masks in an unnamed temporary file, which the system removes with the process.

    Masks are predicted image by image, but the label file has the order of its input. A mask takes
    about 200 bytes on disk, and any of them can be read back.
    """

    def __init__(self, boxes: CocoBoxes, folder: Path) -> None:
        self._boxes = boxes
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        num_boxes = len(boxes)
        self._start_N = np.zeros(num_boxes, dtype=np.int64)
        self._num_bytes_N = np.zeros(num_boxes, dtype=np.int32)
        self._score_N = np.zeros(num_boxes, dtype=np.float64)
        self._area_N = np.zeros(num_boxes, dtype=np.int64)
        self._reason_N = np.zeros(num_boxes, dtype=np.int8)  # index in _REASONS
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fill(self, masks: Iterable[InstanceMask]) -> PredictedMasks:
        """Write the masks to the file and return them."""
        for mask in masks:
            counts = mask.rle["counts"]
            self._file.write(counts)
            self._start_N[mask.index] = self._end
            self._num_bytes_N[mask.index] = len(counts)
            self._score_N[mask.index] = mask.score
            self._area_N[mask.index] = mask.area
            self._reason_N[mask.index] = _REASONS.index(mask.empty_reason)
            self._end += len(counts)
        self._file.flush()
        rows = np.flatnonzero(self._num_bytes_N)
        return PredictedMasks(rows, self._score_N[rows], self._area_N[rows], self._read)

    def _read(self, row: int) -> InstanceMask:
        image = self._boxes.image_of(row)
        counts = os.pread(self._file.fileno(), int(self._num_bytes_N[row]), int(self._start_N[row]))
        return InstanceMask(
            row,
            Rle(size=[image.height, image.width], counts=counts),
            float(self._score_N[row]),
            int(self._area_N[row]),
            _REASONS[self._reason_N[row]],
        )
