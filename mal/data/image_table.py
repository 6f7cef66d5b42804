"""The images of an annotation file as flat arrays.

118 000 objects of Python would take 50 MiB, and every loader process would copy them: to look at
one is to write its reference count, and a page that is written is no longer shared.

Shape letter: I images.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

_ENCODING_ERRORS = "surrogatepass"  # JSON can hold what UTF-8 cannot


@dataclass(frozen=True)
class CocoImage:
    """One image of the file; `width` and `height` in pixels."""

    id: int
    file_name: str
    width: int
    height: int


class ImageTable(Sequence[CocoImage]):
    """Images by index, each made when it is asked for."""

    def __init__(self) -> None:
        self._ids = array("q")
        self._widths = array("q")
        self._heights = array("q")
        self._names = bytearray()
        self._name_ends = array("q")

    def append(self, image: CocoImage) -> None:
        """Add an image.

        Raises:
            OverflowError: 64 bits do not hold its size.
        """
        sizes = array("q", [image.width, image.height])
        self._ids.append(image.id)
        self._widths.append(sizes[0])
        self._heights.append(sizes[1])
        self._names += image.file_name.encode("utf-8", _ENCODING_ERRORS)
        self._name_ends.append(len(self._names))

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> CocoImage: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[CocoImage, ...]: ...
    def __getitem__(self, index: int | slice) -> CocoImage | tuple[CocoImage, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        place = range(len(self))[index]
        start = self._name_ends[place - 1] if place else 0
        name = self._names[start : self._name_ends[place]].decode("utf-8", _ENCODING_ERRORS)
        return CocoImage(self._ids[place], name, self._widths[place], self._heights[place])

    @property
    def id_I(self) -> NDArray[np.int64]:  # noqa: N802 - a shape letter
        """COCO ids."""
        return np.array(self._ids, dtype=np.int64)

    @property
    def size_I2(self) -> NDArray[np.int64]:  # noqa: N802 - a shape letter
        """Width and height, px."""
        return np.stack([self._widths, self._heights], axis=1).astype(np.int64)
