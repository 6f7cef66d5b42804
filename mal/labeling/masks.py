"""What labelling yields: one mask a box, as RLE of the full image."""

from __future__ import annotations

from dataclasses import dataclass

from mal.data.annotations import Rle


@dataclass(frozen=True)
class InstanceMask:
    """The predicted mask of one box.

    Attributes:
        index: Row of the box in its `CocoBoxes`.
        rle: Compressed RLE of the full image, `counts` as bytes.
        score: Mean probability over the mask's pixels, in [0, 1]; 0 for an empty mask.
        area: Pixels of the mask.
    """

    index: int
    rle: Rle
    score: float
    area: int
