"""The images of an annotation file as flat arrays.

118,000 Python objects take 50 MiB, and every loader process would copy them: reading an object
writes its reference count, and processes no longer share a memory page that was written.

Shape letter: I images.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from mal.redaction import redact_file_name

_ENCODING_ERRORS = "surrogatepass"  # JSON text can hold code points that UTF-8 cannot


@dataclass(frozen=True)
class CocoImage:
    """One image of the file; `width` and `height` in pixels."""

    id: int
    file_name: str
    width: int
    height: int


class ImageTable(Sequence[CocoImage]):
    """Images by index; the object of an image is created when it is read."""

    def __init__(self) -> None:
        self._numbers = array("q")  # id, width and height of each image
        self._names = bytearray()
        self._name_ends = array("q", [0])

    def append(self, image: CocoImage) -> None:
        self._numbers.extend((image.id, image.width, image.height))
        self._names += redact_file_name(image.file_name).encode("utf-8", _ENCODING_ERRORS)
        self._name_ends.append(len(self._names))

    def __len__(self) -> int:
        return len(self._name_ends) - 1

    @overload
    def __getitem__(self, index: int) -> CocoImage: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[CocoImage, ...]: ...
    def __getitem__(self, index: int | slice) -> CocoImage | tuple[CocoImage, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        row = range(len(self))[index]
        name = self._names[self._name_ends[row] : self._name_ends[row + 1]]
        image_id, width, height = self._numbers[3 * row : 3 * row + 3]
        return CocoImage(image_id, name.decode("utf-8", _ENCODING_ERRORS), width, height)

    @property
    def id_I(self) -> NDArray[np.int64]:  # noqa: N802 - a shape letter
        return np.array(self._numbers[::3], dtype=np.int64)

    @property
    def size_I2(self) -> NDArray[np.int64]:  # noqa: N802 - shape letters
        """Width and height, px."""
        return np.array(self._numbers, dtype=np.int64).reshape(-1, 3)[:, 1:]


class FileNames(Sequence[str]):
    """The file names of images by index; each is created when it is read."""

    def __init__(self, images: Sequence[CocoImage]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(image.file_name for image in self._images[index])
        return self._images[index].file_name
