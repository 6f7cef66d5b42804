"""What labelling yields: one mask a box, as RLE of the full image.

Shape letter: N masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mal.data.annotations import Rle
from mal.labeling.label_counts import LEFT_OUT

OUTSIDE_IMAGE, MISSING_IMAGE, UNREADABLE_IMAGE, NO_PIXEL, BELOW_THRESHOLD, CROWD = (
    "outside the image",
    "image missing",
    "image unreadable",
    "no pixel in the box",
    "below the threshold",
    "crowd",
)
EMPTY_REASONS = (
    OUTSIDE_IMAGE, MISSING_IMAGE, UNREADABLE_IMAGE, LEFT_OUT, NO_PIXEL, BELOW_THRESHOLD, CROWD,
)  # fmt: skip
"""Why a mask is empty, as the label file says it in `empty_reason`."""


@dataclass(frozen=True)
class InstanceMask:
    """The predicted mask of one box.

    Attributes:
        index: Row of the box in its `CocoBoxes`.
        rle: Compressed RLE of the full image, `counts` as bytes.
        score: Mean probability over the mask's pixels, in [0, 1]; 0 for an empty mask.
        area: Pixels of the mask.
        empty_reason: One of EMPTY_REASONS for an empty mask, '' for others.
    """

    index: int
    rle: Rle
    score: float
    area: int
    empty_reason: str = ""


@dataclass(frozen=True)
class PredictedMasks:
    """Many masks: scores and areas as arrays, each mask on request.

    Attributes:
        index_N: Rows of the boxes, each once.
        area_N: Pixels of each mask.
        mask_of: Returns the mask of a row.
    """

    index_N: NDArray[np.int64]
    score_N: NDArray[np.float64]
    area_N: NDArray[np.int64]
    mask_of: Callable[[int], InstanceMask]

    @classmethod
    def held(cls, masks: Iterable[InstanceMask]) -> Self:
        """Return masks that are held in memory."""
        by_row = {mask.index: mask for mask in masks}
        return cls(
            index_N=np.array(list(by_row), dtype=np.int64),
            score_N=np.array([mask.score for mask in by_row.values()], dtype=np.float64),
            area_N=np.array([mask.area for mask in by_row.values()], dtype=np.int64),
            mask_of=by_row.__getitem__,
        )

    def __len__(self) -> int:
        return len(self.index_N)

    @property
    def num_not_empty(self) -> int:
        """How many have a pixel."""
        return int(np.count_nonzero(self.area_N))

    @property
    def mean_score(self) -> float | None:
        """Mean score of those that have a pixel."""
        scores = self.score_N[self.area_N > 0]
        return float(scores.mean()) if len(scores) else None
