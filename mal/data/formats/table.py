"""What a format gives: images and boxes as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mal.data.images import upright_size_of
from mal.data.problems import Problems
from mal.storage import find_images


class ImageRow(NamedTuple):
    """An image; its size is that of the upright image, in pixels."""

    file_name: str
    width: int
    height: int


class BoxRow(NamedTuple):
    """A box of an image.

    Attributes:
        id: What messages call the box, as "annotation 17": its line, if the file has no ids.
        box_xywh: Left, top, width and height in pixels.
        segmentation: The true mask as COCO polygons or RLE; None: unknown.
    """

    id: int
    file_name: str
    box_xywh: Sequence[float]
    category: str
    is_crowd: bool = False
    segmentation: Any = None


@dataclass(frozen=True)
class AnnotationTable:
    """The content of an annotation file.

    Attributes:
        images: Images without boxes too, where the file lists them.
        categories: Names in the order of their ids; () numbers them as they first occur.
        left_out: What the file holds and the rows do not, and why.
        notes: What was read in another way than it is written.
    """

    images: Iterable[ImageRow]
    boxes: Iterable[BoxRow]
    categories: Sequence[str] = ()
    left_out: Problems = field(default_factory=Problems)
    notes: Problems = field(default_factory=Problems)


@dataclass(frozen=True)
class AnnotationFormat:
    """A format of annotation files.

    Attributes:
        name: Short, in small letters: `csv`.
        matches: Whether a file or folder has this format. It reads names or first bytes, not all.
        read: Given the file and the local image folder, returns what the file says. It raises
            AnnotationError where the file breaks the format's rules. None: the file is COCO.
    """

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Path], AnnotationTable] | None


def image_rows(image_folder: Path, file_names: Iterable[str]) -> Iterator[ImageRow]:
    """Yield the images that exist in the folder with the sizes that their files have."""
    names = list(dict.fromkeys(file_names))
    found = find_images(image_folder, names)
    for index, file_name in enumerate(names):
        path = found.path_of(index, file_name)
        if path is not None:
            yield ImageRow(file_name, *upright_size_of(path))
