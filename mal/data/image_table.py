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

from mal.data.ids import AMBIGUOUS, Id, IdColumn, IdLookup

_ENCODING_ERRORS = "surrogatepass"  # JSON text can hold code points that UTF-8 cannot


@dataclass(frozen=True)
class CocoImage:
    """One image of the file; `width` and `height` in pixels."""

    id: Id
    file_name: str
    width: int
    height: int


class ImageTable(Sequence[CocoImage]):
    """Images by index; the object of an image is created when it is read."""

    def __init__(self) -> None:
        self._ids = IdColumn()
        self._sizes = array("q")  # width and height of each image
        self._is_ambiguous = bytearray()
        self._names = bytearray()
        self._name_ends = array("q", [0])

    def append(self, image: CocoImage) -> None:
        self._ids.append(image.id)
        self._sizes.extend((image.width, image.height))
        self._is_ambiguous.append(False)
        self._names += image.file_name.encode("utf-8", _ENCODING_ERRORS)
        self._name_ends.append(len(self._names))

    def mark_ambiguous(self, index: int) -> None:
        """Note that another image has the same id: the id stands for neither."""
        self._is_ambiguous[index] = True

    def lookup(self) -> IdLookup:
        """Return what finds an image's index by an `image_id`."""
        lookup = IdLookup()
        for index, is_ambiguous in enumerate(self._is_ambiguous):
            lookup.add(self._ids[index], AMBIGUOUS if is_ambiguous else index)
        return lookup

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
        width, height = self._sizes[2 * row : 2 * row + 2]
        return CocoImage(self._ids[row], name.decode("utf-8", _ENCODING_ERRORS), width, height)

    @property
    def size_I2(self) -> NDArray[np.int64]:  # noqa: N802 - shape letters
        """Width and height, px."""
        return np.array(self._sizes, dtype=np.int64).reshape(-1, 2)


def lookup_of(images: Sequence[CocoImage]) -> IdLookup:
    """Return what finds the index of an image by an annotation's `image_id`."""
    if isinstance(images, ImageTable):
        return images.lookup()
    lookup = IdLookup()
    for index, image in enumerate(images):
        lookup.add(image.id, index)
    return lookup


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
